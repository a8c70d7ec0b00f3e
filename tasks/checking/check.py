"""What a check is: it judges every QA pair, and gives columns about it."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from ..parsing.parse import ParseSettings
from ..prompting.style import Style
from ..records import FinishedRow, QAPair

Columns = tuple[pa.Field, ...]
"""The columns of a check: its result first, then the evidence. Null where there is no result: the
pair was not asked about, or the request failed."""

Values = Sequence[Any]
"""The values of these columns for one pair."""


@dataclass(frozen=True, slots=True)
class CheckedPair:
    """A pair as a check sees it.

    Attributes:
        row: position of its row in the dataset, from 0.
        number: its number among the pairs of its row, from 0.
        pair: the pair.
        images: digest of the row's images; empty if it has none.
    """

    row: int
    number: int
    pair: QAPair
    images: str = ""


@dataclass(frozen=True)
class AskedCheck:
    """A check that asks the model: a pass over the pairs.

    Attributes:
        name: of the check; its objects are under `checks/<name>` in the output.
        columns: what it gives.
        style: renders a pair, which is `PromptInput.pair`; the images it leaves out are not sent.
        parsing: how replies are parsed.
        verdict: the values of `columns`, from the pair and the outcome of each request. A failed
            request is no result, and never a pass.
        sampling: options of its requests that differ from those of the run.
        times: requests for a pair, numbered as `PromptInput.sample`.
        other_image: whether the model is shown the images of another row instead.
        sends_image: whether it is shown any.
    """

    name: str
    columns: Columns
    style: Style
    parsing: ParseSettings
    verdict: Callable[[QAPair, Sequence[FinishedRow]], Values]
    sampling: Mapping[str, Any] = field(default_factory=lambda: {"temperature": 0.0})
    times: int = 1
    other_image: bool = False
    sends_image: bool = True


@dataclass(frozen=True)
class ComputedCheck:
    """A check that needs no request.

    Attributes:
        name: of the check.
        columns: what it gives.
        judge: the values of `columns` for each pair, in order; it may read the pairs several
            times, each time by calling its argument.
    """

    name: str
    columns: Columns
    judge: Callable[[Callable[[], Iterable[CheckedPair]]], Iterator[Values]]


Check = AskedCheck | ComputedCheck
