"""The check `perturbed`: the question with slightly changed images, which change no right answer.

It finds a part of what the model gets wrong every time: an answer that hangs on details that do not
matter. A model that such changes confuse loses right pairs by it.
"""

import pyarrow as pa

from ..images.changes import CHANGES
from ..parsing.parse import ANSWER
from ..prompting.style import PromptInput, Rendered
from ..records import Asked, Kind, ReplyForm, RowError
from .check import AskedCheck
from .consistency import asked_pair, question_text, share_agreeing

NAME = "perturbed"

COLUMNS = (pa.field(NAME, pa.float64()), pa.field(f"{NAME}_answers", pa.string()))
"""The share of the changed images, 0 to 1, with which the answer agrees with the pair's; and the
answers, a line each."""

_CHANGES = tuple(CHANGES)
"""Each is a request."""


def check() -> AskedCheck:
    """The check."""
    return AskedCheck(
        name=NAME,
        columns=COLUMNS,
        style=_style,
        parsing=ANSWER,
        verdict=share_agreeing,
        times=len(_CHANGES),
    )


def _style(prompt_input: PromptInput) -> Rendered:
    if not prompt_input.image_count:
        raise RowError(Kind.NO_IMAGE, "the row has no image that could be changed")
    text, change = question_text(asked_pair(prompt_input)), _CHANGES[prompt_input.sample]
    images = range(prompt_input.image_count)
    parts = [{"type": "image", "image": image, "change": change} for image in images]
    message = {"role": "user", "content": [*parts, {"type": "text", "text": text}]}
    return Rendered((message,), Asked(text, f"{NAME}@1", ReplyForm.ANSWER))
