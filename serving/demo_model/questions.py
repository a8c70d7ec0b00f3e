"""Questions about a scene, each in several wordings."""

from dataclasses import dataclass
from enum import StrEnum
from itertools import product

from .scenes import COLOURS, COLUMNS, KINDS, RADII, ROWS


class QuestionKind(StrEnum):
    """What a question asks for."""

    COLOUR = "colour"
    SIZE = "size"
    WHERE = "where"
    COUNT = "count"
    SHAPE = "shape"
    COLOUR_COUNT = "colour_count"
    CHECK = "check"
    SIZE_CHECK = "size_check"
    PRESENCE = "presence"
    PLACE = "place"
    OBJECTS = "objects"
    OTHERS = "others"
    MORE = "more"
    CORNERS = "corners"
    MISSING = "missing"
    SCENE = "scene"
    BACKGROUND = "background"
    LOOK = "look"
    UNSHOWN = "unshown"
    CAPTION = "caption"


GENERATED_KINDS = (
    QuestionKind.COLOUR,
    QuestionKind.SIZE,
    QuestionKind.WHERE,
    QuestionKind.COUNT,
)
"""The kinds the model asks about if the prompt leaves it the choice; it can answer all kinds."""

PLACES = tuple(
    "center" if (row, column) == ("middle", "center") else f"{row} {column}"
    for row, column in product(ROWS, COLUMNS)
)
SIZES = tuple(RADII)
MISSING_THINGS = {
    "text": "any text",
    "chart": "a chart",
    "table": "a table",
    "document": "a document",
}
"""What no scene shows, with its article."""

UNSHOWN_FACTS = {
    "Who drew the {shape}?": "who drew the {shape}",
    "When was the {shape} drawn?": "when the {shape} was drawn",
    "What is behind the {shape}?": "what is behind the {shape}",
    "How much does the {shape} weigh?": "how much the {shape} weighs",
}
"""Questions about a shape that no image answers, and what it does not show."""

PHRASINGS = {
    QuestionKind.COLOUR: ("What color is the {shape}?", "What is the color of the {shape}?"),
    QuestionKind.SIZE: ("What size is the {shape}?", "How big is the {shape}?"),
    QuestionKind.WHERE: ("Where is the {shape}?", "Where is the {shape} in the image?"),
    QuestionKind.COUNT: ("How many shapes are there?", "How many objects are in the image?"),
    QuestionKind.SHAPE: ("What shape is {colour}?", "Which shape is {colour}?"),
    QuestionKind.COLOUR_COUNT: (
        "How many {colour} shapes are there?",
        "How many {colour} objects are in the image?",
    ),
    QuestionKind.CHECK: ("Is the {shape} {colour}?",),
    QuestionKind.SIZE_CHECK: ("Is the {shape} {detail}?",),
    QuestionKind.PRESENCE: ("Is there a {shape} in the image?", "Does the image show a {shape}?"),
    QuestionKind.PLACE: ("What shape is in the {detail}?", "Which shape is in the {detail}?"),
    QuestionKind.OBJECTS: (
        "What shapes are in the image?",
        "Which shapes does the image show?",
        "What objects are in the image?",
    ),
    QuestionKind.OTHERS: ("How many other shapes are there?",),
    QuestionKind.MORE: (
        "Are there more than {detail} shapes?",
        "Are there more than {detail} objects in the image?",
    ),
    QuestionKind.CORNERS: (
        "How many corners does the {shape} have?",
        "How many corners does a shape like the {shape} have?",
    ),
    QuestionKind.MISSING: ("Is there {thing} in the image?", "Does the image show {thing}?"),
    QuestionKind.SCENE: ("What kind of image is this?", "What sort of picture is this?"),
    QuestionKind.BACKGROUND: ("What is the background like?", "What does the background show?"),
    QuestionKind.LOOK: (
        "What does the {shape} look like?",
        "Describe the {shape}.",
        "What can you say about the {shape}?",
    ),
    QuestionKind.UNSHOWN: ("{detail}",),
    QuestionKind.CAPTION: ("Describe the image.", "Describe the image in one or two sentences."),
}

FOLLOW_UPS = {
    "What color is it?": QuestionKind.COLOUR,
    "How big is it?": QuestionKind.SIZE,
    "Where is it?": QuestionKind.WHERE,
}
"""Questions about the shape that was spoken of before."""

NUMBERS = ("no", "one", "two", "three", "four")


@dataclass(frozen=True, slots=True)
class Question:
    """A question independent of its wording; names that it does not contain are "".

    Attributes:
        kind: what it asks for.
        shape: the shape it names.
        colour: the colour it names.
        detail: the place, size, number or missing thing that it names; of `UNSHOWN`, its template.
    """

    kind: QuestionKind
    shape: str = ""
    colour: str = ""
    detail: str = ""

    def phrasings(self) -> tuple[str, ...]:
        """All wordings of the question."""
        thing = MISSING_THINGS.get(self.detail, "")
        detail = self.detail.format(shape=self.shape)
        return tuple(
            text.format(shape=self.shape, colour=self.colour, detail=detail, thing=thing)
            for text in PHRASINGS[self.kind]
        )


_DETAILS: dict[QuestionKind, tuple[str, ...]] = {
    QuestionKind.SIZE_CHECK: SIZES,
    QuestionKind.PLACE: PLACES,
    QuestionKind.MORE: NUMBERS[2:4],  # of one, the wording would differ
    QuestionKind.MISSING: tuple(MISSING_THINGS),
    QuestionKind.UNSHOWN: tuple(UNSHOWN_FACTS),
}
_WITH_SHAPE = {
    QuestionKind.COLOUR,
    QuestionKind.SIZE,
    QuestionKind.WHERE,
    QuestionKind.CHECK,
    QuestionKind.SIZE_CHECK,
    QuestionKind.PRESENCE,
    QuestionKind.CORNERS,
    QuestionKind.LOOK,
    QuestionKind.UNSHOWN,
}
_WITH_COLOUR = {QuestionKind.SHAPE, QuestionKind.COLOUR_COUNT, QuestionKind.CHECK}


def questions_of(kind: QuestionKind) -> tuple[Question, ...]:
    """All questions of a kind."""
    return tuple(
        Question(kind, shape, colour, detail)
        for shape in (KINDS if kind in _WITH_SHAPE else ("",))
        for colour in (tuple(COLOURS) if kind in _WITH_COLOUR else ("",))
        for detail in _DETAILS.get(kind, ("",))
    )


_BY_TEXT = {
    text: question
    for kind in QuestionKind
    for question in questions_of(kind)
    for text in question.phrasings()
}


def parse_question(text: str) -> Question | None:
    """Recognise a question in any of its wordings; surrounding whitespace is ignored."""
    return _BY_TEXT.get(text.strip())
