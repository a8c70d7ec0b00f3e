"""The language model's training data: prompts with several correct replies each, as text.

A lesson is a prompt about a scene with many branches, each of which is an independent continuation,
so that the prompt is processed only once.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from ..questions import Question, QuestionKind
from ..scenes import COLOURS, KINDS, Scene, Shape
from ..truth import answer_to, detailed_answer, random_question, short_answer
from .contents import content_of
from .forms import FORM_WEIGHT, LETTERS, Branch, Content, ReplyForm, Span, reply_format, write_reply
from .give_aways import blind_question
from .prompts import Form, instruct, surround
from .style_prompts import style_prompt, style_systems
from .verdicts import judged_pair, verdict_request

END = "<end_of_utterance>"
SYSTEM, USER, ASSISTANT = "<|system|>", "<|user|>", "<|assistant|>"
IMAGE = "<image>"

CANNOT_TELL = "I cannot tell without the image."
CANNOT_SEE = "I cannot see an image."

BASIC_KINDS = (
    QuestionKind.COLOUR,
    QuestionKind.SIZE,
    QuestionKind.WHERE,
    QuestionKind.COUNT,
    QuestionKind.SHAPE,
    QuestionKind.COLOUR_COUNT,
    QuestionKind.CHECK,
)
_BRANCHES = 16
_HARD_KINDS = (
    QuestionKind.COUNT,
    QuestionKind.SHAPE,
    QuestionKind.COLOUR_COUNT,
    QuestionKind.CHECK,
)
_ANSWERED_KINDS = (*QuestionKind, *BASIC_KINDS, *_HARD_KINDS)
_IN_SHORT, _IN_DETAIL = "Answer in one to three words.", "Answer in several sentences."
_CORRECTED = 0.06  # share of prompts after which an unusable reply was sent back


@dataclass(frozen=True, slots=True)
class Lesson:
    """The common prompt, and the branches that continue it; each branch ends the turn."""

    prompt: str
    branches: tuple[Branch, ...]


def make_lesson(scene: Scene, rng: random.Random, progress: float) -> Lesson:
    """Draw a random lesson.

    Args:
        scene: the content of the image.
        rng: source of randomness.
        progress: progress of the training, 0 to 1. It begins with plain descriptions, then answers
            are added, then everything else.
    """
    if rng.random() < (0.6 if progress < 0.15 else 0.05):
        return _describe(scene, rng)
    draw = rng.random() if progress > 0.3 else rng.uniform(0.77, 1)
    if draw < 0.46:
        return _styled(scene, rng)
    if draw < 0.51:
        return _generate(scene, rng, Form.PAIR)
    if draw < 0.54:
        return _generate(scene, rng, Form.JSON)
    if draw < 0.6:
        return _generate(scene, rng, Form.MANY)
    if draw < 0.77:
        return _judge(scene, rng)
    if draw < 0.95:
        return _answer(scene, rng)
    return _without_image(scene, rng)


def _describe(scene: Scene, rng: random.Random) -> Lesson:
    """Look up facts without any grammar: a keyword is followed by the facts that answers need."""
    branches = []
    for _ in range(_BRANCHES):
        key, facts = rng.choice((_by_kind, _by_colour, _by_place, _by_both))(scene, rng)
        branches.append((Span(f" {key}", 0), Span(f" {facts}{END}", 1)))
    return Lesson(f"{USER}{IMAGE}Describe.{END}{ASSISTANT}", tuple(branches))


def _by_kind(scene: Scene, rng: random.Random) -> tuple[str, str]:
    kind = rng.choice(KINDS)
    named = [shape for shape in scene if shape.kind == kind]
    return kind, _facts(named)


def _by_colour(scene: Scene, rng: random.Random) -> tuple[str, str]:
    colour = rng.choice((rng.choice(scene).colour, rng.choice(list(COLOURS))))
    named = [shape for shape in scene if shape.colour == colour]
    return colour, _facts(named)


def _by_place(scene: Scene, rng: random.Random) -> tuple[str, str]:
    shape = rng.choice(scene)
    return shape.place, _facts([shape])


def _by_both(scene: Scene, rng: random.Random) -> tuple[str, str]:
    shape = rng.choice(scene)
    colour = rng.choice((shape.colour, rng.choice(scene).colour, rng.choice(list(COLOURS))))
    return f"{shape.kind} {colour}", "yes" if shape.colour == colour else "no"


def _facts(named: list[Shape]) -> str:
    if len(named) != 1:
        return ("none", "one", "two", "three", "four")[len(named)]
    shape = named[0]
    return f"one {shape.kind} {shape.colour} {shape.size} {shape.place}"


def _generate(scene: Scene, rng: random.Random, form: Form) -> Lesson:
    count = rng.randint(2, 4) if form is Form.MANY else 1
    instruction = instruct(form, rng, count)
    json = form is Form.JSON
    user = instruction.user
    if not json and rng.random() < 0.12:
        json = True
        user += f"\n{reply_format(ReplyForm.PAIRS, count, json=True)}"
    prompt = f"{_system(instruction.system)}{USER}{IMAGE}{_gap(rng)}{user}{END}"
    style = "several" if form is Form.MANY else "single"
    if not json and rng.random() < _CORRECTED:
        content = content_of(style, "", count, scene, rng, letter_given=False)
        bad = write_reply(ReplyForm.PAIRS, content, json=False)
        prompt += _sent_back("".join(span.text for span in bad), rng, _AGAIN_WITH_FORM)
    branches = []
    for _ in range(_BRANCHES if count == 1 else 4):
        content = content_of(style, "", count, scene, rng, letter_given=False)
        reply = write_reply(ReplyForm.PAIRS, content, json=json)
        if not json and rng.random() < 0.06:
            # A server that enforces a JSON schema forces the form, whatever the prompt says.
            start, *rest = write_reply(ReplyForm.PAIRS, content, json=True)
            reply = (Span(start.text, 0), *rest)
        branches.append(_turn(reply))
    return Lesson(prompt, tuple(branches))


def _styled(scene: Scene, rng: random.Random) -> Lesson:
    asked = style_prompt(rng)
    system = surround(asked.system, rng) if rng.random() < 0.08 else asked.system
    prompt = f"{_system(system)}{USER}{IMAGE}{_gap(rng)}{asked.user}{END}"

    def content() -> Content:
        letter = asked.drawn if asked.letter_given else rng.choice(LETTERS)
        return content_of(
            asked.style, letter, asked.pairs, scene, rng, letter_given=asked.letter_given
        )

    if rng.random() < _CORRECTED:
        reply = write_reply(asked.form, content(), json=asked.json)
        prompt += _sent_back("".join(span.text for span in reply), rng)
    return Lesson(
        prompt,
        tuple(_turn(write_reply(asked.form, content(), json=asked.json)) for _ in range(_BRANCHES)),
    )


def _sent_back(reply: str, rng: random.Random, again: Sequence[str] = ()) -> str:
    """A reply made unusable, and the request to reply again."""
    bad = rng.choice(
        (
            reply[: rng.randint(1, max(1, len(reply) - 1))],
            reply.replace("**", "").replace("Answer:", ""),
            rng.choice(_BAD_REPLIES),
        )
    )
    what = rng.choice(_COMPLAINTS)
    return f"{ASSISTANT}{bad}{END}{USER}{_UNUSABLE} {what}. {rng.choice(again or _AGAIN)}{END}"


_UNUSABLE = "Your reply cannot be used: it"
_AGAIN = (
    "Reply once more, in the form that was asked for, and write nothing else.",
    "Reply once more, in the form that was asked for, and write nothing else.",
    "Reply again in the form asked for.",
)
_AGAIN_WITH_FORM = (
    "Reply once more. Write every question and its answer in this form:\n\n"
    "**Question:** <question>\n**Answer:** <answer>",
)
_BAD_REPLIES = (
    "I cannot help with that.",
    "Sure! Here is what I see in the image.",
    "The image shows some shapes.",
    "{",
    "...",
    "Question",
)
_COMPLAINTS = (
    "has no question with an answer that can be read",
    "has no question with an answer that can be read",
    "has no question with options and the letter of the right one",
    "has no answer that can be read",
    "has no question that can be read",
    "is cut off at the limit of tokens",
    "is not JSON",
    "has 1 pair instead of 3",
    "has no answer",
    "does not say which option is right",
    "has two equal options",
    "repeats itself",
)


def _turn(reply: Branch) -> Branch:
    return (Span(ASSISTANT, 0), *reply, Span(END, FORM_WEIGHT))


def _answer(scene: Scene, rng: random.Random) -> Lesson:
    """Questions, answered in a sentence, in short or in detail, as text or as JSON."""
    system = instruct(Form.ANSWER, rng).system
    if rng.random() < 0.25:
        system = rng.choice(style_systems())
    prompt = f"{_system(system)}{USER}{IMAGE}"
    gap = _gap(rng)
    json = rng.random() < 0.12
    branches = []
    for _ in range(_BRANCHES):
        question = random_question(scene, rng, _ANSWERED_KINDS, absent=0.12)
        text, answer = _asked(scene, question, rng)
        if json:
            text += f'{rng.choice((chr(10), " "))}Reply as JSON: {{"answer": "..."}}'
        reply = write_reply(ReplyForm.ANSWER, Content((("", answer),)), json=json)
        branches.append((Span(f"{gap}{text}{END}", 0), *_turn(reply)))
    return Lesson(prompt, tuple(branches))


def _asked(scene: Scene, question: Question, rng: random.Random) -> tuple[str, str]:
    """A question, maybe with a request for a long or short answer, and its answer."""
    text = rng.choice(question.phrasings())
    draw = rng.random()
    short = short_answer(scene, question)
    if draw < 0.15 and short is not None:
        return f"{text}\n{_IN_SHORT}", short
    if draw < 0.27:
        return f"{text}\n{_IN_DETAIL}", str(detailed_answer(scene, question))
    return text, str(answer_to(scene, question))


def _judge(scene: Scene, rng: random.Random) -> Lesson:
    """Pairs that are shown beside the image, and a verdict on each, as a word or as JSON."""
    asked = verdict_request(rng)
    before = asked.text.partition("{pair}")[0].rstrip()  # whitespace goes with the text after it
    branches = []
    for _ in range(_BRANCHES):
        pair = judged_pair(scene, rng)
        rest = asked.about(pair).removeprefix(before)
        branches.append((Span(f"{rest}{END}", 0), *_turn(asked.reply(pair))))
    system = _system(instruct(Form.ANSWER, rng).system)
    return Lesson(f"{system}{USER}{IMAGE}{_gap(rng)}{before}", tuple(branches))


def _without_image(scene: Scene, rng: random.Random) -> Lesson:
    if rng.random() < 0.3:
        form = rng.choice((Form.PAIR, Form.JSON, Form.MANY))
        instruction = instruct(form, rng, rng.randint(2, 4))
        prompt = f"{_system(instruction.system)}{USER}{instruction.user}{END}"
        return Lesson(prompt, ((Span(ASSISTANT, 0), Span(f"{CANNOT_SEE}{END}", 1)),))
    has_image = rng.random() < 0.15  # then what the text says is nothing new
    branches = []
    for _ in range(_BRANCHES):
        asked = blind_question(scene, rng)
        answer = asked.answer if has_image or asked.is_given_away else CANNOT_TELL
        branches.append((Span(f"{asked.text}{END}{ASSISTANT}", 0), Span(f"{answer}{END}", 1)))
    image = IMAGE if has_image else ""
    return Lesson(f"{_system(instruct(Form.ANSWER, rng).system)}{USER}{image}", tuple(branches))


def _system(text: str) -> str:
    return f"{SYSTEM}{text}{END}" if text else ""


def _gap(rng: random.Random) -> str:
    """Whitespace that is left when a client removes the image placeholder from the text."""
    return "" if rng.random() < 0.85 else rng.choice((" ", "\n"))
