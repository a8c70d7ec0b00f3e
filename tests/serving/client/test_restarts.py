"""A server that the client's owner can restart."""

import threading
import time
from collections.abc import Iterator

import pytest
from chat import ask, completing, endpoint, noted, texts, wait_until
from fake_vllm import FakeVLLM
from prefect_imageqa.serving.client import ChatClient, pool, watchdog
from prefect_imageqa.serving.client.servers import Server
from prefect_imageqa.serving.errors import ServerError
from prefect_imageqa.serving.types import FailureKind

pytestmark = pytest.mark.usefixtures("quick")

ROWS = [str(number) for number in range(40)]


class FakeRecovery:
    """Restarts a fake server as `serving.server.Recovery` does.

    Attributes:
        reasons: why it was restarted.
        active: how many requests the server was working on each time.
        memory: why it should be restarted once it is idle.
        computes: whether it uses the processor.
        error: raised instead of a restart.
        repaired: whether a restart helps.
        may_end: a restart is not complete before it is set.
    """

    def __init__(self, server: FakeVLLM) -> None:
        self._server = server
        self.reasons: list[str] = []
        self.active: list[int] = []
        self.memory = ""
        self.computes = False
        self.error: Exception | None = None
        self.repaired = True
        self.may_end = threading.Event()
        self.may_end.set()
        self.progress = ""

    def recover(self, reason: str = "", **_: object) -> None:
        self.reasons.append(reason)
        self.active.append(len(self._server.active))
        self._server.stop()
        self.progress, self.memory = "restarting vLLM: 23 s of 900", ""
        try:
            assert self.may_end.wait(30)
            if self.error:
                raise self.error
        finally:
            self.progress = ""
        if self.repaired:
            self._server.frozen, self._server.status = False, 200
        self._server.start()

    def recycling_reason(self) -> str:
        return self.memory

    def processor_seconds(self) -> float:
        return time.monotonic() if self.computes else 0.0


@pytest.fixture
def server() -> Iterator[FakeVLLM]:
    with FakeVLLM() as server:
        yield server


@pytest.fixture
def recovery(server: FakeVLLM) -> FakeRecovery:
    return FakeRecovery(server)


@pytest.fixture
def request_timeout() -> float:
    """Long, so that a busy machine makes no request late; some tests override it."""
    return 300.0


@pytest.fixture
def client(
    server: FakeVLLM, recovery: FakeRecovery, request_timeout: float
) -> Iterator[ChatClient]:
    with ChatClient(
        endpoint(server.url),
        8,
        server_wait=0.1,
        request_timeout=request_timeout,
        recovery=recovery,
    ) as client:
        yield client


