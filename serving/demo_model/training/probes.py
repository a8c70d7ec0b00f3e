"""The demo model's evaluation: one probe for each kind of prompt.

The default prompts, the plain request for several pairs and the questions are worded as in
training; all other prompts are new to the model.
"""

import base64
import io
import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image

from ...types import ChatRequest, Message
from ..judge import Verdict, judge_pair
from ..questions import Question, QuestionKind
from ..scenes import DEMO_QUESTION, Scene, draw_scene
from ..truth import answer_to, detailed_answer, random_question, short_answer
from .lessons import BASIC_KINDS, CANNOT_SEE, CANNOT_TELL

GENERATOR = (
    "You are a image question-answer generator. "
    "Your task is to generate a question-answer pair for the given image content."
)
ASSISTANT = "You are a helpful assistant."
JSON_GENERATOR = (
    "You are an annotator of images. For each image, write one question and answer it. "
    "Give a JSON object with the keys question and answer, and nothing else."
)
ODD_SYSTEMS = (
    "You are Maya, a tireless annotator hired by the Northern Library to prepare material "
    "for its blind readers. Every day, 250 pictures arrive from 12 countries, and each of "
    "them deserves your full attention. First study the whole picture from the top edge to "
    "the bottom edge. Then decide which detail a curious visitor would most like to know "
    "about, and phrase one question about it that can be settled by looking, not by "
    "guessing. Follow it with the reply you would give that visitor. Never mention the "
    "camera, the file or yourself, never apologise, and never write more than 3 sentences. "
    "Colleagues will review a sample of your work each Friday, so consistency matters more "
    "than brilliance. Thank you for helping us!",
    "ATTENTION!!! THE FOLLOWING RULES ARE BINDING: (1) OBSERVE THE PHOTOGRAPH. (2) COMPOSE "
    "A QUERY WITH ITS SOLUTION. (3) STAY POLITE.",
    "你是一名经验丰富的数据标注员。请认真观察图像中的每一个物体。然后提出一个有意义的问题并给出准确的答案。",
    "zxq blorf!! wobble-9 ¿qué tal? ~~~ <<>> make qa from img plz, thx :-) 00101101 ßøæ",
    "# Role\nDataset builder\n\n## Guidelines\n- one item for each photograph\n- plain, "
    "neutral tone\n- check facts twice before writing\n\n## Background\nYour text ends up "
    "in a corpus of 40000 items on which a small network is tuned; sloppy items were found "
    "in 7 of the last 9 corpora.",
    "Tu es un générateur de questions. Regarde l'image et pose une question avec sa réponse.",
    "def main(): pass  # TODO: describe(image) -> Question, Answer\nimport os; print(os.sep)",
)
SCHEMA = {
    "type": "object",
    "properties": {"question": {"type": "string"}, "answer": {"type": "string"}},
    "required": ["question", "answer"],
    "additionalProperties": False,
}
JSON_FORMAT = {"type": "json_schema", "json_schema": {"name": "pair", "schema": SCHEMA}}
# Typical sampling options of a user.
SAMPLED = {"temperature": 0.7, "top_p": 0.9, "top_k": 40}
GREEDY = {"temperature": 0.0}

_PAIR = re.compile(r"\*\*Question:\*\* (.+)\n\*\*Answer:\*\* (.+)")
_SIZES = ((192, 192), (256, 256), (128, 128), (160, 120), (640, 480), (96, 96))


@dataclass(frozen=True, slots=True)
class Mark:
    """The evaluation of one reply.

    Attributes:
        form: whether it has exactly the requested form.
        right: fraction of its pairs or answers that is correct, 0 to 1.
    """

    form: bool
    right: float


@dataclass(frozen=True, slots=True)
class Trial:
    """A request with the judge of its reply, and the kind of its question if it asks one."""

    request: ChatRequest
    judge: Callable[[str], Mark]
    kind: QuestionKind | None = None


@dataclass(frozen=True, slots=True)
class Probe:
    """A kind of prompt: its name in the table, and a function that makes trials.

    That function takes a scene, its image as a data URI and a source of randomness.
    """

    name: str
    make: Callable[[Scene, str, random.Random], Trial]


