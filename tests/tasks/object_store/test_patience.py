"""How long and how audibly stores are waited for; `test_outages` has the same with a real one."""

import logging
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

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


def seconds_of(action: Callable[[], object], error: type[StoreError]) -> float:
    started = time.monotonic()
    with pytest.raises(error) as raised:
        action()
    assert "\n" not in str(raised.value)
    return time.monotonic() - started


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "FIRST_PAUSE", 0.02)
    monkeypatch.setattr(waiting, "MAX_PAUSE", 0.05)


def test_without_seconds_nothing_is_waited_for() -> None:
    store = Store(Patience())
    assert seconds_of(lambda: store.patience.call(store.ask), StoreUnavailableError) < 0.1
    assert store.attempts == 1


def test_the_wait_ends_with_its_seconds_and_is_not_repeated(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = Store(Patience(0.3))
    first = seconds_of(lambda: store.patience.call(store.ask), StoreUnavailableError)
    assert 0.3 <= first < 1
    assert store.attempts > 3
    # What is still to be stored at the end of a run must not wait once more.
    assert seconds_of(lambda: store.patience.call(store.ask), StoreUnavailableError) < 0.1
    store.is_up = True
    store.patience.call(store.ask)
    store.is_up = False
    assert seconds_of(lambda: store.patience.call(store.ask), StoreUnavailableError) > 0.25
    assert store.patience.notes == ()
    assert "answers again" not in caplog.text


def test_an_error_says_how_long_was_waited() -> None:
    store = Store(Patience(0.1))
    with pytest.raises(StoreUnavailableError, match=r"^x: away; waited \d s$"):
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
    assert re.fullmatch(rf"{re.escape(problem)}: waiting, \d s of 60", note)
    began, ended = (record.getMessage() for record in caplog.records)
    assert began == f"{problem}: waiting up to 60 s"
    assert re.fullmatch(rf"{SERVER} answers again after \d s", ended)
    assert {record.name for record in caplog.records} == {"prefect_imageqa.store"}
    assert store.patience.notes == ()


def test_a_long_wait_is_logged_again_and_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "LOG_SECONDS", 0.2)
    store = Store(Patience(0.5))
    seconds_of(lambda: store.patience.call(store.ask), StoreUnavailableError)
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
        started = time.monotonic()
        store.patience.stop()
        assert {type(future.exception(10)) for future in asked} == {StoreUnavailableError}
    assert time.monotonic() - started < 5
    ask = lambda: store.patience.call(store.ask, server=SERVER)  # noqa: E731
    assert seconds_of(ask, StoreUnavailableError) < 1
    assert store.attempts == 4, "a silent server would take half a minute once more"


def test_a_stopped_run_still_stores_what_it_can() -> None:
    store = Store(Patience(0.1), is_up=True)
    store.patience.stop()
    assert store.patience.call(store.ask, server=SERVER) == "answer"
    store.is_up = False
    for _ in range(2):
        ask = lambda: store.patience.call(store.ask, server=SERVER)  # noqa: E731
        assert seconds_of(ask, StoreUnavailableError) < 0.1
    assert store.attempts == 2


def test_a_run_that_lost_its_output_touches_no_store() -> None:
    store = Store(Patience(60), is_up=True)
    store.patience.stop(OutputBusyError("taken over"))
    seconds_of(lambda: store.patience.call(store.ask), OutputBusyError)
    assert store.attempts == 0


def test_a_wrong_address_is_not_waited_for_unless_it_was_right_before() -> None:
    patience, attempts = Patience(0.2), []

    def ask() -> None:
        attempts.append(1)
        raise away(is_misaddressed=True)

    assert seconds_of(lambda: patience.call(ask), StoreUnavailableError) < 0.1
    assert len(attempts) == 1
    patience.answered(SERVER)
    assert seconds_of(lambda: patience.call(ask), StoreUnavailableError) >= 0.2


def test_answers_to_others_do_not_prolong_a_wait() -> None:
    store = Store(Patience(0.5))
    done = threading.Event()

    def answer_others() -> None:
        while not done.wait(0.01):
            store.patience.answered(SERVER)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(answer_others)
        waited = seconds_of(lambda: store.patience.call(store.ask), StoreUnavailableError)
        quick = seconds_of(
            lambda: store.patience.call(store.ask, essential=False), ObjectUnavailableError
        )
        done.set()
    assert 0.5 <= waited < 2
    assert quick < 0.4


def test_one_object_of_many_is_waited_for_if_the_store_answers_nobody() -> None:
    store = Store(Patience(0.2))
    with pytest.raises(StoreUnavailableError) as raised:
        store.patience.call(store.ask, essential=False)
    assert type(raised.value) is StoreUnavailableError


def test_other_errors_are_raised_at_once() -> None:
    def ask() -> None:
        raise StoreError("the bucket does not exist")

    assert seconds_of(lambda: Patience(60).call(ask), StoreError) < 0.1


def test_the_number_of_remembered_servers_is_bounded() -> None:
    patience = Patience()
    for number in range(3 * MAX_SERVERS):
        patience.answered(f"host-{number}:443")
    assert patience.last_answer(f"host-{3 * MAX_SERVERS - 1}:443")
    assert not patience.last_answer("host-0:443")
