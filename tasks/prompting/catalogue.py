"""The built-in styles, for people who choose one."""

from dataclasses import dataclass
from functools import cache

from .chat import CHAT
from .style_files import built_in_names, read_built_in_head


@dataclass(frozen=True, slots=True)
class StyleEntry:
    """A style as it is listed.

    Attributes:
        name: its name.
        description: one line.
        example: what it gives, about the same picture for all styles.
    """

    name: str
    description: str
    example: str


_CHAT = StyleEntry(
    CHAT,
    "Your own prompts, and what each row asks itself in its conversation; the default.",
    "Question: What number is the bus?\nAnswer: It is the number 12.",
)


@cache
def built_in_styles() -> tuple[StyleEntry, ...]:
    """The built-in styles, the default first."""
    heads = [read_built_in_head(name) for name in built_in_names()]
    return (
        _CHAT,
        *(StyleEntry(head.name, head.description, head.example.strip()) for head in heads),
    )
