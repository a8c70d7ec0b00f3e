r"""Backslashes that a model has forgotten to double: LaTeX in the strings of JSON.

`\alpha` is no JSON; `\frac`, `\beta`, `\nu`, `\rho` and `\theta` are: a form feed and "rac" ...
"""

import re
from functools import partial

_COMMANDS = """
nabla natural ncong ne nearrow neg neq newline nexists ngeq nleq nless ngtr nmid nolimits nonumber
norm normalsize not notin nparallel nprec nsim nsubseteq nsucc nsupseteq ntriangleleft nu nwarrow
raisebox rangle rbrace rbrack rceil real ref renewcommand restriction rfloor rho right rightarrow
rightharpoonup rightleftharpoons rightrightarrows rightsquigarrow rm root rtimes rule rvert rVert
tag tan tanh tau tbinom text textbf textbackslash textcolor textdegree textit textmd textnormal
textrm textsc textsf textsize textstyle textsubscript textsuperscript texttt textup tfrac therefore
theta thickapprox thicksim thinspace tilde times tiny to top triangle triangledown triangleleft
triangleq triangleright twoheadrightarrow
"""
_LATEX = frozenset(_COMMANDS.split())
"""Commands of LaTeX that begin like the escapes of JSON that replies have: `\\n`, `\\r`, `\\t`."""

_ESCAPE = re.compile(r"\\(?:(?P<sound>[\"/\\]|u[0-9a-fA-F]{4})|(?P<word>[a-zA-Z]++)|(?P<quote>')|)")
_SURELY_LATEX = re.compile(r"\$|(?<!\\)\\(?:[ac-eg-mo-qsv-zA-Z(\[]|frac|beta|bar|begin)")
_SHORT = 2


def repair_escapes(text: str) -> str:
    r"""JSON, or text with JSON in it, in which every lone backslash of LaTeX is doubled.

    `\b` and `\f` before a letter are LaTeX: no reply has a backspace or form feed. After `\n`, `\r`
    and `\t` only known commands of LaTeX are, so that a line break before a word stays one; and
    `\ne`, `\nu` and the like only if the text has other LaTeX.
    """
    if "\\" not in text:
        return text
    shortest = _SHORT if _SURELY_LATEX.search(text) else _SHORT + 1
    return _ESCAPE.sub(partial(_repaired, shortest), text)


def _repaired(shortest: int, match: re.Match[str]) -> str:
    escape = match[0]
    if match["sound"]:
        return escape
    if match["quote"]:
        return "'"  # of Python and JavaScript
    word = match["word"] or ""
    is_latex = word in _LATEX and len(word) >= shortest
    if len(word) == _SHORT and match.string[match.end() : match.end() + 1] in {")", ".", ":"}:
        is_latex = False  # "\ne) a star" is the fifth of several choices
    is_escape = word[:1] in {"n", "r", "t"} and not is_latex
    return escape if is_escape or word in {"b", "f"} else f"\\{escape}"
