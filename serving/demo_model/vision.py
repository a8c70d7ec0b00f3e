"""Stage one: the vision tower and its connector learn what is in each cell of a scene."""

import io
import logging
import random
from collections.abc import Sequence

import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from transformers import Idefics3ForConditionalGeneration, Idefics3Processor

from .model import IMAGE_TOKENS, PATCHES_A_SIDE, TEXT_WIDTH, TOKENS_A_SIDE
from .optimise import Optimisers
from .scenes import COLOURS, KINDS, RADII, Scene, draw_scene

logger = logging.getLogger(__name__)

_BATCH = 48
_RATE = 2e-3
_EMPTY_CELL_WEIGHT = 0.15  # most cells are empty
_CLASSES = (len(COLOURS), len(KINDS), len(RADII), IMAGE_TOKENS, len(KINDS), len(KINDS))


def prepare_images(
    scenes: Sequence[Scene], rng: random.Random, processor: Idefics3Processor
) -> torch.Tensor:
    """Draw every scene in some size and run it through the processor; bytes, (n, 3, side, side)."""
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


def cell_labels(scenes: Sequence[Scene]) -> torch.Tensor:
    """What each image token should tell, (n, 6, tokens); 0 is none.

    Colour, kind, size and place of the shape in its cell, how many shapes have that colour, and
    (empty cells too) how many there are in all: counting is easier to learn here than from text.
    """
    labels = torch.zeros(len(scenes), len(_CLASSES), IMAGE_TOKENS, dtype=torch.long)
    for number, scene in enumerate(scenes):
        labels[number, -1] = len(scene)
        for shape in scene:
            cell = shape.row * TOKENS_A_SIDE + shape.column
            indices = (
                list(COLOURS).index(shape.colour),
                KINDS.index(shape.kind),
                list(RADII).index(shape.size),
                cell,
                sum(other.colour == shape.colour for other in scene) - 1,
            )
            labels[number, :-1, cell] = torch.tensor(indices) + 1
    return labels


def image_features(network: Idefics3ForConditionalGeneration, pixels: torch.Tensor) -> torch.Tensor:
    """What the connector hands to the language model, (n, tokens, width)."""
    patches = torch.ones(len(pixels), PATCHES_A_SIDE, PATCHES_A_SIDE, dtype=torch.bool)
    seen = network.model.vision_model(
        pixel_values=pixels.float() / 127.5 - 1, patch_attention_mask=patches
    )
    features: torch.Tensor = network.model.connector(seen.last_hidden_state)
    return features


def all_features(network: Idefics3ForConditionalGeneration, pixels: torch.Tensor) -> torch.Tensor:
    """The features of many images, computed in pieces."""
    with torch.no_grad():
        return torch.cat([image_features(network, piece) for piece in pixels.split(256)])


def train_vision(
    network: Idefics3ForConditionalGeneration,
    pixels: torch.Tensor,
    scenes: Sequence[Scene],
    steps: int,
) -> nn.ModuleList:
    """Train the tower and the connector; returns the label heads, which are of no further use."""
    heads = nn.ModuleList(nn.Linear(TEXT_WIDTH, classes + 1) for classes in _CLASSES)
    labels = cell_labels(scenes)
    parts = [network.model.vision_model, network.model.connector, heads]
    optimisers = Optimisers(parts, _RATE, steps, hold=0.3)
    for step in range(steps):
        chosen = torch.randint(len(scenes), (_BATCH,))
        features = image_features(network, pixels[chosen])
        loss = torch.zeros(())
        for number, head in enumerate(heads):
            weight = torch.ones(head.out_features)
            weight[0] = _EMPTY_CELL_WEIGHT
            loss = loss + functional.cross_entropy(
                head(features).transpose(1, 2), labels[chosen, number], weight=weight
            )
        optimisers.step(loss)
        if step % 100 == 99:
            logger.info("vision step %d: loss %.4f", step + 1, loss.item())
    return heads


def label_accuracy(
    heads: nn.ModuleList, features: torch.Tensor, scenes: Sequence[Scene]
) -> list[float]:
    """For each label the part of scenes in which it is right in all cells."""
    labels = cell_labels(scenes)
    return [
        float((head(features).argmax(-1) == labels[:, number]).all(1).float().mean())
        for number, head in enumerate(heads)
    ]
