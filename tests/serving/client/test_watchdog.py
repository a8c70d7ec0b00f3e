"""Servers that hang or are lost, and servers that only seem to hang."""

import time
from collections.abc import Iterator

import pytest
from chat import ask, completing, endpoint, logged, noted, texts, wait_until
from fake_vllm import TEST_TEXT, FakeVLLM
from prefect_imageqa.serving.client import ChatClient, notes, sender, watchdog
from prefect_imageqa.serving.client.servers import Server
from prefect_imageqa.serving.errors import EndpointLostError
from servers import StubServer

pytestmark = pytest.mark.usefixtures("quick", "watchful")

ROWS = [str(number) for number in range(40)]


@pytest.fixture
def two() -> Iterator[tuple[FakeVLLM, FakeVLLM]]:
    """Two servers."""
    with FakeVLLM() as first, FakeVLLM() as second:
        yield first, second


# --- servers that hang ----------------------------------------------------------------------------


def test_a_server_that_hangs_is_named_and_its_requests_wait(stub: StubServer) -> None:
    with ChatClient(endpoint(stub.url, model="stub"), max_in_flight=8) as client:
        assert len(texts(client.complete(map(ask, ROWS)))) == 40
        before = stub.stats()["requests"]
        stub.freeze()
        try:
            with completing(client, ROWS) as outcomes:
                wait_until(noted(client, f"{stub.url} is stalled: 8 requests and no reply for "))
                waiting = "not even to a test request: waiting, N s of 900"
                wait_until(noted(client, waiting, least=1))
                assert client.stats.in_flight == 8
                stub.thaw()
                assert len(texts(outcomes.result(30))) == 40
        finally:
            stub.thaw()
        wait_until(lambda: not client.stats.notes)
        assert client.stats.requests == 80
    # The others were test requests, of which several may have been given up.
    assert stub.stats()["requests"] - before >= 41


def test_nothing_is_asked_twice_when_a_server_goes_on() -> None:
    with FakeVLLM() as server, ChatClient(endpoint(server.url), max_in_flight=4) as client:
        server.frozen = True
        with completing(client, ROWS) as outcomes:
            wait_until(noted(client, "is stalled"))
            time.sleep(0.2)
            server.frozen = False
            assert texts(outcomes.result(30)) == ROWS
        assert {server.asked[row] for row in ROWS} == {1}


