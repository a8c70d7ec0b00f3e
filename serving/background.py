"""One event loop on a thread of its own, and groups of coroutines that end together.

A run has one such loop: the client of the model and the client for images of the web share it.
"""

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class GroupEndedError(RuntimeError):
    """The group was ended before: nothing more is started in it."""


class BackgroundLoop:
    """An event loop that runs until it is closed; threads start coroutines on it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="background-loop", daemon=True
        )
        self._thread.start()

    def start(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Start a coroutine; the future gives what it returns, in any thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def close(self) -> None:
        """Stop the loop. Whoever started something on it has ended that before."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class CoroutineGroup:
    """Coroutines of one owner on a shared loop, which are cancelled together."""

    def __init__(self, loop: BackgroundLoop) -> None:
        self._loop = loop
        self._gate = threading.Lock()
        self._ended = False
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Start a coroutine.

        Raises:
            GroupEndedError: the group was ended before.
        """
        # What is started before the group ends is cancelled by it; nothing is started after.
        with self._gate:
            if not self._ended:
                return self._loop.start(self._tracked(coroutine))
        coroutine.close()
        raise GroupEndedError

    def end(self) -> None:
        """Cancel what is under way, wait until it has ended, and start nothing more."""
        with self._gate:
            self._ended = True
            ending = self._loop.start(self._cancel_all())
        ending.result()

    async def _tracked(self, coroutine: Coroutine[Any, Any, T]) -> T:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - it runs on a loop
        self._tasks.add(task)
        try:
            return await coroutine
        finally:
            self._tasks.discard(task)

    async def _cancel_all(self) -> None:
        # All that was started has begun by now: the loop takes things in turn.
        pending = list(self._tasks)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
