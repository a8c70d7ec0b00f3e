"""Calls the command line in this process."""

import sys
from collections.abc import Callable

import prefect.main  # noqa: F401  # its log handler keeps this stderr: a test's would be closed
import pytest
from prefect_imageqa.flows.cli.main import main

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    """Calls `prefect-imageqa` as a shell does; returns its exit code, stdout and stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["prefect-imageqa", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            main()
        code = exit_info.value.code or 0
        assert isinstance(code, int)
        return code, *capfd.readouterr()

    return run
