"""A run that is told to end more than once: it ends in order all the same."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def terminated_once() -> Iterator[Callable[[], None]]:
    """Ignore SIGTERM inside the block from the time on that what this yields is called.

    A run that is cancelled stores the replies that it has, for which Prefect gives it 30 s. It may
    send the signal again meanwhile: when it has lost the connection by which it was told, it looks
    for runs that are being cancelled, and finds this one. Ctrl-C still ends the run at once.
    """
    ignored: list[Any] = []  # the handler that it had before

    def ignore() -> None:
        if not ignored and threading.current_thread() is threading.main_thread():
            # Not SIG_IGN, which the processes that a run starts would inherit.
            before = signal.signal(signal.SIGTERM, lambda *_: None)
            ignored.append(before or signal.SIG_DFL)  # None: a handler that is not Python's

    try:
        yield ignore
    finally:
        if ignored:
            signal.signal(signal.SIGTERM, ignored[0])
