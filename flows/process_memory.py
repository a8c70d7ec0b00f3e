"""Memory of a run: fewer runs of Python's garbage collector, and less that the allocator keeps.

Rows are freed by their reference counts. Left to its defaults, the collector looks for cycles after
every 700 new objects, and every few seconds among all objects of Prefect, pydantic and pandas,
which took a sixth of the CPU time of a command that processes a few thousand rows.
"""

import atexit
import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from .shared_block import shared_block

_THRESHOLDS = (50_000, 20, 20)
"""New objects before a collection of the youngest; how many of those before one of the older."""

_M_ARENA_MAX = -8
_ARENAS = 2
"""Of glibc's allocator, which by default has up to eight per core and returns little of what was
freed in each: a run that sends images took a quarter more memory."""


def collect_rarely() -> None:
    """Collect garbage rarely from now on, and not once more at the exit: modules are no garbage."""
    gc.set_threshold(*_THRESHOLDS)
    atexit.register(gc.freeze)


def keep_little_freed_memory() -> None:
    """Have the threads of this process share their pools of freed memory; before it starts any."""
    with suppress(AttributeError, OSError):  # another C library than glibc
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _ARENAS)


@shared_block
@contextmanager
def rare_collections() -> Iterator[None]:
    """Collect garbage rarely during the block, and do not search what exists at its start.

    A process that has frozen objects itself keeps them.
    """
    thresholds, is_frozen_here = gc.get_threshold(), gc.get_freeze_count() == 0
    if is_frozen_here:
        gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        if is_frozen_here:
            gc.unfreeze()