@pytest.mark.parametrize("seconds", [0.35, 1.0], ids=["soon", "late"])
def test_a_server_that_hangs_behind_a_gateway(
    seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which answers 504 in its place, before or after the server is looked at."""
    monkeypatch.setattr(watchdog, "QUIET_SECONDS", 0.4)
    monkeypatch.setattr(sender, "CRASH_CHECK_SECONDS", 0.0)
    with FakeVLLM() as server, ChatClient(endpoint(server.url)) as client:
        server.frozen, server.gateway_timeout = True, seconds
        with completing(client, ["hello"]) as outcomes:
            wait_until(noted(client, f"{server.url} is stalled"))
            time.sleep(0.2)
            assert not outcomes.done()
            server.frozen = False
            assert texts(outcomes.result(30)) == ["hello"]


def test_a_server_that_is_asleep_is_not_asked_until_it_wakes() -> None:
    with FakeVLLM() as server, ChatClient(endpoint(server.url)) as client:
        server.frozen, server.asleep, server.tokens = True, True, 7
        with completing(client, ROWS) as outcomes:
            wait_until(noted(client, f"{server.url} is asleep: waiting, N s of 900"))
            time.sleep(0.2)
            assert server.asked[TEST_TEXT] == 0
            server.frozen = server.asleep = False
            assert texts(outcomes.result(30)) == ROWS
        assert {server.asked[row] for row in ROWS} == {1}


def test_a_server_that_completes_what_it_was_sent_before_is_back() -> None:
    """Though it does not answer test requests in time, because it is slow."""
    with FakeVLLM() as server, ChatClient(endpoint(server.url)) as client:
        server.hanging = {TEST_TEXT, *ROWS}
        with completing(client, ROWS) as outcomes:
            wait_until(noted(client, "is stalled"))
            server.hanging = {TEST_TEXT}
            assert texts(outcomes.result(30)) == ROWS
        assert {server.asked[row] for row in ROWS} == {1}


def test_the_wait_for_a_server_that_hangs_ends() -> None:
    with FakeVLLM() as server, ChatClient(endpoint(server.url), server_wait=0.5) as client:
        server.frozen = True
        with pytest.raises(EndpointLostError) as raised:
            client.complete(map(ask, ROWS))
        assert client.stats.in_flight == 0
    message = str(raised.value)
    assert message.startswith(f"{server.url} is stalled: 8 requests and no reply for ")
    assert "waited 0 s" in message or "waited 1 s" in message


def test_requests_of_a_server_that_hangs_go_to_another(
    two: tuple[FakeVLLM, FakeVLLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen, other = two
    with ChatClient(endpoint(frozen.url, other.url), max_in_flight=8) as client:
        frozen.frozen = True
        assert texts(client.complete(map(ask, ROWS))) == ROWS
        wait_until(noted(client, f"{frozen.url} is stalled"))
        wait_until(noted(client, "other servers do its work"))
        assert sum(frozen.asked[row] for row in ROWS) == 4
        # It gets requests again as soon as it answers.
        monkeypatch.setattr(watchdog, "QUIET_SECONDS", 60.0)
        frozen.frozen, other.latency = False, 0.05
        wait_until(lambda: not client.stats.notes)
        assert texts(client.complete(map(ask, ROWS))) == ROWS
        assert sum(frozen.asked[row] for row in ROWS) > 8


def test_requests_of_a_server_that_is_killed_go_to_another(
    two: tuple[FakeVLLM, FakeVLLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "QUIET_SECONDS", 60.0)
    dying, other = two
    with ChatClient(endpoint(dying.url, other.url), max_in_flight=8) as client:
        dying.frozen = True
        with completing(client, ROWS) as outcomes:
            wait_until(lambda: len(dying.active) == 4)
            dying.stop()
            assert texts(outcomes.result(30)) == ROWS
        wait_until(noted(client, f"{dying.url} does not answer"))
        assert client.stats.requests <= 40 + 4 + 8


def test_requests_of_a_server_that_stays_down_go_to_another(
    two: tuple[FakeVLLM, FakeVLLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those whose connections are still open, as when its machine is gone."""
    monkeypatch.setattr(watchdog, "QUIET_SECONDS", 60.0)
    monkeypatch.setattr(watchdog, "_MOVE_SECONDS", 0.2)
    gone, other = two
    gone.hanging, gone.health = set(ROWS), 503
    with (
        ChatClient(endpoint(gone.url, other.url), max_in_flight=8) as client,
        completing(client, ROWS) as outcomes,
    ):
        wait_until(lambda: len(gone.active) == 4)
        gone.status_of = {gone.active[0]: 502}
        gone.hanging.discard(gone.active[0])
        wait_until(noted(client, f"{gone.url} does not answer"))
        assert texts(outcomes.result(30)) == ROWS


# --- servers that only seem to hang ---------------------------------------------------------------


def test_a_server_whose_counters_move_is_busy() -> None:
    with FakeVLLM() as server, ChatClient(endpoint(server.url), max_in_flight=4) as client:
        server.frozen, server.tokens, server.new_tokens = True, 0, 10
        with completing(client, ROWS) as outcomes:
            wait_until(lambda: server.asked[TEST_TEXT] >= 3)  # it has been looked at twice
            assert not client.stats.notes
            (state,) = client._pool.servers
            assert state.activity.startswith("it is working: ")
            server.frozen = False
            assert texts(outcomes.result(30)) == ROWS
        assert {server.asked[row] for row in ROWS} == {1}


@pytest.mark.parametrize("tokens", [None, 7], ids=["no counters", "counters that stand still"])
@pytest.mark.usefixtures("patient")
def test_a_server_that_answers_test_requests_is_busy(tokens: int | None) -> None:
    with FakeVLLM() as server, ChatClient(endpoint(server.url), max_in_flight=4) as client:
        server.tokens, server.hanging = tokens, set(ROWS)
        with completing(client, ROWS) as outcomes:
            wait_until(lambda: server.asked[TEST_TEXT] >= 2)
            assert not client.stats.notes
            (state,) = client._pool.servers
            wait_until(lambda: state.activity == "it answers test requests")
            server.hanging = set()
            assert texts(outcomes.result(30)) == ROWS
        assert {server.asked[row] for row in ROWS} == {1}


@pytest.mark.parametrize("status", [400, 429])
@pytest.mark.usefixtures("patient")
def test_a_server_that_rejects_test_requests_is_judged_by_its_health(status: int) -> None:
    with FakeVLLM() as server, ChatClient(endpoint(server.url), max_in_flight=4) as client:
        server.hanging, server.status_of = set(ROWS), {TEST_TEXT: status}
        with completing(client, ROWS) as outcomes:
            wait_until(lambda: server.asked[TEST_TEXT] >= 2)
            assert not client.stats.notes
            server.health = 503
            wait_until(noted(client, "is stalled"))
            server.health, server.hanging = 200, set()
            assert texts(outcomes.result(30)) == ROWS


@pytest.mark.usefixtures("patient")
def test_a_server_that_completes_nothing_is_mentioned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notes, "_QUIET_SECONDS", 0.4)
    with FakeVLLM() as server, ChatClient(endpoint(server.url)) as client:
        server.hanging = set(ROWS)
        with completing(client, ROWS) as outcomes:
            wait_until(
                noted(
                    client, f"{server.url} has completed nothing for N s; it answers test requests"
                )
            )
            server.hanging = set()
            assert texts(outcomes.result(30)) == ROWS
        wait_until(lambda: not client.stats.notes)


