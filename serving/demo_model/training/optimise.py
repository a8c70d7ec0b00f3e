"""The optimiser of both stages: Muon for the inner matrices, AdamW for everything else."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import nn

_MUON_FACTOR = 5.0  # ratio of Muon's learning rate to AdamW's
_MOMENTUM = 0.95
_WEIGHT_DECAY = 0.02
_WARM_UP = 50  # steps
_LAST_FACTOR = 0.02
_INNER = range(64, 513)  # output sizes of matrices other than label heads and the vocabulary


class _Muon:
    """SGD with momentum whose update matrices are orthogonalised.

    torch.optim.Muon does the same in bfloat16 and one matrix at a time. On a processor without
    bfloat16 arithmetic, that takes longer than the rest of the training step.
    """

    def __init__(self, weights: Sequence[nn.Parameter]) -> None:
        by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
        for weight in weights:
            by_shape[weight.shape].append(weight)
        self._groups = [
            (group, torch.zeros(len(group), *shape)) for shape, group in by_shape.items()
        ]

    def step(self, rate: float) -> None:
        """Update the weights from their gradients."""
        with torch.no_grad():
            for weights, average in self._groups:
                gradients = torch.stack([weight.grad for weight in weights])
                average.lerp_(gradients, 1 - _MOMENTUM)
                updates = _orthogonal(gradients.lerp(average, _MOMENTUM))
                scale = rate * max(1.0, updates.shape[1] / updates.shape[2]) ** 0.5
                for weight, update in zip(weights, updates, strict=True):
                    weight.mul_(1 - rate * _WEIGHT_DECAY).sub_(scale * update)


def _orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """Approximations of the nearest orthogonal matrices, by five Newton-Schulz steps."""
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.775 * square + 2.0315 * square @ square) @ x
    return x if wide else x.mT


class Optimisers:
    """Muon and AdamW with one schedule: warm up, hold, then decay linearly.

    Args:
        parts: the modules to train.
        rate: AdamW's learning rate; Muon's is a fixed multiple.
        steps: total number of steps.
        hold: fraction of the steps, 0 to 1, after which the rate decays.
    """

    def __init__(self, parts: Sequence[nn.Module], rate: float, steps: int, hold: float) -> None:
        modules = nn.ModuleList(parts)
        self._parameters = list(modules.parameters())
        inner = [
            layer.weight
            for layer in modules.modules()
            if isinstance(layer, nn.Linear) and layer.out_features in _INNER
        ]
        inner_ids = {id(weight) for weight in inner}
        others = [weight for weight in self._parameters if id(weight) not in inner_ids]
        self._muon = _Muon(inner)
        self._adam = torch.optim.AdamW(
            [
                {"params": [weight for weight in others if weight.ndim > 1]},
                {"params": [weight for weight in others if weight.ndim < 2], "weight_decay": 0.0},
            ],
            betas=(0.9, 0.98),
            weight_decay=_WEIGHT_DECAY,
        )
        self._rate, self._steps, self._hold = rate, steps, hold
        self._steps_done = 0

    def step(self, loss: torch.Tensor) -> None:
        """Compute the gradients of a loss and update all weights."""
        for weight in self._parameters:
            weight.grad = None
        loss.backward()
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        rate = self._rate * self._factor()
        for group in self._adam.param_groups:
            group["lr"] = rate
        self._adam.step()
        self._muon.step(rate * _MUON_FACTOR)
        self._steps_done += 1

    def _factor(self) -> float:
        decay = (1 - self._steps_done / self._steps) / (1 - self._hold)
        return min(1.0, (self._steps_done + 1) / _WARM_UP) * max(_LAST_FACTOR, min(1.0, decay))
