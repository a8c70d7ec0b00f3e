"""Renders rows with a style file."""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Literal

from ...serving.printable import printable
from ...serving.types import Message
from ..records import Asked, Kind, ReplyForm, RowError
from .draws import Draws
from .style import PromptInput, Rendered
from .style_files import StyleFile
from .style_head import QUESTION
from .style_settings import StyleSettings
from .template_values import plain_value
from .templates import compile_template

Section = Literal["user", "questions", "answer"]

_FORMS = {"questions": ReplyForm.QUESTIONS, "answer": ReplyForm.ANSWER}
_TEXT = "_text"
"""Suffix of the variable with the text of a drawn value."""

_MAX_SHORT = 100
"""Characters of a type or a language."""

_KEPT = 256
"""Prompts that are kept for further rows: as many as the usual styles can draw."""

_ANSWER = compile_template(
    f"{{{{ {QUESTION} }}}}{{% if language %}}\nAnswer in {{{{ language }}}}.{{% endif %}}",
    "section `# answer`",
)


class FileStyle:
    """A style file with the settings of a run; called with a row, it renders it.

    Args:
        file: the style file.
        settings: what the run says.
        section: which of its user messages is sent.
        pinned: variables that are not drawn -> their value.

    Attributes:
        file: the style file.
        label: the style in row keys and exports.
        pairs: how many pairs it asks for.
        uses: the variables of the run that its prompts use.
        columns: the columns that every row must have.
        variables: what its prompts use that is given or drawn, in place of columns of that name.
    """

    def __init__(
        self,
        file: StyleFile,
        settings: StyleSettings,
        section: Section = "user",
        pinned: Mapping[str, str] | None = None,
    ) -> None:
        self.file, self._settings, self._section = file, settings, section
        self._pinned = pinned or {}
        self._form = _FORMS.get(section, file.head.reply)
        self._message = file.sections.get(section, _ANSWER)
        # An answer is that to a question on its own, and examples show replies to `# user`.
        self._system = file.sections.get("system") if section != "answer" else None
        self._examples = file.examples if section == "user" else ()
        self._question = file.question if section == "user" else None
        self.label = f"{'/'.join((file.head.name, *self._pinned.values()))}@{file.head.version}"
        self._templates = [
            self._message,
            file.type,
            file.language,
            *(turn.template for turn in self._examples),
            *filter(None, (self._system, self._question)),
        ]
        self._names = frozenset[str]().union(*(template.names for template in self._templates))
        self.pairs = file.head.pairs
        if "pairs" in self._message.names:
            self.pairs = settings.pairs or self.pairs
        self._given = self._given_values()
        self.uses = self._names & self._given.keys()
        required = frozenset[str]().union(*(template.required for template in self._templates))
        own = {*self._given, *self._drawn_names()}
        self.columns, self.variables = required - own, self._names & own
        self._options = settings.options(self._form, self.pairs)
        self._differs = bool(self._names - own) or section == "answer"
        self._kept = lru_cache(_KEPT)(self._drawn_prompt)

    def __call__(self, prompt_input: PromptInput) -> Rendered:
        """Render a row.

        Raises:
            RowError: a column that the style needs is missing, or cannot be part of a prompt.
        """
        drawn, count = self._draw(prompt_input), prompt_input.image_count
        if not self._differs:
            return self._kept(count, tuple(drawn.items()))
        return self._rendered(count, self._values(prompt_input, drawn))

    def _drawn_prompt(self, count: int, drawn: tuple[tuple[str, str], ...]) -> Rendered:
        """The prompt of all rows with these drawn values, if nothing else differs."""
        return self._rendered(count, {**self._given, **dict(drawn)})

    def _rendered(self, count: int, values: Mapping[str, Any]) -> Rendered:
        text = self._message.render(values)
        if self._settings.json and "reply_format" not in self.uses:
            text = f"{text}\n{values['reply_format']}"
        if not text:
            raise RowError(Kind.BAD_ROW, f"{self.file.where}: the prompt is empty")
        question = self._question.render(values) if self._question else text
        asked = Asked(
            question=values[QUESTION] if self._section == "answer" else question,
            style=self.label,
            form=self._form,
            type=_short(self.file.type.render(values)),
            language=self._settings.language or _short(self.file.language.render(values)),
        )
        messages = [*self._before(values, count), user_message(text, range(count))]
        images = self.file.images if self._examples else ()
        return Rendered(tuple(messages), asked, images, self._options)

    def _given_values(self) -> dict[str, Any]:
        """The variables that the run sets; they win over columns of these names."""
        settings = self._settings
        return {
            "language": settings.language,
            "difficulty": settings.difficulty,
            "pairs": self.pairs,
            "reply_format": settings.instruction(self._form, self.pairs),
            "as_json": settings.json,
        }

    def _drawn_names(self) -> Iterable[str]:
        names = self.file.head.draw
        question = [QUESTION] if self._section == "answer" else []
        return [*names, *(f"{name}{_TEXT}" for name in names), *question]

    def _values(self, prompt_input: PromptInput, drawn: Mapping[str, str]) -> dict[str, Any]:
        """All variables of a row's templates."""
        record, values = prompt_input.record, {**self._given, **drawn}
        if self._section == "answer":
            values[QUESTION] = prompt_input.turns[-1].text
        try:
            columns = (self._names & record.keys()) - values.keys()
            return values | {name: plain_value(name, record[name]) for name in columns}
        except RowError as error:
            message = f"{self.file.where}: {error}"
            raise RowError(error.problem.kind, message) from None

    def _draw(self, prompt_input: PromptInput) -> dict[str, str]:
        """The variables that are drawn, each with its text."""
        if not (drawn := self.file.head.draw):
            return {}
        draws = Draws(prompt_input, self._settings.seed, self.file.columns)
        values: dict[str, str] = {}
        for name, texts in drawn.items():
            value = self._pinned.get(name) or draws.choose(name, dict.fromkeys(texts, 1))
            values |= {name: value, f"{name}{_TEXT}": texts[value]}
        return values

    def _before(self, values: Mapping[str, Any], image_count: int) -> list[Message]:
        """The messages before the row's own."""
        messages: list[Message] = []
        if self._system and (text := self._system.render(values)):
            messages.append({"role": "system", "content": text})
        for turn in self._examples:
            images = range(image_count, image_count + len(turn.images))
            image_count += len(turn.images)
            text = turn.template.render(values)
            if turn.role == "user":
                messages.append(user_message(text, images))
            else:
                messages.append({"role": "assistant", "content": text})
        return messages


def _short(text: str) -> str:
    """A text that goes into a column, as one short line."""
    return printable(" ".join(text.split()), _MAX_SHORT)


def user_message(text: str, images: Iterable[int]) -> Message:
    """A message with its images first, as vision models are trained."""
    parts: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
    if not parts:
        return {"role": "user", "content": text}
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}
