"""Prompts -> batches, each identified by everything that decides its completions."""

from collections.abc import Iterable, Iterator, Sequence

from ..concurrency import chunks
from ..prompting.keys import batch_key
from ..records import Batch, Prompt


def make_batches(prompts: Iterable[Prompt], size: int) -> Iterator[Batch]:
    """Group prompts into batches of `size`, numbered from 1; the last one may be smaller."""
    for number, some in enumerate(chunks(iter(prompts), size), 1):
        yield make_batch(number, some)


def make_batch(
    number: int,
    prompts: Sequence[Prompt],
    attempts: Sequence[int] | None = None,
    *,
    cache_buster: str = "",
    isolated: bool = False,
    label: str = "",
) -> Batch:
    """One batch of all these prompts.

    Args:
        number: position among the batches of a run.
        prompts: its rows.
        attempts: how many times each row was quarantined before; by default never. They are part
            of the batch key, so that a failed row is sent again instead of found in the cache.
        cache_buster: makes the key differ from those of earlier runs with the same rows.
        isolated: whether the rows may crash the server; see `Batch`.
        label: of the pass.
    """
    attempts = tuple(attempts) if attempts is not None else (0,) * len(prompts)
    key = batch_key([prompt.key for prompt in prompts], attempts, cache_buster)
    return Batch(
        number, key, tuple(prompts), attempts, cache_buster, isolated=isolated, label=label
    )
