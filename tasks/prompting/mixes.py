"""Mixes of styles: for each row one of them is drawn, by weights."""

import math
from collections.abc import Collection, Mapping, Sequence

from ...serving.printable import printable
from ..errors import ImageQAError
from .draws import Draws
from .style import PromptInput, Rendered, Style

MAX_STYLES = 50


def parse_mix(text: str) -> dict[str, float]:
    """The weights of a mix that is given as text, such as "single=2, yes-no=1".

    Raises:
        ImageQAError: a style is without a weight, or there twice; or see `check_weights`.
    """
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, mark, weight = part.rpartition("=")
        name, shown = name.strip(), printable(part.strip(), 100)
        if not mark or not name:
            raise ImageQAError(
                f"style {shown!r} of a mix has no weight: write it as in single=2, yes-no=1"
            )
        if name in weights:
            raise ImageQAError(f"style {printable(name, 100)} is in the mix twice")
        try:
            weights[name] = float(weight)
        except ValueError:
            raise ImageQAError(f"the weight of {shown!r} is no number") from None
    return check_weights(weights)


def check_weights(weights: Mapping[str, float]) -> dict[str, float]:
    """The weights of a mix.

    Raises:
        ImageQAError: there are none, too many, or one that is not a positive number.
    """
    if not 1 <= len(weights) <= MAX_STYLES:
        raise ImageQAError(f"a mix has 1 to {MAX_STYLES} styles, not {len(weights)}")
    for name, weight in weights.items():
        is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not is_number or not 0 < weight < math.inf:
            raise ImageQAError(
                f"the weight of style {printable(str(name), 100)} is "
                f"{printable(str(weight), 30)}: give a number above 0"
            )
    return dict(weights)


def mixed_style(
    styles: Sequence[Style], weights: Sequence[float], seed: int, columns: Collection[str]
) -> Style:
    """A style that draws one of several for each row.

    Args:
        styles: some styles.
        weights: the weight of each.
        seed: of what is drawn.
        columns: all columns that any of the styles uses.
    """
    numbered = dict(enumerate(weights))

    def style(prompt_input: PromptInput) -> Rendered:
        chosen = Draws(prompt_input, seed, columns).choose("style", numbered)
        return styles[chosen](prompt_input)

    return style
