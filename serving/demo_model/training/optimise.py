"""The optimiser of both stages: Muon for the inner matrices, AdamW for everything else."""

from collections.abc import Sequence

import torch
from torch import nn

_MUON_FACTOR = 5.0  # ratio of Muon's learning rate to AdamW's
_MOMENTUM = 0.95
_WEIGHT_DECAY = 0.02
_WARM_UP = 50  # steps
_LAST_FACTOR = 0.02
_INNER = range(64, 513)  # output sizes of matrices other than label heads and the vocabulary


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
        self._muon = torch.optim.Muon(inner, weight_decay=_WEIGHT_DECAY, momentum=_MOMENTUM)
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
        for optimiser, factor in ((self._adam, 1.0), (self._muon, _MUON_FACTOR)):
            for group in optimiser.param_groups:
                group["lr"] = rate * factor
            optimiser.step()
        self._steps_done += 1

    def _factor(self) -> float:
        decay = (1 - self._steps_done / self._steps) / (1 - self._hold)
        return min(1.0, (self._steps_done + 1) / _WARM_UP) * max(_LAST_FACTOR, min(1.0, decay))
