"""Pictures of a few coloured shapes, with their ground truth.

The demo model was trained on such scenes, so a demo or a test can draw one, ask the model about it
and compare the reply with the truth (see `questions`).

Training draws its scenes from generators seeded with integers; demos, tests and the accuracy table
use `held_out_rng`, whose random stream no integer seed produces. Positions are continuous, so no
scene occurs twice.
"""

import json
import math
import random
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image, ImageDraw

COLOURS = {
    "red": (220, 35, 35),
    "green": (35, 155, 55),
    "blue": (35, 75, 220),
    "yellow": (245, 215, 40),
    "purple": (140, 45, 175),
    "pink": (250, 130, 190),
    "cyan": (45, 205, 215),
    "black": (25, 25, 25),
}
KINDS = ("circle", "square", "triangle", "star")
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "center", "right")
RADII = {"small": (0.095, 0.11), "large": (0.15, 0.165)}

DEMO_QUESTION = "Please construct a QA pair based on the content in the image."

_GRID = 3
_CENTRE_JITTER = 0.06  # a cell is 1/3 wide, so the centre is always well inside the cell
_COLOUR_JITTER = 12  # of 255
_DARKEST_BACKGROUND = 225  # of 255


@dataclass(frozen=True, slots=True)
class Shape:
    """A shape of a scene.

    Attributes:
        kind: one of `KINDS`.
        colour: one of `COLOURS`.
        size: "small" or "large".
        row: 0 (top) to 2 (bottom).
        column: 0 (left) to 2 (right).
        x: centre, from 0 (left edge) to 1 (right edge).
        y: centre, from 0 (top edge) to 1 (bottom edge).
        radius: as a fraction of the picture's shorter side.
    """

    kind: str
    colour: str
    size: str
    row: int
    column: int
    x: float
    y: float
    radius: float

    @property
    def place(self) -> str:
        """Its position in words: "top left", "middle right", "center", ..."""
        if self.row == 1 and self.column == 1:
            return "center"
        return f"{ROWS[self.row]} {COLUMNS[self.column]}"


Scene = tuple[Shape, ...]
"""One to four shapes of different kinds in different cells."""


def held_out_rng(seed: int) -> random.Random:
    """A random generator for scenes that the model was not trained on."""
    return random.Random(f"held out {seed}")  # noqa: S311 - not used for secrets


def random_scene(rng: random.Random) -> Scene:
    """A random scene; colours may repeat, kinds and cells do not."""
    count = rng.randint(1, len(KINDS))
    if rng.random() < 0.65:
        colours = rng.sample(list(COLOURS), count)
    else:
        colours = rng.choices(rng.sample(list(COLOURS), 2), k=count)
    cells = rng.sample(range(_GRID**2), count)
    return tuple(
        _random_shape(rng, kind, colour, *divmod(cell, _GRID))
        for kind, colour, cell in zip(rng.sample(KINDS, count), colours, cells, strict=True)
    )


def _random_shape(rng: random.Random, kind: str, colour: str, row: int, column: int) -> Shape:
    size = rng.choice(list(RADII))
    return Shape(
        kind=kind,
        colour=colour,
        size=size,
        row=row,
        column=column,
        x=(column + 0.5) / _GRID + rng.uniform(-_CENTRE_JITTER, _CENTRE_JITTER),
        y=(row + 0.5) / _GRID + rng.uniform(-_CENTRE_JITTER, _CENTRE_JITTER),
        radius=rng.uniform(*RADII[size]),
    )


def draw_scene(
    scene: Scene, width: int = 192, height: int = 192, rng: random.Random | None = None
) -> Image.Image:
    """Draw a scene on a pale background.

    Args:
        scene: what to draw.
        width: in pixels; the model was trained on 64 to 224.
        height: in pixels; the model was trained on sides of ratio 0.7 to 1.4.
        rng: determines the background and the exact tints; if None, they are always the same.
    """
    rng = rng or random.Random(0)  # noqa: S311 - not used for secrets
    background = tuple(rng.randint(_DARKEST_BACKGROUND, 255) for _ in range(3))
    image = Image.new("RGB", (width, height), background)
    canvas = ImageDraw.Draw(image)
    for shape in scene:
        tint = tuple(
            min(255, max(0, value + rng.randint(-_COLOUR_JITTER, _COLOUR_JITTER)))
            for value in COLOURS[shape.colour]
        )
        x, y = shape.x * width, shape.y * height
        radius = shape.radius * min(width, height)
        if shape.kind == "circle":
            canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=tint)
        else:
            canvas.polygon(_outline(shape.kind, x, y, radius), fill=tint)
    return image


def _outline(kind: str, x: float, y: float, radius: float) -> list[tuple[float, float]]:
    if kind == "square":
        half = 0.9 * radius
        return [
            (x - half, y - half),
            (x + half, y - half),
            (x + half, y + half),
            (x - half, y + half),
        ]
    if kind == "triangle":
        base = y + 0.85 * radius
        return [(x, y - radius), (x + radius, base), (x - radius, base)]
    spikes = 5
    corners = []
    for corner in range(2 * spikes):
        angle = corner * math.pi / spikes - math.pi / 2
        reach = radius * (0.45 if corner % 2 else 1.1)
        corners.append((x + reach * math.cos(angle), y + reach * math.sin(angle)))
    return corners


def write_demo_dataset(folder: Path, count: int, seed: int) -> list[Scene]:
    """Draw a dataset: `images/000.png`, ..., `dataset.json`, and the truth as `scenes.json`.

    Args:
        folder: created if missing; files of the same names are replaced.
        count: number of images; a smaller dataset of the same seed is a prefix of a larger one.
        seed: any; no seed produces scenes of the training.

    Returns:
        The scenes, in dataset order.
    """
    rng = held_out_rng(seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    scenes, rows = [], []
    for index in range(count):
        scene = random_scene(rng)
        name = f"images/{index:03d}.png"
        draw_scene(scene, rng=rng).save(folder / name)
        turn = {"from": "human", "value": DEMO_QUESTION}
        rows.append({"image": name, "conversation": [turn]})
        scenes.append(scene)
    truth = [[asdict(shape) for shape in scene] for scene in scenes]
    for path, content in (("dataset.json", rows), ("scenes.json", truth)):
        (folder / path).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return scenes
