"""Replies -> answered and quarantined rows."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

from ...serving.printable import printable
from ...serving.types import Completion
from ..generating.completions import Completions, StoredReply
from ..records import (
    Answered,
    Asked,
    FinishedRow,
    Kind,
    Problem,
    QAPair,
    Quarantined,
    ReplyForm,
)
from .parsers import Parsed, Parser, RecentReplies
from .qa_pairs import PARSER_VERSION, find_pairs, parse_answer, parse_qa_pairs
from .unfinished import unfinished

PairParser = Callable[[str], list[QAPair]]
"""The interface of a custom parser: text -> QA pairs."""


@dataclass(frozen=True)
class ParseSettings:
    """How the completions of a pass are parsed.

    Attributes:
        name: the parser's name, which identifies its behaviour.
        parser: text and question -> plain JSON.
        required: whether a reply in which the parser finds nothing is quarantined.
        version: changes with the parser's behaviour; None if only the name identifies it.
        user_prompt: what is asked about rows that ask nothing themselves.
        recent: replies that were parsed once, of twice.
    """

    name: str
    parser: Parser
    required: bool = True
    version: int | None = None
    user_prompt: str = ""
    recent: RecentReplies = field(
        default_factory=RecentReplies, init=False, compare=False, repr=False
    )

    def parse(self, text: str, asked: Asked) -> Parsed:
        """What the parser makes of a reply; an answer that was given is taken as it is.

        Raises:
            Exception: as the parser does.
        """
        if asked.form is ReplyForm.GIVEN:
            return Parsed(_plain([QAPair(asked.question, text)]))
        return self.recent.parse(self.parser, text, asked)

    @property
    def label(self) -> str:
        """Identifies everything that decides the parser's results; usable as a file name."""
        if self.version is not None:
            label = f"{self.name}-v{self.version}"
        else:
            digest = hashlib.sha256(self.name.encode("utf-8", "replace")).hexdigest()[:8]
            label = f"{re.sub(r'[^A-Za-z0-9_]+', '-', self.name)[:60]}-{digest}"
        return label if self.required else f"{label}-raw"


def pair_parse_settings(
    name: str, parser: PairParser, require_pairs: bool = True, user_prompt: str = ""
) -> ParseSettings:
    """Settings for a parser of QA pairs; only the built-in parsers have a version."""
    built_in = _BUILT_IN.get(parser)
    version = None if built_in is None else PARSER_VERSION
    reads = built_in or partial(_read_with, parser)
    return ParseSettings(name, reads, require_pairs, version, user_prompt)


def _read_qa_pairs(text: str, asked: Asked) -> Parsed:
    found = find_pairs(text, asked)
    pairs = _plain(found.pairs, need_answers=asked.form is not ReplyForm.QUESTIONS)
    return Parsed(pairs, found.lost, found.reason)


def _read_answer(text: str, asked: Asked) -> Parsed:
    if asked.form is ReplyForm.ANSWER:
        return _read_qa_pairs(text, asked)  # the reply may be JSON, or have a label
    return Parsed(_plain(parse_answer(text, asked.question)))


def _read_with(parser: PairParser, text: str, _asked: Asked) -> Parsed:
    pairs = _plain(parser(text))
    for pair in pairs:
        QAPair.from_plain(pair)  # raises what would end the run when the pairs are exported
    return Parsed(pairs)


_BUILT_IN: Mapping[PairParser, Parser] = {
    parse_qa_pairs: _read_qa_pairs,
    parse_answer: _read_answer,
}


def _plain(pairs: Iterable[QAPair], *, need_answers: bool = True) -> list[dict[str, Any]]:
    """The pairs as plain JSON, tidied: complete ones, with the fields that are set."""
    return [
        plain
        for plain in map(_plain_pair, pairs)
        if plain["question"]
        and (plain["answer"] or not need_answers)
        and all(plain.get("options", ()))
    ]


def _plain_pair(pair: QAPair) -> dict[str, Any]:
    plain: dict[str, Any] = {"question": _tidy(pair.question), "answer": _tidy(pair.answer)}
    for name in _OPTIONAL:
        if value := getattr(pair, name):
            if isinstance(value, str):
                value = _tidy(value)
            elif not isinstance(value, int):
                value = [_tidy(text) for text in value]
            if value:
                plain[name] = value
    return plain


_OPTIONAL = tuple(field.name for field in fields(QAPair))[2:]


_CONTROLS = {number: None for number in (*range(32), *range(127, 160)) if chr(number) not in "\n\t"}


def _tidy(text: str) -> str:
    """The text without control characters but tabs and line breaks, and stripped."""
    if text.isprintable():
        return text.strip()
    text = text.replace("\r\n", "\n").translate(_CONTROLS).strip()
    # JSON allows half a surrogate pair, which no file can hold.
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