def test_a_slow_server_is_given_more_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five times what is usual until it is looked at, ten times until a request is cancelled."""
    with (
        FakeVLLM() as server,
        ChatClient(endpoint(server.url), max_in_flight=20, request_timeout=0.2) as client,
    ):
        monkeypatch.setattr(Server, "usual_latency", lambda _: 60.0)
        server.hanging = set(ROWS[:4])
        with completing(client, ROWS) as outcomes:
            wait_until(lambda: client.stats.completions == 36)
            time.sleep(0.4)
            server.hanging = set()
            assert texts(outcomes.result(30)) == ROWS
        assert server.asked[TEST_TEXT] == 0
        assert client.stats.requests == 40


def test_the_usual_latency_is_measured() -> None:
    with FakeVLLM() as server, ChatClient(endpoint(server.url), max_in_flight=20) as client:
        server.latency = 0.2
        (state,) = client._pool.servers
        assert state.usual_latency() == 0
        assert texts(client.complete(map(ask, ROWS))) == ROWS
        assert 0.2 <= state.usual_latency() < 30


def test_notes_that_last_are_logged_now_and_then(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watchdog, "notes_about", lambda *_: ["a note"])
    monkeypatch.setattr(watchdog, "_FIRST_LOG_SECONDS", 0.2)
    monkeypatch.setattr(watchdog, "_LOG_SECONDS", 0.3)
    began = time.time()
    with FakeVLLM() as server, ChatClient(endpoint(server.url)):
        wait_until(lambda: len(logged(caplog)) >= 2)
    assert set(logged(caplog)) == {"a note"}
    first, second, *_ = [r.created for r in caplog.records if r.getMessage() == "a note"]
    assert first - began > 0.19
    assert second - began > 0.49


def test_a_watchdog_that_fails_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fails = [True]

    def notes_about(*_: object) -> list[str]:
        if fails:
            raise LookupError(fails.pop())
        return ["a note"]

    monkeypatch.setattr(watchdog, "notes_about", notes_about)
    with FakeVLLM() as server, ChatClient(endpoint(server.url)) as client:
        wait_until(noted(client, "a note"))
    assert logged(caplog) == ["the watchdog failed: LookupError: True"]
