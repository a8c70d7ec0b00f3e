"""Coroutines that other threads start: woken for together, and none is left when a group ends."""

import asyncio
import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context

import pytest
from prefect_imageqa.serving.background_loop import BackgroundLoop, CoroutineGroup, Mailbox


@pytest.fixture
def loop() -> Iterator[BackgroundLoop]:
    loop = BackgroundLoop()
    yield loop
    loop.close()


def test_the_loop_is_woken_once_for_all_that_is_put_in_until_it_is_awake(
    loop: BackgroundLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    woken: list[Callable[[], object]] = []
    call, busy, received = loop.call, threading.Event(), queue.Queue[list[int]]()

    def count(function: Callable[[], object]) -> None:
        woken.append(function)
        call(function)

    monkeypatch.setattr(loop, "call", count)
    mailbox = Mailbox(loop, received.put)
    call(lambda: busy.wait(30))
    for number in range(100):
        assert mailbox.put(number)
    assert len(woken) == 1
    busy.set()
    assert received.get(timeout=30) == list(range(100))
    mailbox.put(100)
    assert received.get(timeout=30) == [100]
    assert len(woken) == 2


def test_all_that_was_put_in_is_received_before_a_group_ends_and_nothing_later(
    loop: BackgroundLoop,
) -> None:
    received: list[int] = []
    mailbox, group = Mailbox(loop, received.extend), CoroutineGroup(loop)

    def put(first: int) -> int:
        """How many were accepted."""
        for number in itertools.count():
            if not mailbox.put(first + number):
                return number
            time.sleep(1e-5)
        raise AssertionError

    with ThreadPoolExecutor(2) as threads:
        putting = [threads.submit(put, first) for first in (0, 1 << 40)]
        while len(received) < 50:
            time.sleep(0.001)
        mailbox.close()
        at_end: list[int] = []
        group.end(lambda: at_end.extend(received))
        accepted = sum(future.result(60) for future in putting)
    assert len(at_end) == len(set(at_end)) == len(received) == accepted


def test_nothing_is_put_in_for_a_loop_that_is_closed() -> None:
    closed = BackgroundLoop()
    closed.close()
    mailbox = Mailbox[int](closed, print)
    for number in range(2):
        with pytest.raises(RuntimeError, match="closed"):
            mailbox.put(number)


def test_a_group_that_ends_cancels_what_its_coroutines_have_just_spawned(
    loop: BackgroundLoop,
) -> None:
    group, ended = CoroutineGroup(loop), threading.Event()

    async def run() -> None:
        try:
            await asyncio.sleep(600)
        finally:
            ended.set()

    async def spawn() -> None:
        group.spawn(run())

    busy = threading.Timer(0.2, lambda: None)
    busy.start()
    loop.call(busy.join)  # both are started in the same round
    group.start(spawn())
    group.end()
    assert ended.is_set()


def test_coroutines_do_not_keep_the_context_of_their_caller(loop: BackgroundLoop) -> None:
    """The context of a task run has the task's rows, and a connection keeps that of its opening."""
    caller = ContextVar[str]("caller", default="")
    seen: list[str] = []
    received = threading.Event()

    async def look() -> str:
        return caller.get()

    def report(_: object) -> None:
        seen.append(caller.get())
        received.set()

    def call() -> None:
        caller.set("task")
        assert loop.start(look()).result(timeout=60) == ""
        mailbox.put(None)

    mailbox = Mailbox[None](loop, report)
    copy_context().run(call)
    assert received.wait(60)
    assert seen == [""]
