# ruff: noqa: RUF001 (punctuation of several languages)
"""Questions without answers: labelled, numbered, one a line, or in JSON."""

import re
from collections.abc import Iterator, Sequence

from ..records import QAPair
from .found_pairs import FoundPairs
from .json_fields import is_question
from .json_values import NotJSONError, fenced, json_value
from .labels import ANSWER_OR_LETTER, QUESTION_OR_LETTER, line_label
from .wrappers import trim

_LABEL = line_label(question=QUESTION_OR_LETTER, answer=ANSWER_OR_LETTER)
_ITEM = re.compile(
    r"(?P<indent>[^\S\n]*+)(?:>[^\S\n]*+)*+[*_]{0,3}+"
    r"(?:[(（]?+(?P<number>\d{1,3})(?:[)）、]|[.:：](?!\d))[*_]{0,3}+|[-+*•](?=[^\S\n]))[^\S\n]*+"
    r"(?P<text>\S.*)"
)
_TITLE = re.compile(r"(?:\*\*|__)[^*_\n?？:：]{1,60}+(?:[:：](?:\*\*|__)|(?:\*\*|__)\s*+[:：])\s*+")
_MARKS = ("?", "？", "؟", "⁇")
_AFTER_MARK = re.compile(r"""[?？؟]["'”’»)）*_`]{0,4}+(?=\s|$|[(（—–-])""")
_REQUEST = re.compile(
    r"(?:please|describe|name|list|count|identify|explain|compare|estimate|read|give|state|tell"
    r"|summari[sz]e|discuss|determine|calculate|locate|find|point out|write|suggest)\b"
    r"|(?:describe|décrivez|décris|beschreib|nenne|zähle|descreva|опиши|назови)"
    r"|(?:describa|enumere|identifique|explique|liste|nommez|erkläre|descrivi|elenca|spiega)"
    r"|(?:opisz|wymień|wyjaśnij|jelaskan|sebutkan|deskripsikan|hãy|mô tả|açıklayın|beschrijf)"
    r"|.*(?:か。?|吗。?|呢。?|까\.?|[\u0e00-\u0e7f])$",  # Thai has no question mark
    re.IGNORECASE,
)
_CLOSING = re.compile(
    r"\W{0,4}+(?:would you like|do you want|shall i|should i|can i help|may i help"
    r"|(?:could|can|would) you (?:please )?(?:upload|share|provide|send|attach)"
    r"|is there anything|need (?:any|more)|let me know|any other questions)\b",
    re.IGNORECASE,
)
_REFUSAL = re.compile(
    r"\W{0,4}+(?:sorry\b|apologies\b|unfortunately\b|i apologi[sz]e\b|as an ai\b"
    r"|i(?:['’]m| am) (?:very |so )?(?:sorry|afraid|unable|not able)\b"
    r"|i (?:can(?:['’]t|not| not)|(?:do not|don['’]t) see|(?:could not|couldn['’]t))\b"
    r"|lo siento|désolée?|je suis désolée?|(?:es )?tut mir leid|desculpe|mi dispiace|извините"
    r"|(?:很|非常)?抱歉|对不起|對不起|我无法|我無法|申し訳|すみません|죄송)",
    re.IGNORECASE,
)
_FENCE_LINE = re.compile(r"^[^\S\n]*+```[\w-]*+[^\S\n]*+$", re.MULTILINE)
_SENTENCE_END = (".", "!", "?", ":", "。", "！", "？", "：", "؟")

# Each begins after the one before it, or else the time for escaped quotation marks were quadratic.
_STRING = re.compile(r'(?<!\\)"((?:[^"\\\n]|\\.)*+)"(?=\s*+[,\]}]|\s*+\Z)')


def find_questions(text: str) -> FoundPairs:
    """The questions in a reply, each as a pair without an answer.

    Answers that the model has added are left out, and so are introductions and closing remarks.
    """
    if _REFUSAL.match(text):
        return FoundPairs([], 0, "is an apology instead of a question")
    try:
        value = json_value(fenced(text))
    except NotJSONError:
        strings = (match[1] for match in _STRING.finditer(fenced(text)))
        whole = _found(string for string in strings if string.rstrip().endswith(_MARKS))
        return FoundPairs(whole.pairs, 1, "is JSON that is cut off or damaged")
    found = _found([] if value is None else list(_json_questions(value)))
    if found.pairs or (value is not None and "```" not in text):
        return found
    text = _FENCE_LINE.sub("", text)
    return _found(_labelled(text) or _items(text) or _bare(text))


