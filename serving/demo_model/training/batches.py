"""Lessons as tensors: the branches of a lesson share one row and do not see each other."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from transformers import PreTrainedTokenizerFast

from ..scenes import Scene
from .lessons import IMAGE, Branch, Lesson, make_lesson
from .model import EXPANDED_IMAGE

ROW_TOKENS = 288  # a row takes as many branches as fit, and one at least
_HIDDEN = torch.finfo(torch.float32).min


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of lessons, padded to one length.

    Attributes:
        ids: token ids, (rows, length).
        positions: of each token as its own conversation would count it, (rows, length).
        mask: added to attention scores, (rows, 1, length, length).
        targets: the next token, (rows, length).
        weights: of each prediction in the loss; 0 where there is none, (rows, length).
    """

    ids: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor


class Encoder:
    """Text to token ids, with the image placeholder expanded as the processor does it."""

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
        self.segments = [0] * len(self.ids)  # 0 is the prompt, which every branch reads
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
    """One lesson a scene."""
    rows = [_Row(make_lesson(scene, rng, progress), encoder) for scene in scenes]
    length = max(len(row.ids) for row in rows)
    segments = _pad([row.segments for row in rows], length, -1)
    earlier = torch.ones(length, length, dtype=torch.bool).tril()
    same = segments[:, None, :] == segments[:, :, None]
    seen = (same | (segments[:, None, :] == 0)) & earlier
    return Batch(
        ids=_pad([row.ids for row in rows], length, 0),
        positions=_pad([row.positions for row in rows], length, 0),
        mask=torch.zeros(seen.shape).masked_fill_(~seen, _HIDDEN)[:, None],
        targets=_pad([row.targets for row in rows], length, 0),
        weights=_pad([row.weights for row in rows], length, 0.0),
    )


def _pad(rows: Sequence[Sequence[float]], length: int, fill: float) -> torch.Tensor:
    return torch.tensor([[*row, *[fill] * (length - len(row))] for row in rows])
