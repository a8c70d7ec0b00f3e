"""Recovery: a server that died, hangs or needs too much memory is restarted, within limits."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from prefect_imageqa.serving.errors import ServerError
from prefect_imageqa.serving.server import recovery as recovery_module
from prefect_imageqa.serving.server.launch import ServerOptions
from prefect_imageqa.serving.server.recovery import Recovery
from prefect_imageqa.serving.server.server import VLLMServer

MakeOptions = Callable[..., ServerOptions]


def tree(server: VLLMServer) -> list[psutil.Process]:
    supervisor = psutil.Process(server.process.pid)
    return [supervisor, *supervisor.children(recursive=True)]


def kill(server: VLLMServer) -> None:
    """Kill the server's processes, but not their supervisor, and wait until it has ended."""
    for process in tree(server)[1:]:
        with suppress(psutil.NoSuchProcess):  # the supervisor may have ended it already
            process.kill()
    server.process.wait(60)


def wait_until(condition: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)


def starts(server: VLLMServer) -> int:
    return server.log_file.read_text().count("Loading the weights")


def test_threads_wait_for_the_same_restart(
    options: MakeOptions, caplog: pytest.LogCaptureFixture
) -> None:
    with VLLMServer(options("serve")) as server, ThreadPoolExecutor(6) as pool:
        recovery = Recovery(server, lambda: 0)
        kill(server)
        for future in [pool.submit(recovery.recover) for _ in range(6)]:
            future.result(60)
        assert server.probe.is_healthy()
        assert starts(server) == 2
    assert "restart 1: the vLLM server for checkpoint was ended by signal 9" in caplog.text


def test_a_server_that_stops_answering_is_restarted(
    options: MakeOptions, mode: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery_module, "_HANG_TIMEOUT", 0.5)
    with VLLMServer(options(str(mode))) as server, ThreadPoolExecutor(1) as pool:
        mode.write_text("unhealthy")
        first = server.process.pid
        recovered = pool.submit(Recovery(server, lambda: 0).recover)
        wait_until(lambda: server.process.pid != first)
        monkeypatch.setattr(recovery_module, "_HANG_TIMEOUT", 60.0)
        mode.write_text("serve")
        recovered.result(60)
        assert starts(server) == 2


def test_a_server_that_becomes_healthy_again_is_not_restarted(
    options: MakeOptions, mode: Path
) -> None:
    with VLLMServer(options(str(mode))) as server, ThreadPoolExecutor(1) as pool:
        mode.write_text("unhealthy")
        recovered = pool.submit(Recovery(server, lambda: 0).recover)
        time.sleep(0.3)
        assert not recovered.done()
        mode.write_text("serve")
        recovered.result(60)
        assert starts(server) == 1


def test_recovery_gives_up_after_failed_restarts_and_shows_the_log(
    options: MakeOptions, mode: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery_module, "MAX_RESTARTS_WITHOUT_PROGRESS", 2)
    monkeypatch.setattr(recovery_module, "_FIRST_DELAY", 0.0)
    with VLLMServer(options(str(mode))) as server:
        mode.write_text("die")
        kill(server)
        recovery = Recovery(server, lambda: 0)
        for _ in range(2):  # the second time, nothing is started any more
            with pytest.raises(ServerError, match=r"^gave up after 2 restarts") as death:
                recovery.recover()
        assert starts(server) == 3
        assert "ended with code 3" in str(death.value)
        assert str(death.value).endswith("RuntimeError: the weights are torn")


def test_progress_resets_the_limit_of_restarts(
    options: MakeOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery_module, "MAX_RESTARTS_WITHOUT_PROGRESS", 1)
    monkeypatch.setattr(recovery_module, "MAX_RESTARTS", 3)
    monkeypatch.setattr(recovery_module, "_FIRST_DELAY", 0.0)
    completions = 0
    with VLLMServer(options("serve")) as server:
        recovery = Recovery(server, lambda: completions)

        def kill_and_recover(*, expected: bool = False) -> None:
            kill(server)
            recovery.recover(expected=expected)

        for completions in (1, 2):  # noqa: B007 - read by the recovery
            kill_and_recover()
        with pytest.raises(ServerError, match="gave up after 1 restarts without a completion"):
            kill_and_recover()
        recovery.recover(expected=True)
        with pytest.raises(ServerError, match="gave up after 3 restarts in 24 hours: "):
            kill_and_recover(expected=True)


