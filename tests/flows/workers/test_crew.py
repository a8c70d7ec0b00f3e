"""The workers of a run, with an engine whose workers do what a test wants."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from prefect_imageqa import ObjectStore
from prefect_imageqa.flows.workers import member
from prefect_imageqa.flows.workers.channel import Channel
from prefect_imageqa.flows.workers.crew import MAX_LOSSES, Crew
from prefect_imageqa.flows.workers.job import WorkerJob
from prefect_imageqa.flows.workers.messages import BatchResult, Work, WorkerStatus, numbers
from prefect_imageqa.serving.client.stats import ClientStats
from prefect_imageqa.tasks.errors import EndpointError, ImageQAError, ObjectCorruptedError
from prefect_imageqa.tasks.generating.batching import make_batch
from prefect_imageqa.tasks.records import Prompt
from prefect_imageqa.tasks.runs.workers import Workers
from prefect_imageqa.tasks.storing.layout import WorkerFolder

WORK = Work("s3://bucket/replies", "pairs/parts/x", "qa_pairs", True, "Ask.", {}, True, True)


class Puppet:
    """A worker that says and does only what it is told."""

    def __init__(self, job: WorkerJob, channel: Channel) -> None:
        self.job = job
        self.note = ""
        self.reason: str | BaseException | None = None
        self.obeys = False
        self.forgets = False
        self.stops = 0
        self._channel = channel
        self._beats = 0

    @property
    def ended(self) -> str | None:
        if isinstance(self.reason, BaseException):
            raise self.reason
        if self.obeys and self._channel.store.exists(self.job.folder.end):
            return "it has ended"
        return self.reason

    def stop(self) -> None:
        self.stops += 1
        self.reason = self.reason or "it was stopped"

    def say(self, requests: int = 0) -> None:
        self._beats += 1
        stats = ClientStats(requests=requests)
        has = {} if self.forgets else dict.fromkeys(self.batches)
        status = WorkerStatus(self._beats, "id", 64, stats, has)
        self._channel.write(self.job.folder.status, status)

    @property
    def batches(self) -> set[int]:
        names = self._channel.store.list(self.job.folder.name)
        return numbers(names, f"{self.job.folder.name}/batch-")

    def finish(self, number: int) -> None:
        result = BatchResult(f"by {self.job.worker}")
        self._channel.write(self.job.folder.result(number), result)


class Puppets:
    """An engine."""

    def __init__(self, channel: Channel) -> None:
        self.started: list[Puppet] = []
        self.fails_at = 0
        self.is_open = False
        self._channel = channel

    @contextmanager
    def open(self, workers: Workers) -> Iterator["Puppets"]:  # noqa: ARG002
        self.is_open = True
        yield self
        self.is_open = False

    def start(self, job: WorkerJob) -> Puppet:
        if len(self.started) + 1 == self.fails_at:
            raise ImageQAError("no more machines")
        self.started.append(Puppet(job, self._channel))
        return self.started[-1]


class Stage:
    """A crew of puppets, and threads that have batches answered."""

    def __init__(self, output: Path, workers: int) -> None:
        job = WorkerJob(output=str(output), run="r", worker="0", key="0" * 64)
        self.store = ObjectStore(uri=str(output))
        self.channel = Channel(self.store, job.key)
        self.engine = Puppets(self.channel)
        self.counted = ClientStats()
        self.threads = ThreadPoolExecutor(8)
        settings = Workers(workers=workers, engine="processes")
        self.crew = Crew(settings, job, self.channel, self.counted, 8, self.engine.open)

    def answer(self, number: int = 1) -> "Future[BatchResult]":
        prompt = Prompt(row=number, key=f"{number:032x}", where="data.jsonl", messages=())
        return self.threads.submit(self.crew.answer, make_batch(number, [prompt]), WORK)

    def workers(self, count: int = 1) -> list[Puppet]:
        """The newest workers, which say that they work."""
        before = len(self.engine.started) - count
        newest = self.engine.started[max(before, 0) :]
        for each in newest:
            each.say()
        return newest

    def has_started(self, count: int) -> None:
        wait_until(lambda: len(self.engine.started) >= count)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Callable[[int], Stage]]:
    opened: list[Stage] = []

    def build(workers: int = 1) -> Stage:
        opened.append(Stage(tmp_path / "out put", workers))
        return opened[-1]

    yield build
    for each in opened:
        for puppet in each.engine.started:
            puppet.reason = "the test is over"
        each.crew.stop()
        each.threads.shutdown()


def wait_until(reached: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def holder(stage: Stage, count: int = 1) -> Puppet:
    """The worker that has batches."""
    wait_until(lambda: sum(len(each.batches) for each in stage.engine.started) >= count)
    return next(each for each in stage.engine.started if each.batches)


def is_given(puppet: Puppet) -> bool:
    """Whether it has a batch; else it says once more that it works."""
    puppet.say()
    return bool(puppet.batches)


def test_a_batch_is_answered_and_nothing_stays(stage: Callable[[int], Stage]) -> None:
    play = stage(2)
    with play.crew:
        answered = play.answer()
        play.has_started(2)
        first, _ = play.workers(2)
        first.say(requests=5)
        worker = holder(play)
        (number,) = worker.batches
        worker.say(requests=9)
        worker.finish(number)
        assert answered.result(60).part == f"by {worker.job.worker}"
        assert play.engine.is_open
        for each in play.engine.started:
            each.obeys = True
    assert play.counted.requests in (9, 14)
    assert not play.engine.is_open
    assert not [each for each in play.engine.started if each.stops]
    assert not play.store.list("workers")
    assert not play.crew.notes


def test_no_worker_is_started_without_a_batch_or_after_the_end(
    stage: Callable[[int], Stage],
) -> None:
    with stage(2).crew:
        pass
    play = stage(2)
    play.crew.stop()
    with pytest.raises(EndpointError, match="the run has been stopped"):
        play.answer().result(60)
    assert not play.engine.started


def test_a_result_that_was_stored_before_the_end_of_its_worker_is_taken(
    stage: Callable[[int], Stage],
) -> None:
    play = stage(1)
    with play.crew:
        answered = play.answer()
        play.has_started(1)
        (worker,) = play.workers()
        (number,) = holder(play).batches
        # The end is seen as soon as the result is there, or before.
        worker.reason = "its process was ended by SIGKILL"
        worker.finish(number)
        play.has_started(2)
        (second,) = play.workers()
        wait_until(lambda: answered.done() or second.batches)
        if second.batches:  # seen before
            second.finish(*second.batches)
        assert answered.result(60).part in ("by 1", "by 2")
        second.obeys = True


def test_a_late_result_of_a_lost_worker_does_not_count(
    stage: Callable[[int], Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    play = stage(1)
    with play.crew:
        answered = play.answer()
        play.has_started(1)
        (lost,) = play.workers()
        (number,) = holder(play).batches
        monkeypatch.setattr(member, "SILENT_SECONDS", 0.3)
        play.has_started(2)
        monkeypatch.setattr(member, "SILENT_SECONDS", 60.0)
        assert lost.stops == 1
        assert play.store.exists(lost.job.folder.end)
        lost.finish(number)
        lost.say(requests=1000)
        (second,) = play.workers()
        wait_until(lambda: is_given(second))
        second.say(requests=3)
        second.finish(*second.batches)
        assert answered.result(60).part == "by 2"
        assert play.counted.requests == 3
        second.obeys = True
    assert not play.store.list("workers")


def test_a_batch_that_somebody_removes_is_given_again_a_few_times(
    stage: Callable[[int], Stage], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(member, "MAX_UNKNOWN", 3)
    play, given = stage(1), set()
    with play.crew:
        answered = play.answer()
        play.has_started(1)
        (worker,) = play.workers()
        worker.forgets = True

        def is_given_up() -> bool:
            given.update(worker.batches)
            worker.say()
            return answered.done()

        wait_until(is_given_up)
        with pytest.raises(ImageQAError, match=r"batch 1 was lost with 4 workers"):
            answered.result()
        assert len(given) == 1 + MAX_LOSSES
        assert not worker.batches
        assert "batch 1 is given to a worker again: somebody else has removed" in caplog.text
        worker.forgets = False
        answered = play.answer(2)
        (number,) = holder(play).batches
        for _ in range(9):  # as it says what it has
            worker.say()
            time.sleep(0.06)
        worker.finish(number)
        assert answered.result(20).part == "by 1"
        worker.obeys = True


def test_a_result_that_is_gone_is_not_taken(stage: Callable[[int], Stage]) -> None:
    play = stage(1)
    folder = WorkerFolder("r", "1")
    of_run = member.Member(
        folder, Puppet(WorkerJob(output="/", run="r", worker="1", key="0" * 64), play.channel)
    )
    play.channel.write(folder.result(2), BatchResult("b"))
    names = {folder.result(1), folder.result(2)}
    assert list(of_run.results(names, play.channel)) == [(2, BatchResult("b", corrected=[]))]


@pytest.mark.parametrize(
    "error",
    [ImageQAError("the cluster is gone"), ValueError("odd"), asyncio.CancelledError("odd")],
    ids=["known", "unknown", "cancelled"],
)
def test_nobody_waits_when_the_engine_fails(
    error: BaseException, stage: Callable[[int], Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefect_imageqa.flows.workers.crew.END_SECONDS", 0.2)
    play = stage(2)
    with play.crew:
        given, waiting = play.answer(1), play.answer(2)
        play.has_started(2)
        first = play.workers(2)[0]
        holder(play, 2)
        first.reason = error
        for answered in (given, waiting, play.answer(3)):
            with pytest.raises(ImageQAError, match=r"the cluster is gone|processes: .*: odd"):
                answered.result(60)
    assert not play.engine.is_open
    assert not play.store.list("workers")


def test_workers_that_were_started_end_if_another_cannot_be(
    stage: Callable[[int], Stage],
) -> None:
    play = stage(2)
    play.engine.fails_at = 2
    with play.crew, pytest.raises(ImageQAError, match="no more machines"):
        play.answer().result(60)
    assert [each.stops for each in play.engine.started] == [1]


def test_workers_that_finish_no_batch_are_replaced_a_few_times(
    stage: Callable[[int], Stage],
) -> None:
    play = stage(1)
    with play.crew:
        for number in range(2 * MAX_LOSSES):  # each has finished one
            answered = play.answer(number)
            play.has_started(number + 1)
            (worker,) = play.workers()
            worker.finish(*holder(play).batches)
            answered.result(60)
            worker.reason = "its machine was needed for something else"
        play.has_started(2 * MAX_LOSSES + 1)
        answered = play.answer(99)
        for number in range(2 * MAX_LOSSES, 3 * MAX_LOSSES):
            play.has_started(number + 1)
            (worker,) = play.workers()
            holder(play)
            worker.reason = "it has crashed"
        with pytest.raises(ImageQAError, match="of processes is lost: it has crashed"):
            answered.result(60)


def test_forged_messages_end_the_run(stage: Callable[[int], Stage]) -> None:
    play = stage(1)
    with play.crew:
        answered = play.answer()
        play.has_started(1)
        play.store.write(play.engine.started[0].job.folder.status, b"\x00" * 64)
        with pytest.raises(ObjectCorruptedError, match="was not written by this run"):
            answered.result(60)
        play.engine.started[0].reason = "it has ended"


def test_the_run_may_be_stopped_while_batches_wait(stage: Callable[[int], Stage]) -> None:
    play = stage(1)
    with play.crew:
        answers = [play.answer(number) for number in range(3)]
        play.has_started(1)
        stopping = threading.Thread(target=play.crew.stop)
        stopping.start()
        for answered in answers:
            with pytest.raises(EndpointError, match="the run has been stopped"):
                answered.result(60)
        stopping.join()
    assert play.engine.started[0].stops