@pytest.mark.usefixtures("watchful")
def test_a_server_that_hangs_is_restarted(
    server: FakeVLLM, recovery: FakeRecovery, client: ChatClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.frozen = True
    recovery.may_end.clear()
    with completing(client, ROWS) as outcomes:
        wait_until(noted(client, ", not even to a test request: restarting vLLM: 23 s of 900"))
        time.sleep(0.3)  # more than `server_wait`, which is for servers of others
        monkeypatch.setattr(watchdog, "QUIET_SECONDS", 60.0)
        recovery.may_end.set()
        assert texts(outcomes.result(30)) == ROWS
    (reason,) = recovery.reasons
    assert reason.startswith("is stalled: 8 requests and no reply for ")
    assert {server.asked[row] for row in ROWS[:8]} == {2}
    assert {server.asked[row] for row in ROWS[8:]} == {1}


@pytest.mark.usefixtures("watchful")
def test_a_server_that_computes_is_given_the_time_of_a_request(
    server: FakeVLLM, recovery: FakeRecovery, client: ChatClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long prompt on a processor takes minutes, during which vLLM answers nothing."""
    server.frozen = recovery.computes = True
    recovery.may_end.clear()
    with completing(client, ROWS) as outcomes:
        (state,) = client._pool.servers
        wait_until(lambda: state.activity == "it computes: perhaps a long prompt")
        assert not recovery.reasons
        monkeypatch.setattr(Server, "silence", lambda *_: 301.0)  # more than `request_timeout`
        wait_until(noted(client, "is stalled"))
        monkeypatch.setattr(watchdog, "QUIET_SECONDS", 60.0)
        recovery.may_end.set()
        assert texts(outcomes.result(30)) == ROWS
    assert len(recovery.reasons) == 1


def test_a_server_that_dies_is_restarted(
    server: FakeVLLM, recovery: FakeRecovery, client: ChatClient
) -> None:
    server.frozen = True
    with completing(client, ROWS) as outcomes:
        wait_until(lambda: len(server.active) == 8)
        server.stop()
        assert texts(outcomes.result(30)) == ROWS
    assert recovery.reasons == [""]  # whether it is dead, `recover` finds out


def test_a_restart_that_does_not_help_is_repeated(
    server: FakeVLLM, recovery: FakeRecovery, client: ChatClient
) -> None:
    server.status, recovery.repaired = 500, False
    with completing(client, ROWS) as outcomes:
        wait_until(lambda: len(recovery.reasons) >= 3)
        recovery.repaired = True
        assert texts(outcomes.result(30)) == ROWS
    assert set(recovery.reasons[1:]) == {"answers no request (HTTP 500: simulated failure)"}


GAVE_UP = "gave up after 5 restarts without a completion: it hangs"


@pytest.mark.usefixtures("watchful")
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ServerError(GAVE_UP), f"^{GAVE_UP}$"),
        (MemoryError("no memory to fork"), r"cannot be restarted \(MemoryError: no memory to fork"),
    ],
    ids=["given up", "unexpected"],
)
def test_requests_end_when_the_server_cannot_be_restarted(
    server: FakeVLLM, recovery: FakeRecovery, client: ChatClient, error: Exception, message: str
) -> None:
    recovery.error = error
    server.frozen = True
    with pytest.raises(ServerError, match=message):
        client.complete(map(ask, ROWS))
    assert len(recovery.reasons) == 1
    with pytest.raises(ServerError, match=message):
        client.complete([ask("hello")])


def test_a_request_in_flight_at_two_losses_is_suspected(
    server: FakeVLLM, recovery: FakeRecovery, client: ChatClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "TEST_SECONDS", 0.2)  # one without a reply in time tells nothing
    server.frozen, recovery.repaired = True, False
    with completing(client, ["bad"]) as outcomes:
        for _ in range(2):
            wait_until(lambda: server.active == ["bad"])
            server.stop()
        (failure,) = outcomes.result(30)
    assert getattr(failure, "kind", None) is FailureKind.CRASH


def test_a_server_that_uses_too_much_memory_is_restarted_when_it_is_idle(
    server: FakeVLLM,
    recovery: FakeRecovery,
    client: ChatClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watchdog, "_REFRESH_SECONDS", 0.05)
    server.latency = 0.1
    with completing(client, ROWS) as outcomes:
        wait_until(lambda: client.stats.completions > 10)
        recovery.may_end.clear()
        recovery.memory = "uses 9.1 GiB, more than 9.0"
        wait_until(noted(client, f"{server.url} uses 9.1 GiB, more than 9.0: "))
        recovery.may_end.set()
        assert texts(outcomes.result(30)) == ROWS
    assert (recovery.reasons, recovery.active) == (["uses 9.1 GiB, more than 9.0"], [0])
    assert {server.asked[row] for row in ROWS} == {1}


@pytest.mark.parametrize("request_timeout", [1.0])
def test_a_request_that_is_never_answered_does_not_prevent_that(
    server: FakeVLLM,
    recovery: FakeRecovery,
    client: ChatClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watchdog, "_REFRESH_SECONDS", 0.05)
    server.frozen = True
    with completing(client, ["hello"]) as outcomes:
        wait_until(lambda: server.active)
        recovery.memory = "uses 9.1 GiB, more than 9.0"
        assert texts(outcomes.result(30)) == ["hello"]
    assert recovery.reasons == ["uses 9.1 GiB, more than 9.0"]
    assert server.asked["hello"] == 2


def test_a_server_that_dies_before_it_is_idle(
    server: FakeVLLM,
    recovery: FakeRecovery,
    client: ChatClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watchdog, "_REFRESH_SECONDS", 0.05)
    server.frozen = True
    with completing(client, ROWS) as outcomes:
        wait_until(lambda: len(server.active) == 8)
        recovery.memory = "uses 9.1 GiB, more than 9.0"
        wait_until(noted(client, "uses 9.1 GiB"))
        server.stop()
        assert texts(outcomes.result(30)) == ROWS
    assert recovery.reasons == ["uses 9.1 GiB, more than 9.0"]
