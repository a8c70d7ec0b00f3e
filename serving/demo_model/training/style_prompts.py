"""Training prompts of the built-in styles: their own texts, and other wordings of the same."""

import random
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import jinja2
import yaml

from . import phrases
from .forms import ReplyForm, reply_format

STYLE_FILES = Path(__file__).parents[3] / "tasks" / "prompting" / "styles"

_OWN_WORDS = 0.8  # share of prompts with a style's own text
_QUESTIONS_ONLY = 0.18
_JSON = 0.18
_SAID = 0.1  # share of prompts that name a language, and that name a difficulty
_LETTER_GIVEN = 0.85


@dataclass(frozen=True, slots=True)
class StyleFile:
    """A style as it is read: its head, and its sections by name."""

    head: dict[str, object]
    sections: dict[str, str]

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.head["name"])


@dataclass(frozen=True, slots=True)
class StylePrompt:
    """A prompt, and what it asks for.

    Attributes:
        system: the system prompt; "" for none.
        drawn: its kind, letter or verdict; "" if it has none.
        pairs: number of pairs, turns or questions.
        json: whether the reply is JSON.
        letter_given: whether the prompt names the drawn letter.
    """

    system: str
    user: str
    style: str
    drawn: str
    pairs: int
    form: ReplyForm
    json: bool
    letter_given: bool


@lru_cache
def style_files() -> tuple[StyleFile, ...]:
    """The built-in styles."""
    return tuple(_read(path) for path in sorted(STYLE_FILES.glob("*.md")))


def _read(path: Path) -> StyleFile:
    _, head, body = path.read_text(encoding="utf-8").split("---\n", 2)
    names_and_texts = re.split(r"^# (\w+)\n", body, flags=re.MULTILINE)[1:]
    sections = dict(zip(names_and_texts[::2], names_and_texts[1::2], strict=True))
    return StyleFile(yaml.safe_load(head), sections)


@lru_cache
def _template(text: str) -> jinja2.Template:
    return jinja2.Environment(autoescape=False).from_string(text)  # noqa: S701 - no HTML


def style_systems() -> tuple[str, ...]:
    """The system prompts of the styles."""
    systems = {file.sections.get("system", "").strip() for file in style_files()}
    return tuple(sorted(systems - {""}))


def style_prompt(rng: random.Random) -> StylePrompt:
    """A prompt of a random style."""
    file = rng.choices(style_files(), [_SHARES.get(file.name, 1.0) for file in style_files()])[0]
    several = file.name in ("several", "dialogue")
    pairs = rng.choice((2, 3, 3, 4)) if several else 1
    only = "questions" in file.sections and rng.random() < _QUESTIONS_ONLY
    form = ReplyForm.QUESTIONS if only else ReplyForm(str(file.head["reply"]))
    json = rng.random() < _JSON
    letter_given = file.name != "multiple-choice" or rng.random() < _LETTER_GIVEN
    variable, drawn, drawn_text = _draw(file, rng)
    own = letter_given and rng.random() < _OWN_WORDS
    section = file.sections["questions" if only else "user"]
    values = {
        "pairs": pairs,
        variable: drawn,
        f"{variable}_text": drawn_text,
        "difficulty": rng.choice(_DIFFICULTIES) if rng.random() < _SAID else "",
        "language": rng.choice(_LANGUAGES) if rng.random() < _SAID else "",
        "reply_format": _format(form, pairs, json, own, rng),
    }
    if not own:
        section = rng.choice(_OTHER_WORDS[file.name, only]) + _TAIL
        if not letter_given:
            section = rng.choice(_NO_LETTER) + _TAIL
    user = _spaced(_template(section).render(values), rng)
    system = file.sections.get("system", "").strip()
    if not own or rng.random() < 0.1:
        system = rng.choice((system, system, "", phrases.SYSTEM_PAIR[0], phrases.SYSTEM_ANSWER[0]))
    return StylePrompt(
        _unwrapped(system, rng), user, file.name, drawn, pairs, form, json, letter_given
    )


def _draw(file: StyleFile, rng: random.Random) -> tuple[str, str, str]:
    draw = file.head.get("draw")
    if not isinstance(draw, dict):
        return "", "", ""
    ((variable, values),) = draw.items()
    texts = values if isinstance(values, dict) else {value: value for value in values}
    value = rng.choice(list(texts))
    return str(variable), str(value), str(texts[value])


def _format(form: ReplyForm, pairs: int, json: bool, own: bool, rng: random.Random) -> str:
    if json and not own and rng.random() < 0.3:
        keys = "questions" if form is ReplyForm.QUESTIONS else "answer"
        if form is ReplyForm.QUESTIONS or form is ReplyForm.ANSWER:
            return f"Reply in JSON with the key {keys}."
    if not json and not own and rng.random() < 0.4:
        return ""
    return reply_format(form, pairs, json=json)


