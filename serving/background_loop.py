"""An event loop on its own thread, and groups of coroutines that are cancelled together.

A run has one such loop, shared by the model client and the client that downloads images.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextvars import copy_context
from types import TracebackType
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_LOGGER = logging.getLogger("prefect_imageqa.serving")


class GroupEndedError(RuntimeError):
    """The group has ended and starts no more coroutines."""


class BackgroundLoop:
    """An event loop that runs until it is closed; any thread can start coroutines on it.

    They run in the context in which the loop was made, not in that of their caller: a connection
    keeps the context in which it was opened, and that of a task run would keep the task's rows.
    """

    def __init__(self) -> None:
        self._context = copy_context()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="background-loop", daemon=True
        )
        self._thread.start()

    def start(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Start a coroutine; any thread can wait for its result."""
        context = self._context.copy()
        return context.run(asyncio.run_coroutine_threadsafe, coroutine, self._loop)

    def call(self, function: Callable[[], object]) -> None:
        """Call a function on the loop's thread, soon."""
        self._loop.call_soon_threadsafe(function, context=self._context.copy())

    def close(self) -> None:
        """Stop the loop. Everything that was started on it must have ended by now."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class CoroutineGroup:
    """One owner's coroutines on a shared loop, cancelled together."""

    def __init__(self, loop: BackgroundLoop) -> None:
        self._loop = loop
        self._gate = threading.Lock()
        self._ended = False
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Start a coroutine.

        Raises:
            GroupEndedError: the group has ended.
        """
        # With the lock, a coroutine is either started before `end`, and cancelled by it, or never.
        with self._gate:
            if not self._ended:
                return self._loop.start(self._tracked(coroutine))
        coroutine.close()
        raise GroupEndedError

    def spawn(self, coroutine: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Start a coroutine from the loop itself."""
        return asyncio.get_running_loop().create_task(self._tracked(coroutine))

    def end(self, first: Callable[[], object] = lambda: None) -> None:
        """Cancel all running coroutines, wait until they have ended, and start no more.

        Args:
            first: called on the loop's thread before.
        """
        with self._gate:
            self._ended = True
            ending = self._loop.start(self._cancel_all(first))
        ending.result()

    async def _tracked(self, coroutine: Coroutine[Any, Any, T]) -> T:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine on a loop always has a task
        self._tasks.add(task)
        try:
            return await coroutine
        finally:
            self._tasks.discard(task)

    async def _cancel_all(self, first: Callable[[], object]) -> None:
        first()
        # The loop runs callbacks in order, so every coroutine started before this one is tracked,
        # and after one more round, so is each that these have spawned.
        await asyncio.sleep(0)
        while pending := list(self._tasks):
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)


class Mailbox(Generic[T]):
    """Takes items from any thread for a function on the loop's thread.

    Waking up the loop costs more than handing over an item, so all that are put in until it is
    awake are handed over together.

    Args:
        loop: the loop.
        receive: called with the items, in the order in which they came.
    """

    def __init__(self, loop: BackgroundLoop, receive: Callable[[list[T]], object]) -> None:
        self._loop = loop
        self._receive = receive
        self._gate = threading.Lock()
        self._closed = False
        self._items: list[T] = []

    def put(self, item: T) -> bool:
        """Hand over an item; False if the mailbox is closed."""
        with self._gate:
            if self._closed:
                return False
            if not self._items:  # first, so that none is left behind if the loop is closed
                self._loop.call(self._hand_over)
            self._items.append(item)
            return True

    def close(self) -> None:
        """Take no more items; those from before reach the function before a later call does."""
        with self._gate:
            self._closed = True

    def _hand_over(self) -> None:
        with self._gate:
            items, self._items = self._items, []
        self._receive(items)


class Tolerated:
    """Context manager for a step of work that must go on: its errors are logged, not raised.

    One that comes again and again is logged once.

    Args:
        what: the work, for the message.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._last = ""

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        message = f"{type(error).__name__}: {error}"
        if message != self._last:
            _LOGGER.warning("%s failed: %s", self._what, message)
        self._last = message
        return True
