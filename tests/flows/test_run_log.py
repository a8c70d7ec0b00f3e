"""A run that is stopped or fails says so in one sentence."""

import io
import json
import logging
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect.exceptions import TerminationSignal
from prefect.logging import get_logger
from prefect.logging.handlers import PrefectConsoleHandler
from prefect_imageqa import EndpointError, ImageQAError, Limits, Pilot, StoreError, image_qa
from prefect_imageqa.flows import batches
from prefect_imageqa.flows.run_log import error_is_printed, forward_logs

WriteRows = Callable[[list[str]], str]
BATCHES = Limits(batch_size=2, max_in_flight=8, server_wait=1)
NO_PROOF = Pilot(image_proof=False)


def once_asked(stub: Any, act: Callable[[], object], requests: int = 4) -> None:
    """Do something as soon as a stub has received some requests."""

    def wait() -> None:
        while stub.stats()["requests"] < requests:
            time.sleep(0.02)
        act()

    threading.Thread(target=wait, daemon=True).start()


def said(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    """What was logged at least at a level."""
    return [one.getMessage() for one in caplog.records if one.levelno >= level]


def test_an_interrupted_run(
    start_stub: Any, write_rows: WriteRows, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stub = start_stub()
    once_asked(stub, lambda: os.kill(os.getpid(), signal.SIGINT))
    rows = write_rows([f"STUB hang {number}" for number in range(8)])
    with pytest.raises(KeyboardInterrupt):
        image_qa(rows, str(tmp_path / "out"), endpoint=stub.url, limits=BATCHES)
    expected = "interrupted: run it again with the same parameters to resume"
    assert said(caplog, logging.WARNING) == [expected]


def test_a_run_that_is_terminated_again_stores_the_replies_that_it_has(
    start_stub: Any, write_rows: WriteRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefect may send the signal several times when it cancels a run."""

    def terminate() -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    def terminate_once_answered() -> None:
        while stub.stats()["replies"].get("200", 0) < 6:
            time.sleep(0.02)
        time.sleep(1)  # until the replies have arrived, too
        terminate()

    def store_replies(*arguments: Any) -> None:
        terminate()
        store(*arguments)

    store = batches._store_replies
    monkeypatch.setattr(batches, "_store_replies", store_replies)
    stub = start_stub()
    answer = tmp_path / "answer"
    rows = write_rows([*map(str, range(6)), f"STUB until {answer} 6", f"STUB until {answer} 7"])
    limits = Limits(batch_size=8, max_in_flight=8)
    run: dict[str, Any] = {"endpoint": stub.url, "limits": limits, "pilot": NO_PROOF}
    once_asked(stub, terminate_once_answered, requests=8)
    before = signal.signal(signal.SIGTERM, lambda *_: None)  # Prefect calls this one, too
    try:
        with pytest.raises(TerminationSignal):
            image_qa(rows, str(tmp_path / "out"), **run)
    finally:
        signal.signal(signal.SIGTERM, before)
    answer.touch()
    summary = image_qa(rows, str(tmp_path / "out"), **run)
    assert (summary.ok, summary.requests) == (8, 2)


def test_a_run_whose_server_is_lost(
    start_stub: Any, write_rows: WriteRows, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stub = start_stub()
    once_asked(stub, stub.process.kill)
    rows = write_rows([f"STUB hang {number}" for number in range(8)])
    with pytest.raises(EndpointError) as caught:
        image_qa(rows, str(tmp_path / "out"), endpoint=stub.url, limits=BATCHES)
    assert said(caplog, logging.ERROR) == [str(caught.value)]
    assert caplog.text.count(str(caught.value)) == 1


def test_a_run_whose_output_is_lost(
    stub: Any, write_rows: WriteRows, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    answer, parts = tmp_path / "answer", tmp_path / "out" / "pairs"
    requests = stub.stats()["requests"]

    def lose() -> None:
        shutil.rmtree(parts, ignore_errors=True)
        parts.write_text("not a folder")
        answer.touch()

    once_asked(stub, lose, requests + 4)
    rows = write_rows([f"STUB until {answer} {number}" for number in range(8)])
    with pytest.raises(StoreError) as caught:
        image_qa(rows, str(tmp_path / "out"), endpoint=stub.url, limits=BATCHES)
    assert said(caplog, logging.WARNING) == [str(caught.value)]
    assert caplog.text.count(str(caught.value)) == 1


ESCAPES = "\x1b]0;owned\x07\n\x9b2J\u202e"
"""What a terminal would act on."""


def test_escapes_of_others_reach_neither_the_log_nor_the_error(
    stub: Any,
    drawn: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    runs_of: Callable[..., Any],
) -> None:
    """From names of files and columns, from cells, and from what a server says."""
    (drawn / f"{ESCAPES}.png").symlink_to(drawn / "images" / "000.png")
    rows = [
        {"image": f"{ESCAPES}.png", "conversation": f"STUB raw {ESCAPES}", ESCAPES: ESCAPES},
        {"image": f"{ESCAPES}/missing.png", "conversation": ESCAPES},
    ]
    dataset = drawn / f"a{ESCAPES}b.jsonl"
    dataset.write_text("\n".join(map(json.dumps, rows)))
    output = str(tmp_path / f"out{ESCAPES}")
    with pytest.raises(ImageQAError, match="no row is answered") as caught:
        image_qa(str(dataset), output, endpoint=stub.url)
    [run] = runs_of(output)
    printed = capfd.readouterr()
    said = [*caplog.messages, *printed.err.split("\n"), *printed.out.split("\n")]
    said += [str(caught.value), run.name, str(run.state.message)]
    assert any("owned" in text for text in said)
    assert not [text for text in said if not text.isprintable()]


def test_a_traceback_is_printable() -> None:
    record = logging.LogRecord("prefect.flow_runs", logging.ERROR, "", 0, "failed", (), None)
    try:
        raise ValueError(ESCAPES)
    except ValueError:
        record.exc_info = sys.exc_info()
    for shorten in logging.getLogger("prefect.flow_runs").filters:
        shorten.filter(record) if isinstance(shorten, logging.Filter) else shorten(record)  # type: ignore[operator]
    lines = logging.Formatter().format(record).split("\n")
    assert lines[-1] == r"\x9b2J\u202e"
    assert lines[-2] == r"ValueError: \x1b]0;owned\x07"
    assert all(line.isprintable() for line in lines)


def test_an_error_that_the_caller_prints_is_not_on_the_console() -> None:
    console = io.StringIO()
    handler = PrefectConsoleHandler(console)
    logging.getLogger().addHandler(handler)

    def log(error: Exception) -> None:
        get_logger("flow_runs").error("failed", exc_info=error, extra={"send_to_api": False})

    try:
        with error_is_printed(image_qa):
            log(ImageQAError("printed"))
        log(ImageQAError("not printed"))
        with error_is_printed(image_qa.with_options(retries=1)):
            log(ImageQAError("not the end"))
    finally:
        logging.getLogger().removeHandler(handler)
    assert console.getvalue().splitlines() == ["not printed", "not the end"]


def test_logs_of_client_server_and_stores_are_shown_in_the_log_of_a_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    package, run = logging.getLogger("prefect_imageqa"), logging.getLogger("a-run")
    level = package.level
    with caplog.at_level(logging.DEBUG, logger="a-run"), forward_logs(run):
        logging.getLogger("prefect_imageqa.serving").warning("%s does not answer", "S")
        logging.getLogger("prefect_imageqa.store").info("it answers again")
        logging.getLogger("prefect_imageqa.store").debug("a detail")
    logging.getLogger("prefect_imageqa.store").info("after the run")
    assert [(record.name, record.levelname, record.message) for record in caplog.records] == [
        ("a-run", "WARNING", "S does not answer"),
        ("a-run", "INFO", "it answers again"),
    ]
    assert (package.level, package.handlers, package.propagate) == (level, [], True)


def test_the_last_of_overlapping_runs_restores_the_log_of_the_package(
    caplog: pytest.LogCaptureFixture,
) -> None:
    package = logging.getLogger("prefect_imageqa")
    first, second = (forward_logs(logging.getLogger(name)) for name in ("first", "second"))
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    package.warning("one is left")
    second.__exit__(None, None, None)
    package.warning("none is left")
    assert [(record.name, record.message) for record in caplog.records] == [
        ("second", "one is left"),
        ("prefect_imageqa", "none is left"),
    ]
