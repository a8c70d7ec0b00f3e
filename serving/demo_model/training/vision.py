"""Stage one: train the vision tower and its connector to see what is in each cell of a scene."""

import io
import logging
import random
from collections.abc import Sequence

import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from transformers import Idefics3ForConditionalGeneration, Idefics3Processor

from ..scenes import COLOURS, COLUMNS, KINDS, RADII, ROWS, Scene, draw_scene
from .model import PATCHES_PER_SIDE, TEXT_WIDTH, TOKENS_PER_SIDE, VISION_WIDTH
from .optimise import Optimisers

logger = logging.getLogger(__name__)

_BATCH = 48
_RATE = 2e-3
_EMPTY_CELL_WEIGHT = 0.15  # most cells are empty
_CLASSES = (len(COLOURS), len(KINDS), len(RADII), len(ROWS), len(COLUMNS))


def prepare_images(
    scenes: Sequence[Scene], rng: random.Random, processor: Idefics3Processor
) -> torch.Tensor:
    """Draw every scene in a random size and preprocess it; uint8, (n, 3, side, side)."""
    prepared = []
    for start in range(0, len(scenes), 256):
        drawn = [[_draw(scene, rng)] for scene in scenes[start : start + 256]]
        pixels = processor.image_processor(drawn, return_tensors="pt")["pixel_values"][:, 0]
        prepared.append(((pixels + 1) * 127.5).round().to(torch.uint8))
    return torch.cat(prepared)


def _draw(scene: Scene, rng: random.Random) -> Image.Image:
    if rng.random() < 0.5:
        width = height = rng.choice((64, 96, 128, 160, 192, 224))
    else:
        width = rng.randint(96, 224)
        height = max(72, int(width * rng.uniform(0.7, 1.4)))
    image = draw_scene(scene, width, height, rng)
    if rng.random() < 0.25:
        encoded = io.BytesIO()
        image.save(encoded, "JPEG", quality=rng.randint(70, 95))
        image = Image.open(encoded).convert("RGB")
    return image


def cell_labels(scenes: Sequence[Scene], side: int) -> torch.Tensor:
    """Labels of the shape centred in each cell of a grid, (n, 5, side * side); 0 for none.

    The five labels are colour, kind, size, row and column.
    """
    labels = torch.zeros(len(scenes), len(_CLASSES), side**2, dtype=torch.long)
    for number, scene in enumerate(scenes):
        for shape in scene:
            facts = (
                list(COLOURS).index(shape.colour),
                KINDS.index(shape.kind),
                list(RADII).index(shape.size),
                shape.row,
                shape.column,
            )
            cell = int(shape.y * side) * side + int(shape.x * side)
            labels[number, :, cell] = torch.tensor(facts) + 1
    return labels


def image_features(
    network: Idefics3ForConditionalGeneration, pixels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The tower's features, (n, patches, width), and the connector's features for the text."""
    patches = torch.ones(len(pixels), PATCHES_PER_SIDE, PATCHES_PER_SIDE, dtype=torch.bool)
    seen = network.model.vision_model(
        pixel_values=pixels.float() / 127.5 - 1, patch_attention_mask=patches
    ).last_hidden_state
    return seen, network.model.connector(seen)


def all_features(network: Idefics3ForConditionalGeneration, pixels: torch.Tensor) -> torch.Tensor:
    """The connector's features of many images, computed in chunks."""
    with torch.no_grad():
        return torch.cat([image_features(network, chunk)[1] for chunk in pixels.split(256)])


def train_vision(
    network: Idefics3ForConditionalGeneration,
    pixels: torch.Tensor,
    scenes: Sequence[Scene],
    steps: int,
) -> None:
    """Train the tower and the connector, each with label heads that are discarded afterwards."""
    grids = []
    for width, side in ((VISION_WIDTH, PATCHES_PER_SIDE), (TEXT_WIDTH, TOKENS_PER_SIDE)):
        heads = nn.ModuleList(nn.Linear(width, classes + 1) for classes in _CLASSES)
        grids.append((heads, cell_labels(scenes, side)))
    parts = [network.model.vision_model, network.model.connector, *(heads for heads, _ in grids)]
    optimisers = Optimisers(parts, _RATE, steps, hold=0.3)
    for step in range(steps):
        chosen = torch.randint(len(scenes), (_BATCH,))
        features = image_features(network, pixels[chosen])
        loss = torch.stack(
            [
                _label_loss(heads, seen, labels[chosen])
                for (heads, labels), seen in zip(grids, features, strict=True)
            ]
        ).sum()
        optimisers.step(loss)
        if step % 100 == 99:
            logger.info("vision step %d: loss %.4f", step + 1, loss.item())


def _label_loss(heads: nn.ModuleList, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    losses = []
    for number, head in enumerate(heads):
        weight = torch.ones(head.out_features)
        weight[0] = _EMPTY_CELL_WEIGHT
        losses.append(
            functional.cross_entropy(
                head(features).transpose(1, 2), labels[:, number], weight=weight
            )
        )
    return torch.stack(losses).sum()
