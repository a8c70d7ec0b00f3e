r"""Backslashes that a model has forgotten to double: LaTeX in the strings of JSON.

`\alpha` is no JSON; `\frac`, `\beta`, `\nu`, `\rho` and `\theta` are: a form feed and "rac" ...
"""

import re
from functools import partial

_COMMANDS = """
nabla natural nearrow neq newline ngeq nleq ngtr nolimits nonumber normalsize notin nsubseteq nsucc
nsupseteq ntriangleleft nwarrow raisebox rbrack rceil real ref renewcommand restriction rho right
rightarrow rightharpoonup rightleftharpoons rightrightarrows rightsquigarrow root rule tau tbinom
textbf textbackslash textcolor textdegree textit textmd textnormal textrm textsc textsf textsize
textstyle textsubscript textsuperscript texttt textup tfrac therefore theta thickapprox thicksim
thinspace tilde times tiny triangle triangledown triangleleft triangleq triangleright
twoheadrightarrow
"""
_LATEX = frozenset(_COMMANDS.split())
"""Commands of LaTeX that begin like the escapes of JSON that replies have: `\\n`, `\\r`, `\\t`."""

_AMBIGUOUS = re.compile(
    r"\\(?:n(?:cong|eg?|exists|less|mid|orm|ot|parallel|prec|sim|u)"
    r"|r(?:angle|brace|floor|m|times|vert|Vert)|t(?:ag|anh?|ext|op?))(?![a-zA-Z])"
)
"""Those whose rest is a word too, in some language: a line break and "less", a tab and "an"."""

_STRING = re.compile(r'(?:[^"\\]++|\\.?)++', re.DOTALL)
_ESCAPE = re.compile(r"\\(?:(?P<sound>[\"/\\]|u[0-9a-fA-F]{4})|(?P<word>[a-zA-Z]++)|(?P<quote>')|)")
_DOUBLED = re.compile(r"(?<!\\)\\\\[a-zA-Z(\[]")
_MATHS = re.compile(
    r"""
    ( (?<![\w$\\]) \$ (?![\s$]) [^$\n]++ (?<!\s) \$ (?![\w$])   # but not "$5 or 6 $" or "$5-$6"
    | (?<!\\) \$\$ [^$]++ \$\$
    | (?<!\\) \\\( (?:[^\\]|\\[^()])*+ \\\)
    | (?<!\\) \\\[ (?:[^\\]|\\[^\[\]])*+ \\\] )
    """,
    re.VERBOSE,
)


def repair_escapes(text: str) -> str:
    r"""JSON, or text with JSON in it, in which every lone backslash of LaTeX is doubled.

    `\b` and `\f` before a letter are LaTeX: no reply has a backspace or form feed. After `\n`, `\r`
    and `\t` only commands of LaTeX are, so that a line break before a word stays one. Commands that
    may be such a word count in formulas, or, where no formula is marked, beside other LaTeX.
    """
    if "\\" not in text:
        return text
    if not _AMBIGUOUS.search(text):
        return _ESCAPE.sub(partial(_repaired, ""), text)
    return _STRING.sub(_repaired_string, text)


def _repaired_string(match: re.Match[str]) -> str:
    """A string of JSON, or a piece of the text around it."""
    string = match[0]
    if "\\" not in string:
        return string
    has_latex = any(map(_is_surely_latex, _ESCAPE.finditer(string)))
    parts = _MATHS.split(string)  # every second one is a formula
    in_text = partial(_repaired, "beside" if has_latex and len(parts) == 1 else "")
    # A model that doubles some backslashes means line breaks by the others.
    in_formula = partial(_repaired, "inside" if has_latex or not _DOUBLED.search(string) else "")
    return "".join(
        _ESCAPE.sub(in_formula if number % 2 else in_text, part)
        for number, part in enumerate(parts)
    )


def _is_surely_latex(escape: re.Match[str]) -> bool:
    word = escape["word"] or ""
    if word[:1] in {"b", "f"}:
        return len(word) > 1
    return word in _LATEX or word[:1] not in {"", "n", "r", "t", "u"}


def _repaired(latex: str, match: re.Match[str]) -> str:
    """An escape of JSON, or LaTeX with its backslash doubled.

    Args:
        latex: "inside" a formula, or "beside" other LaTeX; "" if there is none.
        match: a backslash, and what follows.
    """
    escape, word = match[0], match["word"] or ""
    if match["sound"]:
        return escape
    if match["quote"]:
        return "'"  # of Python and JavaScript
    before = match.string[max(match.start() - 1, 0) : match.start()]
    after = match.string[match.end() : match.end() + 1]
    is_latex = word in _LATEX
    if _AMBIGUOUS.fullmatch(escape):
        # The end of a sentence is before a new line; "\ne) a star" is the fifth of several choices.
        is_line = before in {*".!?:;,"} or after in {*").:"}
        is_latex = latex == "inside" or (latex == "beside" and not is_line) or after == "{"
    is_escape = word[:1] in {"n", "r", "t"} and not is_latex
    return escape if is_escape or word in {"b", "f"} else f"\\{escape}"
