"""A run that is stopped or fails says so in one sentence."""

import io
import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect.logging import get_logger
from prefect.logging.handlers import PrefectConsoleHandler
from prefect_imageqa import EndpointError, ImageQAError, Limits, StoreError, image_qa
from prefect_imageqa.flows.run_log import error_is_printed

WriteRows = Callable[[list[str]], str]
BATCHES = Limits(batch_size=2, max_in_flight=8, server_wait=1)


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
