"""How long and how audibly stores are waited for; `test_outages` has the same with a real one."""

import logging
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from prefect_imageqa.tasks.errors import (
    ObjectUnavailableError,
    OutputBusyError,
    StoreError,
    StoreUnavailableError,
)
from prefect_imageqa.tasks.object_store import patience as waiting
from prefect_imageqa.tasks.object_store.patience import MAX_SERVERS, Patience

SERVER = "S3 at http://minio:9000"


class Store:
    """A server that answers or does not, and that tells the patience."""

    def __init__(self, patience: Patience, *, is_up: bool = False) -> None:
        self.patience = patience
        self.is_up = is_up
        self.attempts = 0

    def ask(self) -> str:
        self.attempts += 1
        if not self.is_up:
            raise away()
        self.patience.answered(SERVER)
        return "answer"


def away(*, is_misaddressed: bool = False) -> StoreUnavailableError:
    reason = "does not answer (connection refused)"
    return StoreUnavailableError("x: away", SERVER, reason, is_misaddressed=is_misaddressed)


class Clock(threading.Event):
    """A time that passes only while this event is waited for; others may do something then."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.meanwhile: Callable[[], object] = lambda: None

    def monotonic(self) -> float:
        return self.now

    def wait(self, timeout: float | None = None) -> bool:
        self.now += timeout or 0.0
        self.meanwhile()
        return self.is_set()

    def seconds_of(self, action: Callable[[], object], error: type[StoreError]) -> float:
        started = self.now
        with pytest.raises(error) as raised:
            action()
        assert "\n" not in str(raised.value)
        return self.now - started


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time of each `Patience`, which nobody stops while it waits."""
    clock = Clock()
    threads = SimpleNamespace(Lock=threading.Lock, Event=lambda: clock)
    monkeypatch.setattr(waiting, "time", clock)
    monkeypatch.setattr(waiting, "threading", threads)
    return clock


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "FIRST_PAUSE", 0.02)
    monkeypatch.setattr(waiting, "MAX_PAUSE", 0.05)


def test_without_seconds_nothing_is_waited_for(clock: Clock) -> None:
    store = Store(Patience())
    assert clock.seconds_of(lambda: store.patience.call(store.ask), StoreUnavailableError) == 0
    assert store.attempts == 1


def test_the_wait_ends_with_its_seconds_and_is_not_repeated(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(Patience(0.3))
    ask = lambda: store.patience.call(store.ask)  # noqa: E731
    assert clock.seconds_of(ask, StoreUnavailableError) == pytest.approx(0.3)
    assert store.attempts > 3
    # What is still to be stored at the end of a run must not wait once more.
    assert clock.seconds_of(ask, StoreUnavailableError) == 0
    store.is_up = True
    clock.now += 1
    store.patience.call(store.ask)
    store.is_up = False
    assert clock.seconds_of(ask, StoreUnavailableError) == pytest.approx(0.3)
    assert store.patience.notes == ()
    assert "answers again" not in caplog.text


def test_an_error_says_how_long_was_waited(clock: Clock) -> None:
    store = Store(Patience(7))
    with pytest.raises(StoreUnavailableError, match=r"^x: away; waited 7 s$"):
        store.patience.call(store.ask)


def test_threads_share_an_outage_and_log_it_once(caplog: pytest.LogCaptureFixture) -> None:
    store = Store(Patience(60))
    with caplog.at_level(logging.INFO), ThreadPoolExecutor(16) as pool:
        asked = [pool.submit(store.patience.call, store.ask) for _ in range(16)]
        while store.attempts < 64:
            time.sleep(0.01)
        (note,) = store.patience.notes
        store.is_up = True
        assert {future.result() for future in asked} == {"answer"}
    problem = f"{SERVER} does not answer (connection refused)"
    assert re.fullmatch(rf"{re.escape(problem)}: waiting, \d+ s of 60", note)
    began, ended = (r.getMessage() for r in caplog.records if r.name == "prefect_imageqa.store")
    assert began == f"{problem}: waiting up to 60 s"
    assert re.fullmatch(rf"{SERVER} answers again after \d+ s", ended)
    assert store.patience.notes == ()


def test_a_long_wait_is_logged_again_and_again(
    clock: Clock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "LOG_SECONDS", 0.2)
    store = Store(Patience(0.5))
    clock.seconds_of(lambda: store.patience.call(store.ask), StoreUnavailableError)
    still = [record.getMessage() for record in caplog.records if "still" in record.getMessage()]
    assert 1 <= len(still) <= 2
    assert still[0].startswith(f"{SERVER} still does not answer (connection refused): waiting, ")


def test_stopping_ends_all_waits_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "FIRST_PAUSE", 60.0)
    monkeypatch.setattr(waiting, "MAX_PAUSE", 60.0)
    store = Store(Patience(600))
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(store.patience.call, store.ask) for _ in range(4)]
        while store.attempts < 4:
            time.sleep(0.01)
        store.patience.stop()
        assert {type(future.exception(30)) for future in asked} == {StoreUnavailableError}
    with pytest.raises(StoreUnavailableError):
        store.patience.call(store.ask, server=SERVER)
    assert store.attempts == 4, "a silent server would take half a minute once more"


