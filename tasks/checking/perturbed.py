"""The check `perturbed`: the question with slightly changed images, which change no right answer.

It finds a part of what the model gets wrong every time: an answer that hangs on details that do not
matter. A model that such changes confuse loses right pairs by it: see which ones it bears.
"""

from collections.abc import Sequence

import pyarrow as pa

from ...serving.printable import printable
from ..errors import ImageQAError
from ..images.changes import CHANGES
from ..parsing.parse import ANSWER
from ..prompting.style import PromptInput, Rendered, Style
from ..records import Asked, FinishedRow, Kind, QAPair, ReplyForm, RowError
from .check import AskedCheck, Values
from .consistency import agrees, asked_pair, question_text
from .visual import reply_of

NAME = "perturbed"

COLUMNS = (pa.field(NAME, pa.float64()), pa.field(f"{NAME}_answers", pa.string()))
"""The share of the changed images, 0 to 1, with which the answer agrees with the pair's; and the
answers, a line each."""

DEFAULT = tuple(CHANGES)
"""All of them: each is a request."""

_MAX_ANSWER = 500
"""Characters of each answer that are kept."""


def check(changes: Sequence[str] = DEFAULT) -> AskedCheck:
    """The check.

    Args:
        changes: of the image, a request for each; see `images.changes.CHANGES`.

    Raises:
        ImageQAError: there is no such change, or none is given.
    """
    if not changes or (unknown := set(changes) - CHANGES.keys()):
        wrong = f"there is no change {printable(min(unknown), 60)!r}" if changes else "no change"
        raise ImageQAError(f"check {NAME}: {wrong}; give some of {', '.join(CHANGES)}")
    return AskedCheck(
        name=NAME,
        columns=COLUMNS,
        style=_style(tuple(changes)),
        parsing=ANSWER,
        verdict=_verdict,
        times=len(changes),
    )


def _style(changes: Sequence[str]) -> Style:
    def style(prompt_input: PromptInput) -> Rendered:
        if not prompt_input.image_count:
            raise RowError(Kind.NO_IMAGE, "the row has no image that could be changed")
        text, change = question_text(asked_pair(prompt_input)), changes[prompt_input.sample]
        images = range(prompt_input.image_count)
        parts = [{"type": "image", "image": image, "change": change} for image in images]
        message = {"role": "user", "content": [*parts, {"type": "text", "text": text}]}
        return Rendered((message,), Asked(text, f"{NAME}@1", ReplyForm.ANSWER))

    return style


def _verdict(pair: QAPair, outcomes: Sequence[FinishedRow]) -> Values:
    """The share that agrees; no result if a request failed."""
    replies = [reply.answer for outcome in outcomes if (reply := reply_of(outcome))]
    shown = "\n".join(printable(reply, _MAX_ANSWER) for reply in replies) or None
    if not replies or len(replies) < len(outcomes):
        return None, shown
    same = [agrees(pair, reply) for reply in replies]
    return sum(same) / len(same), shown