def test_a_stop_takes_precedence_over_a_restart(options: MakeOptions, mode: Path) -> None:
    server = VLLMServer(options(str(mode)))
    with server, ThreadPoolExecutor(2) as pool:
        mode.write_text("hang")
        kill(server)
        recovery = Recovery(server, lambda: 0)
        waiting = [pool.submit(recovery.recover) for _ in range(2)]
        wait_until(lambda: starts(server) == 2)
        processes = tree(server)
        server.stop()
        for future in waiting:
            with pytest.raises(ServerError, match="or was stopped"):
                future.result(60)
    assert not psutil.wait_procs(processes, timeout=0)[1]
    assert starts(server) == 2


@pytest.mark.usefixtures("graceful")
def test_a_reason_restarts_a_server_that_looks_healthy_once(
    options: MakeOptions, caplog: pytest.LogCaptureFixture
) -> None:
    with VLLMServer(options("serve", "--hung")) as server, ThreadPoolExecutor(3) as pool:
        processes = tree(server)
        recovery = Recovery(server, lambda: 0)
        began = time.monotonic()
        for future in [pool.submit(recovery.recover, "is stalled: 3 requests") for _ in range(3)]:
            future.result(60)
        assert time.monotonic() - began < 40  # the grace period is a minute
        assert not psutil.wait_procs(processes, timeout=0)[1]
        assert server.probe.is_healthy()
        assert starts(server) == 2
        server.process.stop(kill=True)  # saves the grace period
    assert "restart 1: the vLLM server for checkpoint is stalled: 3 requests\n" in caplog.text


def test_a_restart_shows_its_progress(options: MakeOptions, mode: Path) -> None:
    with VLLMServer(options(str(mode))) as server, ThreadPoolExecutor(1) as pool:
        recovery = Recovery(server, lambda: 0)
        assert recovery.progress == ""
        mode.write_text("unhealthy")
        recovering = pool.submit(recovery.recover)
        wait_until(lambda: recovery.progress.startswith("vLLM does not answer: waiting, "))
        kill(server)
        wait_until(lambda: recovery.progress.endswith("s of 120, Loading the weights"))
        assert recovery.progress.startswith("restarting vLLM: ")
        mode.write_text("serve")
        recovering.result(60)
        assert recovery.progress == ""


def test_restarts_in_a_row_wait_longer_each_time(
    options: MakeOptions,
    mode: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(VLLMServer, "pause", lambda _self, seconds: waits.append(seconds))
    monkeypatch.setattr(recovery_module, "_MAX_DELAY", 6.0)
    with VLLMServer(options(str(mode))) as server:
        recovery = Recovery(server, lambda: 0)
        mode.write_text("die")
        waits.clear()
        with pytest.raises(ServerError, match="gave up after 5 restarts"):
            recovery.recover("is stalled")
    assert [seconds for seconds in waits if seconds >= 1] == [2, 4, 6, 6]
    assert (
        "restart 2 in 2 s: the vLLM server for checkpoint ended with code 3 (RuntimeError"
        in caplog.text
    )


def test_a_stop_ends_the_wait_before_a_restart(
    options: MakeOptions, mode: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery_module, "_FIRST_DELAY", 600.0)
    monkeypatch.setattr(recovery_module, "_MAX_DELAY", 600.0)
    with ThreadPoolExecutor(1) as pool, VLLMServer(options(str(mode))) as server:
        recovery = Recovery(server, lambda: 0)
        mode.write_text("die")
        kill(server)
        recovering = pool.submit(recovery.recover)
        wait_until(lambda: recovery.progress == "restarting vLLM in 600 s")
        server.stop()
        with pytest.raises(ServerError, match="or was stopped"):
            recovering.result(60)


def test_too_much_memory_is_a_reason_for_a_restart_but_not_soon_after_the_last(
    options: MakeOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery_module, "_MIN_UPTIME_IN_STARTS", 0)
    with VLLMServer(replace(options("serve"), memory_share=1e-6)) as server:
        recovery = Recovery(server, lambda: 0)
        assert recovery.recycling_reason() == ""
        monkeypatch.setattr(recovery_module, "_MIN_UPTIME", 0.0)
        reason = recovery.recycling_reason()
        assert reason.startswith("uses 0.0 GiB, more than 0.0 (0% of what")
        recovery.recover(reason)
        assert starts(server) == 2
        kill(server)
        assert recovery.recycling_reason() == ""


@pytest.mark.parametrize("share", [0.8, 1.0])
def test_a_server_within_its_memory_is_not_restarted(
    share: float, options: MakeOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery_module, "_MIN_UPTIME_IN_STARTS", 0)
    monkeypatch.setattr(recovery_module, "_MIN_UPTIME", 0.0)
    with VLLMServer(replace(options("serve"), memory_share=share)) as server:
        assert Recovery(server, lambda: 0).recycling_reason() == ""