def _found(questions: "Iterator[str] | Sequence[str]") -> FoundPairs:
    tidy = [_tidy(question) for question in questions]
    questions = [question for question in tidy if question and not _REFUSAL.match(question)]
    lost = len(tidy) - len(questions)
    return FoundPairs([QAPair(question, "") for question in questions], lost)


def _tidy(question: str) -> str:
    """A question without its number, title and emphasis, and without what follows it."""
    question = trim(question.strip())
    if item := _ITEM.fullmatch(question):
        question = item["text"].strip()
    question = _TITLE.sub("", question, count=1) if question.startswith(("**", "__")) else question
    marks = [mark.end() for mark in _AFTER_MARK.finditer(question)]
    if marks:
        question = question[: marks[-1]]
    for quote in ("**", "__", "*", "_", '"', "“", "«", "`"):
        closing = {"“": "”", "«": "»"}.get(quote, quote)
        if question.startswith(quote) and question.endswith(closing) and len(question) > 2:
            question = question.removeprefix(quote).removesuffix(closing).strip()
    return question.strip()


def _json_questions(value: object) -> Iterator[str]:
    """The texts of lists, and the values of keys such as "question" and "q1", at any depth."""
    todo: list[tuple[str, object]] = [("questions", value)]
    while todo:
        name, value = todo.pop()
        if isinstance(value, str) and (name == "questions" or is_question(name)):
            yield value
        elif isinstance(value, list):
            todo.extend((name, item) for item in reversed(value))
        elif isinstance(value, dict):
            members = [(key.strip().casefold(), member) for key, member in value.items()]
            todo.extend((_name(key, member), member) for key, member in reversed(members))


def _name(key: str, member: object) -> str:
    """What a member is: a question, "questions", or something else."""
    if key.isdecimal() or key in {"问题列表", "问题", "preguntas", "fragen", "items", "list"}:
        return "questions"
    return key if isinstance(member, str) or key == "questions" else ""


def _labelled(text: str) -> list[str]:
    labels = list(_LABEL.finditer(text))
    ends = [*(label.start() for label in labels[1:]), len(text)]
    values = [
        text[label.end() : end].strip().partition("\n")[0]
        for label, end in zip(labels, ends, strict=False)
        if label["question"]
    ]
    return [value for value in values if value.strip("*_ ")]


def _items(text: str) -> list[str]:
    """The items of a list: of a numbered one, only those that have a number."""
    lines = text.split("\n")
    items = [(item, n) for n, line in enumerate(lines) if (item := _ITEM.fullmatch(line))]
    numbered = [(item, n) for item, n in items if item["number"]]
    if not numbered:
        outermost = min((len(item["indent"]) for item, _ in items), default=0)
        items = [(item, n) for item, n in items if len(item["indent"]) == outermost]
    texts = [_unwrapped(item["text"], lines[n + 1 : n + 4]) for item, n in numbered or items]
    return [text for text in texts if _is_question(text) or (numbered and _may_ask(text))]


def _unwrapped(text: str, below: Sequence[str]) -> str:
    """The text of an item, with the lines below it on which its question goes on."""
    joined = text.strip()
    for line in below:
        if joined.endswith(_SENTENCE_END) or not line.strip() or _ITEM.fullmatch(line):
            break
        joined = f"{joined} {line.strip()}"
    return joined if _is_question(joined) else text


def _may_ask(text: str) -> bool:
    """Whether a text without a question mark may ask; in Latin script, only if it is a request."""
    text = _tidy(text)
    letters = [letter for letter in text if letter.isalpha()]
    is_latin = all(letter < "\u0250" or "\u1e00" <= letter < "\u1f00" for letter in letters)
    if text.endswith((":", "：")):
        return False
    return not is_latin or _REQUEST.match(text) is not None


def _bare(text: str) -> list[str]:
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    marked = [line for line in lines if _is_question(line) and not _CLOSING.match(line)]
    if marked:
        return marked
    return [line for line in lines[:1] if len(lines) == 1 and _REQUEST.match(line)]


def _is_question(line: str) -> bool:
    return _AFTER_MARK.search(line) is not None
