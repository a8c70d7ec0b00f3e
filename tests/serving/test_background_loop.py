"""Coroutines that other threads start: woken for together, and none is left when a group ends."""

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context

import pytest
from prefect_imageqa.serving.background_loop import BackgroundLoop, CoroutineGroup, GroupEndedError


@pytest.fixture
def loop() -> Iterator[BackgroundLoop]:
    loop = BackgroundLoop()
    yield loop
    loop.close()


def test_the_loop_is_woken_once_for_all_that_is_submitted_until_it_is_awake(
    loop: BackgroundLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    woken: list[Callable[[], object]] = []
    call, busy, started = loop.call, threading.Event(), threading.Semaphore(0)

    def count(function: Callable[[], object]) -> None:
        woken.append(function)
        call(function)

    async def run() -> None:
        started.release()

    monkeypatch.setattr(loop, "call", count)
    group = CoroutineGroup(loop)
    call(lambda: busy.wait(30))
    for _ in range(100):
        group.submit(run())
    assert len(woken) == 1
    busy.set()
    for _ in range(100):
        assert started.acquire(timeout=30)
    group.submit(run())
    assert started.acquire(timeout=30)
    assert len(woken) == 2
    group.end()


def test_a_group_that_ends_leaves_none_behind_that_threads_submit_meanwhile(
    loop: BackgroundLoop,
) -> None:
    group = CoroutineGroup(loop)
    running, started = set[int](), threading.Semaphore(0)

    async def run(number: int) -> None:
        running.add(number)
        started.release()
        try:
            await asyncio.sleep(600)
        finally:
            running.discard(number)

    def submit(first: int) -> int:
        """How many were accepted."""
        for number in itertools.count():
            try:
                group.submit(run(first + number))
            except GroupEndedError:
                return number
            time.sleep(1e-5)
        raise AssertionError

    with ThreadPoolExecutor(2) as threads:
        submitting = [threads.submit(submit, first) for first in (0, 1 << 40)]
        for _ in range(50):
            assert started.acquire(timeout=30)
        group.end()
        left = set(running)
        accepted = sum(future.result(60) for future in submitting)
    assert not left
    assert not running
    ran = 50
    while started.acquire(blocking=False):
        ran += 1
    assert accepted == ran


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
    submitted = threading.Event()

    async def look() -> str:
        return caller.get()

    async def report() -> None:
        seen.append(caller.get())
        submitted.set()

    def call() -> None:
        caller.set("task")
        assert loop.start(look()).result(timeout=10) == ""
        group.submit(report())

    group = CoroutineGroup(loop)
    copy_context().run(call)
    assert submitted.wait(10)
    assert seen == [""]
    group.end()