QA_PAIRS = pair_parse_settings("qa_pairs", parse_qa_pairs)
"""The built-in parser of question-answer pairs, with its default settings."""

ANSWER = pair_parse_settings("answer", parse_answer)
"""The parser of the pass that answers the questions of another one."""


def parse_completions(completions: Completions, settings: ParseSettings) -> list[FinishedRow]:
    """Parse the replies to a batch into answered and quarantined rows, in order."""
    return [parse_reply(reply, settings) for reply in completions.replies]


def parse_reply(stored: StoredReply, settings: ParseSettings) -> FinishedRow:
    """Parse the reply to one row into an answered or quarantined row."""
    reply = stored.reply
    if isinstance(reply, Problem):
        return _quarantined(stored, reply)
    parsed = parse_completion(reply, settings, stored.asked)
    if isinstance(parsed, Problem):
        return _quarantined(stored, parsed, reply.text or reply.reasoning)
    return Answered(
        key=stored.key,
        text=reply.text,
        parsed=parsed.value,
        model=reply.model,
        prompt_tokens=reply.prompt_tokens,
        completion_tokens=reply.completion_tokens,
        latency=round(reply.latency, 4),
        reasoning=reply.reasoning,
        lost=parsed.lost,
        style=stored.asked.style,
    )


def _quarantined(stored: StoredReply, problem: Problem, text: str | None = None) -> Quarantined:
    return Quarantined(
        key=stored.key,
        row=stored.row,
        where=stored.where,
        kind=problem.kind,
        message=problem.message,
        status=problem.status,
        attempts=stored.reply.attempts,
        text=text,
        attempt=stored.attempt,
    )


def parse_completion(
    completion: Completion,
    settings: ParseSettings,
    asked: Asked = Asked(),  # noqa: B008 - frozen
) -> Parsed | Problem:
    """The parser's result for a completion, or why it is not an answer.

    Args:
        completion: the reply.
        settings: how it is parsed.
        asked: what the row was asked.
    """
    problem = None if asked.form is ReplyForm.GIVEN else unfinished(completion)
    if problem is not None:
        return problem
    try:
        parsed = settings.parse(completion.text, asked)
        if settings.parser not in _BUILT_IN.values():
            json.dumps(parsed.value)
    except Exception as error:
        # A custom parser may fail in any way on unexpected text: that is this row's problem.
        reason = printable(f"{type(error).__name__}: {error}", 200)
        return Problem(
            Kind.UNPARSED,
            f"parser {settings.name} raised {reason}; fix it and give it another name: results "
            "are stored under this one, and the next run with it skips these rows",
        )
    if settings.required and not parsed.value:
        return Problem(Kind.UNPARSED, _nothing_found(completion, parsed, settings, asked))
    return parsed


def fault_of(parsed: Parsed, form: ReplyForm) -> str:
    """What is wrong with a reply in which the built-in parser finds nothing.

    Returns:
        The end of a sentence that starts with "The reply ...".
    """
    return parsed.reason or _MISSING[form]


_MISSING: Mapping[ReplyForm, str] = {
    ReplyForm.PAIRS: "has no question with an answer that can be read",
    ReplyForm.DIALOGUE: "has no question with an answer that can be read",
    ReplyForm.MULTIPLE_CHOICE: "has no question with options and the letter of the right one",
    ReplyForm.ANSWER: "has no answer that can be read",
    ReplyForm.QUESTIONS: "has no question that can be read",
    ReplyForm.GIVEN: "has nothing that can be read",
}


def _nothing_found(
    completion: Completion, parsed: Parsed, settings: ParseSettings, asked: Asked
) -> str:
    """Why the parser found nothing, and what to do, in one line."""
    characters = f"{len(completion.text)} characters"
    if settings.parser is _read_answer and not asked.question:
        return "the row asks no question that the reply could answer; use parser qa_pairs"
    if settings.parser not in _BUILT_IN.values():
        return f"parser {settings.name} found nothing in {characters}; check the raw text"
    advice = "check the raw text, then state the format in the prompt, or request JSON output"
    has_own = asked.question not in {"", settings.user_prompt} and _is_conversation(asked)
    if settings.parser is _read_qa_pairs and has_own:
        advice = (
            "if the reply is the answer to the row's own question, use `--parser answer`; "
            f"otherwise {advice}"
        )
    return f"the reply of {characters} {fault_of(parsed, asked.form)}; {advice}"


def _is_conversation(asked: Asked) -> bool:
    """Whether a row was asked what its own conversation ends with, and by no other style."""
    return asked.form is ReplyForm.PAIRS and asked.style.partition("@")[0] in {"", "chat"}
