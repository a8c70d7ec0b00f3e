"""Lessons as tensors: the branches of a lesson share a row but do not attend to each other."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from transformers import PreTrainedTokenizerFast

from ..scenes import Scene
from .forms import Branch
from .lessons import IMAGE, Lesson, make_lesson
from .model import EXPANDED_IMAGE

ROW_TOKENS = 320  # a row has as many branches as fit, but at least one
_HIDDEN = torch.finfo(torch.float32).min


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of lessons, padded to one length.

    Attributes:
        ids: token ids, (rows, length).
        positions: of each token within its own conversation, (rows, length).
        mask: added to attention scores, (rows, 1, length, length).
        targets: the next token, (rows, length).
        weights: of each prediction in the loss; 0 for tokens without a target, (rows, length).
    """

    ids: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor


class Encoder:
    """Converts text to token ids, expanding the image placeholder as the processor does."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.image_id: int = tokenizer.convert_tokens_to_ids(IMAGE)
        self._tokenizer = tokenizer
        self.encode = lru_cache(maxsize=20_000)(self._encode)

    def _encode(self, text: str) -> tuple[int, ...]:
        expanded = text.replace(IMAGE, EXPANDED_IMAGE)
        return tuple(self._tokenizer(expanded, add_special_tokens=False)["input_ids"])


class _Row:
    def __init__(self, lesson: Lesson, encoder: Encoder) -> None:
        self.ids = list(encoder.encode(lesson.prompt))
        self.positions = list(range(len(self.ids)))
        self.segments = [0] * len(self.ids)  # 0 is the prompt, which every branch attends to
        self.targets = [0] * len(self.ids)
        self.weights = [0.0] * len(self.ids)
        self._prompt_tokens = len(self.ids)
        for number, branch in enumerate(lesson.branches, 1):
            if not self._add(branch, number, encoder):
                break

    def _add(self, branch: Branch, number: int, encoder: Encoder) -> bool:
        ids: list[int] = []
        weights: list[float] = []
        for span in branch:
            tokens = encoder.encode(span.text)
            ids += tokens
            weights += [span.weight] * len(tokens)
        if number > 1 and len(self.ids) + len(ids) > ROW_TOKENS:
            return False
        self.ids += ids
        self.positions += range(self._prompt_tokens, self._prompt_tokens + len(ids))
        self.segments += [number] * len(ids)
        self.targets += [*ids[1:], 0]  # a token predicts the one after it
        self.weights += [*weights[1:], 0.0]
        return True


def make_batch(
    scenes: Sequence[Scene], rng: random.Random, progress: float, encoder: Encoder
) -> Batch:
    """A batch with one lesson per scene."""
    rows = [_Row(make_lesson(scene, rng, progress), encoder) for scene in scenes]
    length = max(len(row.ids) for row in rows)
    segments = _pad([row.segments for row in rows], length, -1)
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    same_segment = segments[:, None, :] == segments[:, :, None]
    visible = (same_segment | (segments[:, None, :] == 0)) & causal
    return Batch(
        ids=_pad([row.ids for row in rows], length, 0),
        positions=_pad([row.positions for row in rows], length, 0),
        mask=torch.zeros(visible.shape).masked_fill_(~visible, _HIDDEN)[:, None],
        targets=_pad([row.targets for row in rows], length, 0),
        weights=_pad([row.weights for row in rows], length, 0.0),
    )


def _pad(rows: Sequence[Sequence[float]], length: int, fill: float) -> torch.Tensor:
    return torch.tensor([[*row, *[fill] * (length - len(row))] for row in rows])
