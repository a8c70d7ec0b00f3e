"""Replies -> answered and quarantined rows."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from prefect import task

from ...serving.types import Completion
from ..concurrency import TASK_OPTIONS
from ..generating.completions import Completions, StoredReply
from ..records import Answered, Batch, FinishedRow, Kind, Problem, QAPair, Quarantined
from .labelled_text import PARSER_VERSION, parse_qa_pairs, strip_reasoning

Parser = Callable[[str], Any]
"""Turns the raw text of a completion into plain JSON; an exception affects only that row."""

PairParser = Callable[[str], list[QAPair]]
"""The interface of a custom parser: text -> QA pairs."""


@dataclass(frozen=True)
class ParseSettings:
    """How the completions of a pass are parsed.

    Attributes:
        name: the parser's name, which identifies its behaviour.
        parser: text -> plain JSON.
        required: whether a reply in which the parser finds nothing is quarantined.
        version: changes with the parser's behaviour; None if only the name identifies it.
    """

    name: str
    parser: Parser
    required: bool = True
    version: int | None = None

    @property
    def label(self) -> str:
        """Identifies everything that decides the parser's results; usable as a file name."""
        if self.version is not None:
            label = f"{self.name}-v{self.version}"
        else:
            digest = hashlib.sha256(self.name.encode("utf-8", "replace")).hexdigest()[:8]
            label = f"{re.sub(r'[^A-Za-z0-9_]+', '-', self.name)[:60]}-{digest}"
        return label if self.required else f"{label}-raw"


def pair_parse_settings(name: str, parser: PairParser, require_pairs: bool = True) -> ParseSettings:
    """Settings for a parser of QA pairs; only the built-in parser has a version."""
    version = PARSER_VERSION if parser is parse_qa_pairs else None
    return ParseSettings(name, partial(_plain_pairs, parser), require_pairs, version)


def _plain_pairs(parser: PairParser, text: str) -> list[dict[str, str]]:
    """The pairs as plain JSON, stripped, without those whose question or answer is empty."""
    pairs = [(pair.question.strip(), pair.answer.strip()) for pair in parser(text)]
    return [
        {"question": question, "answer": answer}
        for question, answer in pairs
        if question and answer
    ]


QA_PAIRS = pair_parse_settings("qa_pairs", parse_qa_pairs)
"""The built-in parser of question-answer pairs, with its default settings."""


@dataclass(frozen=True)
class ParsedBatch:
    """The rows of a batch, answered or quarantined.

    Attributes:
        rows: in the order of the batch.
        time: when the last of their replies was received, in seconds since 1970 (UTC).
    """

    rows: Sequence[FinishedRow]
    time: float

    @property
    def answered(self) -> list[Answered]:
        """The answered rows."""
        return [row for row in self.rows if isinstance(row, Answered)]


@task(name="parse", task_run_name="parse-{batch}", **TASK_OPTIONS)
def parse_batch(
    batch: Batch,  # noqa: ARG001 - names the task run
    result: Mapping[str, Any],
    settings: ParseSettings = QA_PAIRS,
) -> ParsedBatch:
    """Parse the result of `generate_batch` into answered and quarantined rows, in order."""
    return parse_completions(Completions.load(result), settings)


def parse_completions(completions: Completions, settings: ParseSettings) -> ParsedBatch:
    """Parse the replies to a batch into answered and quarantined rows, in order."""
    rows = [parse_reply(reply, settings) for reply in completions.replies]
    return ParsedBatch(rows, completions.time)


def parse_reply(stored: StoredReply, settings: ParseSettings) -> FinishedRow:
    """Parse the reply to one row into an answered or quarantined row."""
    reply = stored.reply
    parsed = reply if isinstance(reply, Problem) else parse_completion(reply, settings)
    if isinstance(reply, Completion) and not isinstance(parsed, Problem):
        return Answered(
            key=stored.key,
            text=reply.text,
            parsed=parsed,
            model=reply.model,
            prompt_tokens=reply.prompt_tokens,
            completion_tokens=reply.completion_tokens,
            latency=round(reply.latency, 4),
        )
    return Quarantined(
        key=stored.key,
        row=stored.row,
        where=stored.where,
        kind=parsed.kind,
        message=parsed.message,
        status=parsed.status,
        attempts=reply.attempts,
        text=reply.text if isinstance(reply, Completion) else None,
        attempt=stored.attempt,
    )


def parse_completion(completion: Completion, settings: ParseSettings) -> Any | Problem:
    """The parser's result for a completion, or why it is not an answer."""
    problem = _unfinished(completion)
    if problem is not None:
        return problem
    try:
        parsed = settings.parser(completion.text)
        json.dumps(parsed)
    except Exception as error:
        # A custom parser may fail in any way on unexpected text: that is this row's problem.
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        return Problem(
            Kind.UNPARSED,
            f"parser {settings.name} raised {reason}; check the raw text and fix the parser",
        )
    if settings.required and not parsed:
        return Problem(
            Kind.UNPARSED,
            f"parser {settings.name} found nothing in {len(completion.text)} characters; "
            "check the raw text, then state the format in the prompt, or request JSON output",
        )
    return parsed


def _unfinished(completion: Completion) -> Problem | None:
    if completion.finish_reason == "length":
        return Problem(
            Kind.TRUNCATED,
            f"the reply was truncated after {completion.completion_tokens} tokens; raise "
            "max_tokens (and the server's max_model_len if that is the limit), or request "
            "shorter replies",
        )
    if completion.finish_reason != "stop":
        return Problem(
            Kind.TRUNCATED,
            f"the server ended the reply early (finish_reason {completion.finish_reason[:40]!r}); "
            "check the raw text and the server's log",
        )
    if not strip_reasoning(completion.text).strip():
        content = "only reasoning" if completion.text.strip() else "nothing"
        return Problem(
            Kind.EMPTY,
            f"the model wrote {content} ({completion.completion_tokens} tokens); "
            "check the prompt and the model's chat template",
        )
    return None
