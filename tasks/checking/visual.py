"""The checks `blind` and `swapped`: the question without its image, and with another one.

What a model answers without looking teaches nothing about images. A question that another image
answers alike may be of that kind; or both images show the same, so that this is no more than a
sign.
"""

from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa

from ...serving.printable import printable
from ..parsing.choices import LETTERS, choice_in
from ..parsing.parse import ANSWER
from ..prompting.file_style import user_message
from ..prompting.keys import canonical_digest
from ..prompting.style import PromptInput, Rendered, Style
from ..records import Asked, FinishedRow, Kind, QAPair, ReplyForm, RowError
from .agreement import agree
from .check import AskedCheck, Values
from .consistency import asked_pair, question_text, reply_of
from .declining import UNANSWERABLE, is_denial, is_refusal

BLIND, SWAPPED = "blind", "swapped"

NONE_OF_THE_ABOVE = "None of the above"

_ROTATIONS = 2
"""How often options are asked blind. Also a guess is less often right twice."""

_MAX_ANSWER = 1000
"""Characters of an answer that are kept."""


def blind_check(*, none_option: bool = False, seed: int = 0) -> AskedCheck:
    """Whether the question is answered as in the pair without its image.

    Questions with options are asked twice, rotated differently: no favourite letter is right both
    times. Others are sent once, since both requests are the same.

    Args:
        none_option: whether "None of the above" is added to options.
        seed: of the rotation.
    """
    return AskedCheck(
        name=BLIND,
        columns=(pa.field("blind_answerable", pa.bool_()), pa.field("blind_answer", pa.string())),
        style=_style(BLIND, seed, none_option=none_option),
        parsing=ANSWER,
        verdict=_verdict,
        times=_ROTATIONS,
        sends_image=False,
    )


def swapped_check(*, none_option: bool = False, seed: int = 0) -> AskedCheck:
    """Whether the question is answered as in the pair with the images of another row.

    Args:
        none_option: whether "None of the above" is added to options.
        seed: of the rotation of options.
    """
    return AskedCheck(
        name=SWAPPED,
        columns=(pa.field("swapped_same", pa.bool_()), pa.field("swapped_answer", pa.string())),
        style=_style(SWAPPED, seed, none_option=none_option),
        parsing=ANSWER,
        verdict=_verdict,
        other_image=True,
    )


def _style(name: str, seed: int, *, none_option: bool) -> Style:
    def style(prompt_input: PromptInput) -> Rendered:
        pair, count = asked_pair(prompt_input), prompt_input.image_count
        if name == SWAPPED and not count:
            raise RowError(Kind.NO_IMAGE, "the row whose image should be shown has none")
        options = _rotated(pair.options, _shift(prompt_input, pair, seed))
        if none_option and 0 < len(options) < len(LETTERS):
            options = (*options, NONE_OF_THE_ABOVE)
        text = _text(pair, options)
        asked = Asked(question=text, style=f"{name}@1", form=ReplyForm.ANSWER)
        return Rendered((user_message(text, range(count if name == SWAPPED else 0)),), asked)

    return style


def _shift(prompt_input: PromptInput, pair: QAPair, seed: int) -> int:
    """By how many places options are rotated: at first not by 0, and by another number each time.

    It depends on nothing but the pair, so that a blind question is the same for all images.
    """
    count = len(pair.options)
    if count < 2:
        return 0
    drawn = canonical_digest([pair.question, pair.options, seed])
    first = 1 + int.from_bytes(drawn[:8], "big") % (count - 1)
    return (first + prompt_input.sample) % count


def _rotated(options: Sequence[str], shift: int) -> tuple[str, ...]:
    return (*options[shift:], *options[:shift])


def _text(pair: QAPair, options: tuple[str, ...]) -> str:
    return question_text(replace(pair, options=options))


def _verdict(pair: QAPair, outcomes: Sequence[FinishedRow]) -> Values:
    """Whether all answers agree with the pair's; no result if a request failed and none differs.

    With it, the first answer that differs, else the first one.
    """
    judged = [_judged(pair, outcome) for outcome in outcomes]
    answered = [found for found in judged if found is not None]
    if not answered:
        return None, None
    for same, answer in answered:
        if not same:
            return False, answer
    return (True if len(answered) == len(judged) else None), answered[0][1]


def _judged(pair: QAPair, outcome: FinishedRow) -> tuple[bool, str] | None:
    """Whether a reply agrees with the pair's answer, and what it says; None if there is none."""
    reply = reply_of(outcome)
    if reply is None:
        return None
    if is_refusal(reply.answer) or (pair.type == UNANSWERABLE and is_denial(reply.answer)):
        return False, _shown(reply.answer)  # without the image, to deny it says nothing
    options = _asked_options(pair, reply.question) if pair.options else ()
    if options is None:
        return None
    letters = [mark for mark, text in zip(LETTERS, options, strict=False) if text == pair.answer]
    same = agree(
        pair.answer,
        reply.answer,
        options=options,
        correct=next(iter(letters), ""),
        question=pair.question,
    )
    choice = choice_in(reply.answer, options)
    return same, _shown(options[choice.index] if choice else reply.answer)


def _asked_options(pair: QAPair, question: str) -> tuple[str, ...] | None:
    """The options in the order in which they were asked; None if it is another question."""
    for shift in range(len(pair.options)):
        rotated = _rotated(pair.options, shift)
        for options in (rotated, (*rotated, NONE_OF_THE_ABOVE)):
            if _text(pair, options).split() == question.split():
                return options
    return None


def _shown(answer: str) -> str:
    return printable(answer, _MAX_ANSWER)
