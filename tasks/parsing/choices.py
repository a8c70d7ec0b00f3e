# ruff: noqa: RUF001 (fullwidth punctuation of Chinese)
"""Which of several options an answer means: `B`, `(b) blue`, `The answer is B.`, `blue`."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

LETTERS = "ABCDEFGHIJ"

MARK = r"[A-Ja-jＡ-Ｊ]|\d{1,2}|[①-⑩]"
"""What stands before an option."""

_LEAD_IN = re.compile(
    r"""
    (?: (?:so|therefore|thus|hence),?\s++ )?+ (?:the\s++)?+
        (?:(?:correct|right|best|final|most\ likely)\s++){0,2}+ (?:answer|option|choice)\b
        (?:\s++(?:is|would\ be|should\ be)\b)?+
    | it(?:'s|\ is)\b
    | (?:因此|所以|故)?+[,，]?+ (?:正确|正確)?+的?+
        (?:答案|选项|選項) (?:应该|應該)?+ (?:是|为|為|选|選)?+
    | (?:因此|所以|故|应|應)?+[,，]?+ (?:选择|選擇|选|選)
    | (?:la\s++|a\s++)?+ (?:bonne\s++)?+ (?:respuesta|resposta|réponse|risposta)
        (?:\s++(?:correcta|correta|correcte|corretta))?+ (?:\s++(?:es|é|est|è)\b)?+
    | (?:die\s++)?+ (?:richtige\s++)?+ antwort (?:\s++(?:ist|lautet)\b)?+
    | (?:правильный\s++)?+ ответ (?:\s++[—–-])?+
    | 正解は | 答えは | 정답은
    """,
    re.IGNORECASE | re.VERBOSE,
)
_MARKED = re.compile(
    rf"""
    [*_`"'“(\[（【\s]*+ (?:\$?\\boxed\{{)?+ (?:(?:option|choice|选项|選項|opción|opção)\s*+)?+
    [*_(\[（【]*+ (?P<mark>{MARK}) (?!\w|['’]\w)
    (?: (?P<surely>
          [*_`)\]）】}}"'”$.．:：、,，;；。!]++ | \s*+[-–—]\s++ | \s*+$
        | \s++is\s++(?:the\s++)?+(?:correct|right|best)\b(?:\s++(?:answer|option|choice)\b[.,]?+)?+
        ) \s*+
      | \s++
    )
    (?P<rest>.*)
    """,
    re.IGNORECASE | re.VERBOSE,
)
_ANOTHER = re.compile(
    rf"(?: (?:and|or|&|/|和|y|et|und)\s*+[(\[]?+(?:{MARK}) | [,，、]?+\s*+[(\[]?+[A-J] )"
    r"(?: [)\].,，、;:] | \s++(?:and|or|&)\b | \s*+$ )",
    re.VERBOSE,
)
_ENDS = " \t\n*_`\"'“”‘’.,;:!?()[]（）【】。，；：！？、「」《》"


_WITHIN_WORD = re.compile(r"[^\W_\u2e80-\uffff]{2}")
"""No boundary between words; in Chinese and the like there is none to see."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The option that an answer means.

    Attributes:
        index: its position among the options, from 0.
        rest: what else the answer says.
    """

    index: int
    rest: str = ""


def choice_in(said: str, options: Sequence[str], marks: Sequence[str] = LETTERS) -> Choice | None:
    """The option that an answer means; None if that is not certain.

    Args:
        said: the answer: of its lines, the first or the last one decides.
        options: texts of the options.
        marks: what stands before each of them.
    """
    first, _, below = said.strip().partition("\n")
    if choice := _choice_in_line(first, options, marks):
        return Choice(choice.index, f"{choice.rest}\n{below}".strip())
    above, _, last = said.strip().rpartition("\n")
    if above and (choice := _choice_in_line(last, options, marks)):
        return Choice(choice.index, above.strip())
    return None


def _choice_in_line(line: str, options: Sequence[str], marks: Sequence[str]) -> Choice | None:
    line = line.strip().lstrip("*_ ")
    if choice := _marked_choice(line, options, marks) or _same_text(line, options):
        return choice
    if lead := _LEAD_IN.match(line):
        line = line[lead.end() :].lstrip(" :：*_")
        return _marked_choice(line, options, marks) or _same_text(line, options)
    return None


def _marked_choice(line: str, options: Sequence[str], marks: Sequence[str]) -> Choice | None:
    match = _MARKED.match(line)
    if match is None:
        return None
    index = _index(match["mark"], marks)
    rest = match["rest"].strip().strip("*_").strip()
    same = _same_text(rest, options)
    if index is None or index >= len(options):
        return same
    if same is not None:
        if match["surely"] is None and match["mark"] in {"A", "a"}:
            return same  # "A cat": an article
        return Choice(index) if same.index == index else None
    if _ANOTHER.match(rest):
        return None  # "A and C"
    own, folded = options[index].casefold(), rest.casefold()
    if folded.startswith(own):
        if _WITHIN_WORD.match(folded, len(own) - 1):
            return None  # "A) 13", where A is 1
        return Choice(index, rest[len(own) :].lstrip(" .,;:-–—。，；："))
    if any(folded.startswith(option.casefold()) for option in options):
        return None  # "B. red", where B is blue
    return Choice(index, rest) if match["surely"] is not None else None


def _index(mark: str, marks: Sequence[str]) -> int | None:
    mark = unicodedata.normalize("NFKC", mark).upper()
    return next((n for n, other in enumerate(marks) if other.upper() == mark), None)


def _same_text(text: str, options: Sequence[str]) -> Choice | None:
    wanted = normal(text)
    found = [number for number, option in enumerate(options) if normal(option) == wanted]
    return Choice(found[0]) if len(found) == 1 and wanted else None


def leads_to_choice(line: str) -> bool:
    """Whether a line begins as one that says which option is right: "The answer is ..."."""
    return _LEAD_IN.match(line.strip().lstrip("*_ ")) is not None


def normal(text: str) -> str:
    """A text without what makes no difference between options: case, emphasis, a final stop."""
    folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return folded.strip(_ENDS) or folded
