"""Replies -> finished rows and quarantined ones: what is an answer, and what pairs are in it."""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefect import task

from ..serving.types import Completion
from .completions import Completions, StoredReply
from .parsing_text import PARSER_VERSION, parse_qa_pairs, without_reasoning
from .records import Answered, Batch, Kind, Problem, QAPair, Quarantined
from .steps import STEP

Parser = Callable[[str], list[QAPair]]
"""Takes a completion's text as it came; may raise, which costs that row only."""


@dataclass(frozen=True)
class ParseSettings:
    """How completions are parsed.

    Attributes:
        name: the parser's name; it stands for what the parser does.
        parser: text -> QA pairs.
        require_pairs: a reply without a pair is no answer.
    """

    name: str
    parser: Parser
    require_pairs: bool = True

    @property
    def label(self) -> str:
        """Names everything that decides what is parsed from a text, fit for a file name."""
        if self.parser is parse_qa_pairs:
            label = f"{self.name}-v{PARSER_VERSION}"
        else:
            digest = hashlib.sha256(self.name.encode("utf-8", "replace")).hexdigest()[:8]
            label = f"{re.sub(r'[^A-Za-z0-9_]+', '-', self.name)[:60]}-{digest}"
        return label if self.require_pairs else f"{label}-raw"


@dataclass(frozen=True)
class ParsedBatch:
    """What became of a batch's rows.

    Attributes:
        rows: in the order they were asked.
        time: when their completions were stored, in seconds since 1970 (UTC).
    """

    rows: Sequence[Answered | Quarantined]
    time: float


@task(name="parse", task_run_name="parse-{batch}", **STEP)
def parse_batch(
    batch: Batch,  # noqa: ARG001 - names the task run
    result: Mapping[str, Any],
    settings: ParseSettings,
) -> ParsedBatch:
    """Turn what `generate_batch` returned into finished rows and quarantined ones, in order."""
    return parse_completions(Completions.load(result), settings)


def parse_completions(completions: Completions, settings: ParseSettings) -> ParsedBatch:
    """Turn the replies to a batch into finished rows and quarantined ones, in order."""
    rows = [parse_reply(reply, settings) for reply in completions.replies]
    return ParsedBatch(rows, completions.time)


def parse_reply(stored: StoredReply, settings: ParseSettings) -> Answered | Quarantined:
    """Turn the reply to one row into a finished row or a quarantined one."""
    reply = stored.reply
    if isinstance(reply, Problem):
        problem, text, attempts = reply, None, reply.attempts
    else:
        judged = judge_completion(reply, settings.parser, settings.require_pairs)
        if not isinstance(judged, Problem):
            return Answered(
                key=stored.key,
                text=reply.text,
                pairs=judged,
                model=reply.model,
                prompt_tokens=reply.prompt_tokens,
                completion_tokens=reply.completion_tokens,
                latency=round(reply.latency, 4),
            )
        problem, text, attempts = judged, reply.text, reply.attempts
    return Quarantined(
        key=stored.key,
        row=stored.row,
        where=stored.where,
        kind=problem.kind,
        message=problem.message,
        status=problem.status,
        attempts=attempts,
        text=text,
        attempt=stored.attempt,
    )


def judge_completion(
    completion: Completion, parser: Parser, require_pairs: bool
) -> tuple[QAPair, ...] | Problem:
    """The pairs of a completion, or why it is no answer.

    Args:
        completion: the reply.
        parser: a parser of the user's may raise; this is then this row's problem.
        require_pairs: whether a reply without pairs is a problem (UNPARSED).
    """
    problem = _unfinished(completion)
    if problem is not None:
        return problem
    name = getattr(parser, "__name__", type(parser).__name__)
    try:
        parsed = [
            QAPair(pair.question.strip(), pair.answer.strip()) for pair in parser(completion.text)
        ]
    except Exception as error:
        # The parser may be the user's own code, met with text nobody foresaw.
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        return Problem(
            Kind.UNPARSED,
            f"parser {name} raised {reason}; look at the raw text and correct the parser",
        )
    pairs = tuple(pair for pair in parsed if pair.question and pair.answer)
    if require_pairs and not pairs:
        return Problem(
            Kind.UNPARSED,
            f"parser {name} found no question-answer pair in {len(completion.text)} characters; "
            "look at the raw text, then make the prompt state the format, or ask for JSON",
        )
    return pairs


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
    if not without_reasoning(completion.text).strip():
        found = "only reasoning" if completion.text.strip() else "nothing"
        return Problem(
            Kind.EMPTY,
            f"the model wrote {found} ({completion.completion_tokens} tokens); "
            "check the prompt and the model's chat template",
        )
    return None