def _spaced(text: str, rng: random.Random) -> str:
    """Rendered text without blank lines at its ends, and sometimes without those within."""
    lines = [line.rstrip() for line in text.strip().split("\n")]
    text = "\n".join(lines)
    return re.sub(r"\n{2,}", "\n", text) if rng.random() < 0.3 else text


def _unwrapped(text: str, rng: random.Random) -> str:
    return text.replace("\n", " ") if rng.random() < 0.3 else text


_SHARES = {"knowledge": 2.0, "multiple-choice": 5.0, "caption": 2.0, "dialogue": 1.5, "yes-no": 1.3}
_DIFFICULTIES = ("easy", "medium", "hard", "simple", "very hard", "difficult", "harder")
_LANGUAGES = ("English", "Chinese", "German", "French", "Spanish", "Japanese", "simple English")
_TAIL = (
    "{% if difficulty %} Make it {{ difficulty }}.{% endif %}"
    "{% if language %} Write in {{ language }}.{% endif %}\n{{ reply_format }}"
)
_OTHER_WORDS: dict[tuple[str, bool], tuple[str, ...]] = {
    ("single", False): (
        "Ask one question about the image and answer it.",
        "Write a question about this picture, and its answer.",
        "Give one question with its answer about the image.",
    ),
    ("single", True): (
        "Ask one question about the image. Do not answer it.",
        "Write a question about this picture, but no answer.",
        "Give me a question about the image without its answer.",
    ),
    ("several", False): (
        "Ask {{ pairs }} different questions about the image and answer them.",
        "Write {{ pairs }} questions about this picture, each with its answer.",
        "Give {{ pairs }} question-answer pairs about the image.",
    ),
    ("several", True): (
        "Ask {{ pairs }} different questions about the image. Do not answer them.",
        "Write {{ pairs }} questions about this picture, but no answers.",
        "Give me {{ pairs }} questions about the image without their answers.",
    ),
    ("dialogue", False): (
        "Write a dialogue of {{ pairs }} turns about this picture.",
        "Write a conversation about the image with {{ pairs }} turns, in which each question "
        "follows from the last answer.",
        "Generate a dialogue about the image: {{ pairs }} turns of a question and its answer.",
    ),
    ("knowledge", False): (
        "Ask about {{ kind_text }}, and give the answer.",
        "Write a question about this picture, and its answer. The question is about "
        "{{ kind_text }}.",
        "Generate one QA pair about {{ kind_text }}.",
    ),
    ("knowledge", True): (
        "Ask about {{ kind_text }}, without the answer.",
        "Write a question about this picture, but no answer. It is about {{ kind_text }}.",
    ),
    ("multiple-choice", False): (
        "Write a multiple-choice question about this picture with four options. "
        "Option {{ letter }} is the right one.",
        "Ask a multiple choice question about the image. The options are A to D, and only "
        "{{ letter }} is right.",
        "Generate a multiple-choice question whose right answer is option {{ letter }}.",
    ),
    ("yes-no", False): (
        "Ask a question about the image that is answered with {{ verdict }}, and answer it.",
        "Write a yes-or-no question about this picture. Its answer is {{ verdict }}.",
        "Generate one QA pair whose answer begins with {{ verdict }}.",
    ),
    ("yes-no", True): (
        "Ask a question about the image that is answered with {{ verdict }}. Do not answer it.",
        "Write a question about this picture whose answer is {{ verdict }}, but no answer.",
    ),
    ("short", False): (
        "Ask one question about the image and answer it in one to three words.",
        "Write a question about this picture, and a short answer of one to three words.",
        "Generate one QA pair with an answer of at most three words.",
    ),
    ("short", True): (
        "Ask one question about the image that one to three words answer. Do not answer it.",
        "Write a question about this picture that has a short answer, but not the answer.",
    ),
    ("detailed", False): (
        "Ask one question about the image and answer it in several sentences.",
        "Write a question about this picture, and a detailed answer of several sentences.",
        "Generate one QA pair with a detailed answer.",
    ),
    ("detailed", True): (
        "Ask one question about the image that several sentences answer. Do not answer it.",
        "Write a question about this picture that has a detailed answer, but not the answer.",
    ),
    ("unanswerable", False): (
        "Ask about something that is not in the image, and answer that it is not there.",
        "Write a question that this picture cannot answer, and an answer that says so.",
        "Generate one unanswerable question about the image, and an answer that says so.",
    ),
    ("unanswerable", True): (
        "Ask about something that the image does not show. Do not answer it.",
        "Write a question that this picture cannot answer, without its answer.",
    ),
    ("caption", False): (
        "Describe the image.",
        "Describe the picture in one sentence.",
        "Write a caption of the image.",
        "What does the image show? Describe it.",
    ),
}
_NO_LETTER = (
    "Write one multiple-choice question about the image, with four options.",
    "Generate a multiple-choice question about this picture. The options are A to D.",
    "Ask a multiple choice question about the image with four options, of which one is right.",
)