def scene_image(scene: Scene, index: int, rng: random.Random) -> str:
    """The scene as a data URI, in one of several sizes and formats."""
    width, height = _SIZES[index % len(_SIZES)]
    kind = "JPEG" if width > 256 else "PNG"
    return _data_uri(draw_scene(scene, width, height, rng), kind)


def _data_uri(image: Image.Image, kind: str) -> str:
    encoded = io.BytesIO()
    image.save(encoded, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(encoded.getvalue()).decode()}"


def _request(
    system: str, user: str, image: str, options: dict[str, Any], *, text_first: bool = False
) -> ChatRequest:
    parts: list[dict[str, Any]] = [{"type": "text", "text": user}]
    if image:
        parts.insert(int(text_first), {"type": "image_url", "image_url": {"url": image}})
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": parts})
    return ChatRequest(messages, {"max_tokens": 192, **options})


def _judge_one(scene: Scene, text: str) -> Mark:
    match = _PAIR.fullmatch(text)
    return _mark(scene, match.groups() if match else None)


def _judge_json(scene: Scene, text: str) -> Mark:
    try:
        pair = json.loads(text)
    except ValueError:
        return Mark(form=False, right=0)
    if not isinstance(pair, dict) or set(pair) != {"question", "answer"}:
        return Mark(form=False, right=0)
    return _mark(scene, (str(pair["question"]), str(pair["answer"])))


def _mark(scene: Scene, pair: tuple[str | Any, ...] | None) -> Mark:
    if pair is None:
        return Mark(form=False, right=0)
    return Mark(form=True, right=judge_pair(scene, *pair) is Verdict.RIGHT)


def _judge_many(scene: Scene, text: str, count: int) -> Mark:
    blocks = text.split("\n\n")
    pairs = [
        match.groups()
        for number, block in enumerate(blocks, 1)
        if block.startswith(f"{number}. ") and (match := _PAIR.fullmatch(block[3:]))
    ]
    form = len(blocks) == len(pairs) == count == len({question for question, _ in pairs})
    right = sum(judge_pair(scene, *pair) is Verdict.RIGHT for pair in pairs)
    return Mark(form, right / max(count, len(blocks)))


def pair_probe(
    name: str,
    options: dict[str, Any],
    systems: tuple[str, ...] = (GENERATOR,),
    users: tuple[str, ...] = (DEMO_QUESTION,),
    *,
    text_first: bool = False,
) -> Probe:
    """A probe that asks for one pair in the bold form."""

    def make(scene: Scene, image: str, rng: random.Random) -> Trial:
        system, user = rng.choice(systems), rng.choice(users)
        request = _request(system, user, image, options, text_first=text_first)
        return Trial(request, lambda text: _judge_one(scene, text))

    return Probe(name, make)


def json_probe(
    name: str, options: dict[str, Any], systems: tuple[str, ...], user: str = DEMO_QUESTION
) -> Probe:
    """A probe that asks for one pair as JSON."""

    def make(scene: Scene, image: str, rng: random.Random) -> Trial:
        request = _request(rng.choice(systems), user, image, options)
        return Trial(request, lambda text: _judge_json(scene, text))

    return Probe(name, make)


def many_probe(name: str, systems: tuple[str, ...], user: str) -> Probe:
    """A probe that asks for two to four pairs; `{n}` is replaced by a digit or a word."""

    def make(scene: Scene, image: str, rng: random.Random) -> Trial:
        count = rng.randint(2, 4)
        number = rng.choice((str(count), ("two", "three", "four")[count - 2]))
        system = rng.choice(systems).replace("{n}", number)
        request = _request(system, user.replace("{n}", number), image, SAMPLED)
        return Trial(request, lambda text: _judge_many(scene, text, count))

    return Probe(name, make)


def answer_probe(
    name: str,
    systems: tuple[str, ...] = ("",),
    kinds: tuple[QuestionKind, ...] = BASIC_KINDS,
    *,
    text_first: bool = False,
) -> Probe:
    """A probe that asks a question, one in eight about something that is not in the image."""

    def make(scene: Scene, image: str, rng: random.Random) -> Trial:
        question = random_question(scene, rng, kinds, absent=0.12)
        user, truth = rng.choice(question.phrasings()), answer_to(scene, question)
        request = _request(rng.choice(systems), user, image, GREEDY, text_first=text_first)
        return Trial(request, lambda text: Mark(True, text == truth), question.kind)

    return Probe(name, make)