def test_a_stopped_run_still_stores_what_it_can(clock: Clock) -> None:
    store = Store(Patience(0.1), is_up=True)
    store.patience.stop()
    assert store.patience.call(store.ask, server=SERVER) == "answer"
    store.is_up = False
    for _ in range(2):
        ask = lambda: store.patience.call(store.ask, server=SERVER)  # noqa: E731
        assert clock.seconds_of(ask, StoreUnavailableError) == 0
    assert store.attempts == 2


def test_a_run_that_lost_its_output_touches_no_store() -> None:
    store = Store(Patience(60), is_up=True)
    store.patience.stop(OutputBusyError("taken over"))
    with pytest.raises(OutputBusyError):
        store.patience.call(store.ask)
    assert store.attempts == 0


def test_a_wrong_address_is_not_waited_for_unless_it_was_right_before(clock: Clock) -> None:
    patience, attempts = Patience(0.2), []

    def ask() -> None:
        attempts.append(1)
        raise away(is_misaddressed=True)

    assert clock.seconds_of(lambda: patience.call(ask), StoreUnavailableError) == 0
    assert len(attempts) == 1
    patience.answered(SERVER)
    waited = clock.seconds_of(lambda: patience.call(ask), StoreUnavailableError)
    assert waited == pytest.approx(0.2)


def test_answers_to_others_do_not_prolong_a_wait(clock: Clock) -> None:
    store = Store(Patience(0.5))
    clock.meanwhile = lambda: store.patience.answered(SERVER)
    ask = lambda: store.patience.call(store.ask)  # noqa: E731
    assert clock.seconds_of(ask, StoreUnavailableError) == pytest.approx(0.5)
    ask = lambda: store.patience.call(store.ask, essential=False)  # noqa: E731
    assert clock.seconds_of(ask, ObjectUnavailableError) < 0.2


def test_one_object_of_many_is_waited_for_if_the_store_answers_nobody(clock: Clock) -> None:
    store = Store(Patience(0.2))
    with pytest.raises(StoreUnavailableError) as raised:
        store.patience.call(store.ask, essential=False)
    assert type(raised.value) is StoreUnavailableError
    assert clock.now == pytest.approx(1000.2)


def test_other_errors_are_raised_at_once(clock: Clock) -> None:
    def ask() -> None:
        raise StoreError("the bucket does not exist")

    assert clock.seconds_of(lambda: Patience(60).call(ask), StoreError) == 0


def test_the_number_of_remembered_servers_is_bounded() -> None:
    patience = Patience()
    for number in range(3 * MAX_SERVERS):
        patience.answered(f"host-{number}:443")
    assert patience.last_answer(f"host-{3 * MAX_SERVERS - 1}:443")
    assert not patience.last_answer("host-0:443")
