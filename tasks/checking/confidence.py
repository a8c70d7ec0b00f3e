"""The checks `confidence` and `fluency`: how probable the model finds an answer, and a question.

Each is measured at the least probable token. The model reads image and text, and is asked what
probability each token of the text had: nothing is generated but one token, which is dropped. That
costs the reading of the whole prompt, since a server cannot take these probabilities from its
prefix cache.
"""

from collections.abc import Sequence

import orjson
import pyarrow as pa

from ..parsing.parse import ParseSettings
from ..parsing.parsers import Parsed
from ..prompting.file_style import user_message
from ..prompting.style import PromptInput, Rendered, Style
from ..records import Answered, Asked, FinishedRow, QAPair, ReplyForm
from .check import AskedCheck, Values
from .consistency import asked_pair, question_text

NAME, QUESTION = "confidence", "fluency"

_SCORED = {
    "temperature": 0.0,
    "max_tokens": 1,
    "min_tokens": 0,
    "prompt_logprobs": 0,
    "add_generation_prompt": False,
    "continue_final_message": True,
}
"""Request options: score the last message, and write no more than has to be."""

_LETTER = "Answer with the letter of the right option."
_SHORT = "Answer in one to three words."
_SHORT_WORDS = 3
_SHORT_CHARACTERS = 40


_ASK = "Write one question about the image, without its answer."
_ONLY = "Reply with the question only."
"""The words of the built-in style `single` for questions that are answered separately."""


def check() -> AskedCheck:
    """The check of the answer."""
    return _check(NAME, _answered)


def fluency_check() -> AskedCheck:
    """The check of the question, as one that the model is about to ask about the image.

    It finds questions that are garbled, as a high temperature makes them, which are often answered
    as if they were none.
    """
    return _check(QUESTION, _questioned)


def _check(name: str, style: Style) -> AskedCheck:
    """A check with the lowest log-probability (natural, at most 0) of a token; and that token."""
    return AskedCheck(
        name=name,
        columns=(pa.field(name, pa.float64()), pa.field(f"{name}_token", pa.string())),
        style=style,
        parsing=ParseSettings(name, _parse, version=1),
        verdict=_verdict,
        sampling=_SCORED,
    )


def _answered(prompt_input: PromptInput) -> Rendered:
    """The question, and the answer as what the model is about to have said.

    The question asks for an answer of that form. Otherwise "Red" would be improbable where the
    model would say "The bus is red.", and right as it is.
    """
    pair = asked_pair(prompt_input)
    text, answer = question_text(pair), pair.answer
    if pair.options and pair.correct:
        text, answer = f"{text}\n{_LETTER}", pair.correct
    elif len(answer.split()) <= _SHORT_WORDS and len(answer) <= _SHORT_CHARACTERS:
        text = f"{text}\n{_SHORT}"
    return _scored(prompt_input, text, answer, NAME)


def _questioned(prompt_input: PromptInput) -> Rendered:
    pair = asked_pair(prompt_input)
    language = f"Write in {pair.language}." if pair.language else ""
    text = "\n".join(filter(None, [_ASK, language, _ONLY]))
    return _scored(prompt_input, text, pair.question, QUESTION)


def _scored(prompt_input: PromptInput, text: str, reply: str, name: str) -> Rendered:
    request = user_message(text, range(prompt_input.image_count))
    asked = Asked(question=text, style=f"{name}@1", form=ReplyForm.ANSWER)
    return Rendered((request, {"role": "assistant", "content": reply}), asked)


def _parse(text: str, _asked: Asked) -> Parsed:
    """What the client makes of the reply to a request that scores a text."""
    return Parsed(orjson.loads(text))


def _verdict(_pair: QAPair, outcomes: Sequence[FinishedRow]) -> Values:
    for outcome in outcomes:
        match outcome:
            case Answered(parsed={"token": str() as token, "logprob": float() as logprob}):
                return (logprob, token) if logprob <= 0 else (None, None)
    return None, None
