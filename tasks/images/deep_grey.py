"""Grey values of more than 8 bits -> 8 bits, scaled to what the image holds."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

_FULL = 65535
"""White on the scale of 16 bits. Depth maps mark pixels without a value by this or by 0."""


@dataclass(frozen=True, slots=True)
class GreyRange:
    """Which values become black and white.

    Attributes:
        low: this and lower ones become black.
        high: this and higher ones become white.
        is_scaled: whether that is another range than the full one of 16 bits.
    """

    low: float
    high: float
    is_scaled: bool = True
    _table: npt.NDArray[np.uint8] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        table = self._scaled(np.arange(_FULL + 1, dtype=np.float32))
        object.__setattr__(self, "_table", table)

    def to_8_bit(self, image: Image.Image) -> Image.Image:
        """Scale the values of an image, or of a part of it."""
        values = np.asarray(image)
        if values.dtype.itemsize == 2:
            return Image.fromarray(self._table[values])
        if image.mode == "F":
            values = np.where(np.isnan(values), np.float32(self.low), values)
        return Image.fromarray(self._scaled(values.astype(np.float32)))

    def _scaled(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
        factor = 255.0 / max(self.high - self.low, 1e-30)
        # Multiplied first: a difference of floats may be too large for one.
        values = np.clip(values, self.low, self.high) * np.float32(factor)
        values -= np.float32(self.low * factor)
        return np.clip(values, 0, 255).astype(np.uint8)


def grey_range(image: Image.Image, rows: int) -> GreyRange:
    """The range of an image's grey values.

    Files of 16 bits often use 12 of them (X-rays), or hold millimetres (depths): on the scale of 16
    bits they would be black. If the upper half of that scale is used, it is kept; otherwise the
    lowest value becomes black and the highest white, apart from those that mark missing pixels.

    Args:
        image: of mode I;16 (any byte order), I or F.
        rows: how many to look at at a time, which bounds the memory.
    """
    whole, present = _Extrema(), _Extrema()
    for top in range(0, image.height, rows):
        values = np.asarray(image.crop((0, top, image.width, min(top + rows, image.height))))
        if image.mode == "F":
            values = values[np.isfinite(values)]
        if values.size:
            whole.add(values.min(), values.max())
            present.add(
                values.min(initial=_FULL, where=values > 0),
                values.max(initial=0, where=values < _FULL),
            )
    if whole.low > whole.high:  # no finite value
        return GreyRange(0.0, 1.0)
    if image.mode == "F" or whole.low < 0 or whole.high > _FULL:
        return GreyRange(min(whole.low, 0.0) if whole.low == whole.high else whole.low, whole.high)
    if present.high > _FULL // 2 or present.low > present.high:
        return GreyRange(0.0, _FULL, is_scaled=False)
    return GreyRange(present.low if present.low < present.high else 0.0, present.high)


@dataclass(slots=True)
class _Extrema:
    low: float = math.inf
    high: float = -math.inf

    def add(self, low: Any, high: Any) -> None:
        self.low, self.high = min(self.low, float(low)), max(self.high, float(high))