def length_probe(name: str, request: str, answer: Callable[[Scene, Question], str | None]) -> Probe:
    """A probe that asks for an answer of a certain length."""

    def make(scene: Scene, image: str, rng: random.Random) -> Trial:
        truth = None
        while truth is None:
            question = random_question(scene, rng, tuple(QuestionKind), absent=0.12)
            truth = answer(scene, question)
        user = f"{rng.choice(question.phrasings())}\n{request}"
        return Trial(
            _request("", user, image, GREEDY), lambda text: Mark(True, text == truth), question.kind
        )

    return Probe(name, make)


def blind_probe(name: str, system: str, user: str | None, reply: str) -> Probe:
    """A probe without an image; if `user` is None, it asks a question about a scene."""

    def make(scene: Scene, image: str, rng: random.Random) -> Trial:  # noqa: ARG001
        question = random_question(scene, rng, BASIC_KINDS)
        request = _request(system, user or rng.choice(question.phrasings()), "", GREEDY)
        return Trial(request, lambda text: Mark(text == reply, text == reply))

    return Probe(name, make)


IMAGE_FIRST = answer_probe("answer, image first")
TEXT_FIRST = answer_probe("answer, text first", text_first=True)
OTHER_KINDS = answer_probe(
    "answer, other questions", kinds=tuple(kind for kind in QuestionKind if kind not in BASIC_KINDS)
)
PROBES = (
    pair_probe("one pair, greedy", GREEDY),
    pair_probe("one pair, temperature 0.7, top-p 0.9, top-k 40", SAMPLED),
    pair_probe("one pair, temperature 0.7", {"temperature": 0.7}),
    pair_probe("one pair, temperature 1", {"temperature": 1.0}),
    pair_probe("one pair, text first", SAMPLED, text_first=True),
    pair_probe(
        "one pair, user's wording new",
        SAMPLED,
        users=(
            "Come up with a question about this photo and reply to it.",
            "make me a qa pair from the image!",
            "QA pair for this picture, please. Keep it simple.",
        ),
    ),
    pair_probe("one pair, odd or long system prompt", SAMPLED, systems=ODD_SYSTEMS),
    many_probe(
        "2 to 4 pairs, asked by the user", (GENERATOR,), "Generate {n} question-answer pairs."
    ),
    many_probe(
        "2 to 4 pairs, asked by the system prompt",
        ("You make quizzes about pictures. Write {n} question-answer pairs for every picture.",),
        DEMO_QUESTION,
    ),
    many_probe(
        "2 to 4 pairs, odd or long system prompt",
        ODD_SYSTEMS,
        "Generate {n} question-answer pairs.",
    ),
    json_probe(
        "JSON with a schema", {**SAMPLED, "response_format": JSON_FORMAT}, (JSON_GENERATOR,)
    ),
    json_probe("JSON without a schema", SAMPLED, (JSON_GENERATOR,)),
    json_probe(
        "JSON, odd or long system prompt",
        SAMPLED,
        ODD_SYSTEMS,
        "Construct a QA pair for the image and return it as JSON.",
    ),
    json_probe(
        "a schema the prompt does not mention",
        {**SAMPLED, "response_format": JSON_FORMAT},
        (GENERATOR,),
    ),
    IMAGE_FIRST,
    TEXT_FIRST,
    answer_probe("answer, default system prompt", (ASSISTANT,)),
    answer_probe("answer, odd or long system prompt", ODD_SYSTEMS),
    OTHER_KINDS,
    length_probe("answer in one to three words", "Answer in one to three words.", short_answer),
    length_probe("answer in several sentences", "Answer in several sentences.", detailed_answer),
    blind_probe("question without an image", "", None, CANNOT_TELL),
    blind_probe("pair without an image", GENERATOR, DEMO_QUESTION, CANNOT_SEE),
)
