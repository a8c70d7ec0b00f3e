"""The check `consistency`: the model answers the question again, and should say the same.

It finds errors that are random, such as those of sampling at a high temperature. What the model
gets wrong every time, it does not find.
"""

from collections.abc import Sequence

import pyarrow as pa

from ...serving.printable import printable
from ..parsing.parse import ANSWER
from ..prompting.file_style import user_message
from ..prompting.style import PromptInput, Rendered
from ..records import Answered, Asked, FinishedRow, Kind, QAPair, ReplyForm, RowError
from .agreement import agree
from .check import AskedCheck, Values
from .declining import UNANSWERABLE, is_denial

NAME = "consistency"

COLUMNS = (pa.field(NAME, pa.float64()), pa.field(f"{NAME}_answer", pa.string()))
"""The share of the answers that agree with the pair's, 0 to 1; and these answers, a line each."""

_STYLE = f"{NAME}@1"

_MAX_ANSWER = 1000
"""Characters of each answer that are kept."""

_SAMPLED = 0.7
"""Temperature if a question is asked several times: greedy answers would all be the same."""


def check(times: int = 1) -> AskedCheck:
    """The check.

    Args:
        times: how often each question is asked. Once, it is asked greedily.
    """
    return AskedCheck(
        name=NAME,
        columns=COLUMNS,
        style=_asked_again,
        parsing=ANSWER,
        verdict=share_agreeing,
        sampling={"temperature": 0.0 if times == 1 else _SAMPLED},
        times=times,
    )


def asked_pair(prompt_input: PromptInput) -> QAPair:
    """The pair that a row of a check is about.

    Raises:
        RowError: it is the row of no check.
    """
    if prompt_input.pair is None:
        raise RowError(Kind.BAD_ROW, "the row of a check without a pair")
    return prompt_input.pair


def question_text(pair: QAPair) -> str:
    """A question as it is asked on its own, with its options and in its language."""
    lines = [pair.question]
    lines += [f"{chr(ord('A') + place)}. {text}" for place, text in enumerate(pair.options)]
    if pair.language:
        lines.append(f"Answer in {pair.language}.")
    return "\n".join(lines)


def _asked_again(prompt_input: PromptInput) -> Rendered:
    text = question_text(asked_pair(prompt_input))
    asked = Asked(question=text, style=_STYLE, form=ReplyForm.ANSWER)
    return Rendered((user_message(text, range(prompt_input.image_count)),), asked)


def share_agreeing(pair: QAPair, outcomes: Sequence[FinishedRow]) -> Values:
    """The share that agrees, no result if a request failed; and the answers, a line each."""
    answers = [answer_of(outcome) for outcome in outcomes]
    given = [answer for answer in answers if answer]
    lines = "\n".join(printable(answer, _MAX_ANSWER) for answer in given) or None
    if not given or len(given) < len(answers):
        return None, lines
    same = [agrees(pair, answer) for answer in given]
    return sum(same) / len(same), lines


def agrees(pair: QAPair, answer: str) -> bool:
    """Whether an answer to the question of a pair says the same as the pair's own.

    Of an unanswerable one, each that denies what is asked does.
    """
    if pair.type == UNANSWERABLE and is_denial(answer):
        return True
    return agree(
        pair.answer, answer, options=pair.options, correct=pair.correct, question=pair.question
    )


def answer_of(outcome: FinishedRow) -> str:
    """The answer in the reply to a question; empty if there is none."""
    reply = reply_of(outcome)
    return reply.answer if reply else ""


def reply_of(outcome: FinishedRow) -> QAPair | None:
    """What was asked and answered; None if there is no answer."""
    if not isinstance(outcome, Answered):
        return None
    try:
        first = next(iter(outcome.pairs), None)
    except (TypeError, ValueError):
        return None  # found in the output, but not what this program writes
    return first if first and first.answer else None
