"""Replies -> finished rows and quarantined ones: what is an answer, and what pairs are in it."""

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
from .text import PARSER_VERSION, parse_qa_pairs, strip_reasoning

Parser = Callable[[str], Any]
"""Takes a completion's text as it came, gives plain JSON; may raise, which costs that row only."""

PairParser = Callable[[str], list[QAPair]]
"""A parser of QA pairs, as users write it."""


@dataclass(frozen=True)
class ParseSettings:
    """How the completions of a pass are parsed.

    Attributes:
        name: the parser's name; it stands for what the parser does.
        parser: text -> plain JSON.
        required: a reply of which the parser makes nothing is no answer.
        version: tells what the parser gives from what it gave before; None where only its name
            can tell.
    """

    name: str
    parser: Parser
    required: bool = True
    version: int | None = None

    @property
    def label(self) -> str:
        """Names everything that decides what is parsed from a text, fit for a file name."""
        if self.version is not None:
            label = f"{self.name}-v{self.version}"
        else:
            digest = hashlib.sha256(self.name.encode("utf-8", "replace")).hexdigest()[:8]
            label = f"{re.sub(r'[^A-Za-z0-9_]+', '-', self.name)[:60]}-{digest}"
        return label if self.required else f"{label}-raw"


def pair_parse_settings(name: str, parser: PairParser, require_pairs: bool = True) -> ParseSettings:
    """How completions are parsed for QA pairs; the built-in parser has a version."""
    version = PARSER_VERSION if parser is parse_qa_pairs else None
    return ParseSettings(name, partial(_plain_pairs, parser), require_pairs, version)


def _plain_pairs(parser: PairParser, text: str) -> list[dict[str, str]]:
    """Pairs of which both halves say something."""
    found = [(pair.question.strip(), pair.answer.strip()) for pair in parser(text)]
    return [{"question": asked, "answer": told} for asked, told in found if asked and told]


QA_PAIRS = pair_parse_settings("qa_pairs", parse_qa_pairs)
"""The built-in parser of question-answer pairs."""


@dataclass(frozen=True)
class ParsedBatch:
    """What became of a batch's rows.

    Attributes:
        rows: in the order they were asked.
        time: when their completions were stored, in seconds since 1970 (UTC).
    """

    rows: Sequence[FinishedRow]
    time: float

    @property
    def answered(self) -> list[Answered]:
        """The rows that have an answer."""
        return [row for row in self.rows if isinstance(row, Answered)]


@task(name="parse", task_run_name="parse-{batch}", **TASK_OPTIONS)
def parse_batch(
    batch: Batch,  # noqa: ARG001 - names the task run
    result: Mapping[str, Any],
    settings: ParseSettings = QA_PAIRS,
) -> ParsedBatch:
    """Turn what `generate_batch` returned into finished rows and quarantined ones, in order."""
    return parse_completions(Completions.load(result), settings)


def parse_completions(completions: Completions, settings: ParseSettings) -> ParsedBatch:
    """Turn the replies to a batch into finished rows and quarantined ones, in order."""
    rows = [parse_reply(reply, settings) for reply in completions.replies]
    return ParsedBatch(rows, completions.time)


def parse_reply(stored: StoredReply, settings: ParseSettings) -> FinishedRow:
    """Turn the reply to one row into a finished row or a quarantined one."""
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
    """What the parser makes of a completion, or why that is no answer.

    A parser of the user's may raise: this is then this row's problem.
    """
    problem = _unfinished(completion)
    if problem is not None:
        return problem
    try:
        parsed = settings.parser(completion.text)
        json.dumps(parsed)
    except Exception as error:
        # The parser may be the user's own code, met with text nobody foresaw.
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        return Problem(
            Kind.UNPARSED,
            f"parser {settings.name} raised {reason}; look at the raw text and correct the parser",
        )
    if settings.required and not parsed:
        return Problem(
            Kind.UNPARSED,
            f"parser {settings.name} found nothing in {len(completion.text)} characters; "
            "look at the raw text, then make the prompt state the format, or ask for JSON",
        )
    return parsed


def _unfinished(completion: Completion) -> Problem | None:
    if completion.finish_reason == "length":
        return Problem(
            Kind.TRUNCATED,
            f"the reply was cut off after {completion.completion_tokens} tokens; raise max_tokens "
            "(and the server's max_model_len where that is the limit), or ask for less",
        )
    if completion.finish_reason != "stop":
        return Problem(
            Kind.TRUNCATED,
            f"the server ended the reply early (finish_reason {completion.finish_reason[:40]!r}); "
            "look at the raw text and the server's log",
        )
    if not strip_reasoning(completion.text).strip():
        found = "only reasoning" if completion.text.strip() else "nothing"
        return Problem(
            Kind.EMPTY,
            f"the model wrote {found} ({completion.completion_tokens} tokens); "
            "check the prompt and the model's chat template",
        )
    return None
