"""An event loop on its own thread, and groups of coroutines that are cancelled together.

A run has one such loop, shared by the model client and the client that downloads images.
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextvars import copy_context
from typing import Any, TypeVar

T = TypeVar("T")


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
        self._submitted: list[Coroutine[Any, Any, object]] = []
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

    def submit(self, coroutine: Coroutine[Any, Any, object]) -> None:
        """Start a coroutine whose end nobody waits for here; it must handle its own errors.

        Waking up the loop costs more than starting a coroutine, so all that are submitted until it
        is awake are started together.

        Raises:
            GroupEndedError: the group has ended.
        """
        with self._gate:
            if not self._ended:
                self._submitted.append(coroutine)
                if len(self._submitted) == 1:
                    self._loop.call(self._start_submitted)
                return
        coroutine.close()
        raise GroupEndedError

    def spawn(self, coroutine: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Start a coroutine from the loop itself."""
        return asyncio.get_running_loop().create_task(self._tracked(coroutine))

    def end(self) -> None:
        """Cancel all running coroutines, wait until they have ended, and start no more."""
        with self._gate:
            self._ended = True
            ending = self._loop.start(self._cancel_all())
        ending.result()

    def _start_submitted(self) -> None:
        with self._gate:
            submitted, self._submitted = self._submitted, []
        for coroutine in submitted:
            self.spawn(coroutine)

    async def _tracked(self, coroutine: Coroutine[Any, Any, T]) -> T:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine on a loop always has a task
        self._tasks.add(task)
        try:
            return await coroutine
        finally:
            self._tasks.discard(task)

    async def _cancel_all(self) -> None:
        # The loop runs callbacks in order, so every coroutine started before this one is tracked,
        # and after one more round, so is each that these have spawned.
        await asyncio.sleep(0)
        while pending := list(self._tasks):
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
