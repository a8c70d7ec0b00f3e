"""`VLLMServer`: starts a vLLM server, waits until it is healthy, restarts and stops it."""

import logging
import threading
import time
from typing import Self

from ..errors import ServerError
from .launch import (
    ServerOptions,
    check_port_free,
    default_log_file,
    free_port,
    is_exposed,
    local_checkpoint,
    serve_command,
    serve_environment,
)
from .probe import Probe
from .process import OwnedProcess
from .supervisor import descendants
from .vllm_python import find_vllm_python

_LOGGER = logging.getLogger("prefect_imageqa.serving")
_POLL_SECONDS = 0.25
_PROGRESS_SECONDS = 10.0
_PROGRESS_CHARACTERS = 100


class VLLMServer:
    """A vLLM server process tree, owned by this process.

    Use it as a context manager, or call `start` and `stop`. However this process ends, the
    server's processes end with it. Progress is logged to "prefect_imageqa.serving".

    Attributes:
        url: its base URL, such as http://127.0.0.1:8000.
        model_name: the model name in requests; never a path.
        probe: asks it whether it works.
        startup_seconds: how long its last start took.

    Raises:
        ServerError: There is no interpreter with vLLM, or no such model.
    """

    def __init__(self, options: ServerOptions) -> None:
        self.options = options
        self._python = find_vllm_python(options.python)
        checkpoint = local_checkpoint(options.model)
        self.model_name = options.served_model_name or (
            checkpoint.name if checkpoint else str(options.model)
        )
        self._port = options.port or free_port(options.host)
        address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(options.host, options.host)  # noqa: S104
        bracketed = f"[{address}]" if ":" in address else address
        self.url = f"http://{bracketed}:{self._port}"
        self.log_file = options.log_file or default_log_file(self.model_name, self._port)
        self.probe = Probe(address, self._port, self.model_name, options.api_key)
        self.startup_seconds = 0.0
        self._process: OwnedProcess | None = None
        self._stopped = threading.Event()
        self._stopped.set()
        self._began = 0.0
        self._is_starting = False
        self._launch_lock = threading.Lock()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def process(self) -> OwnedProcess:
        """The server's process tree.

        Raises:
            ServerError: It is not started.
        """
        process = self._process  # read once: another thread may stop the server
        if process is None:
            raise self._not_started()
        return process

    def start(self) -> None:
        """Start the server and return when it is healthy.

        Raises:
            ServerError: The port is in use, the server died or it was not healthy in time; none of
                its processes is left then.
        """
        if self._process is not None:
            raise ServerError(f"the vLLM server for {self.model_name} is already started")
        if is_exposed(self.options):
            _LOGGER.warning(
                "anyone who can reach %s port %s can use the server: set VLLM_API_KEY to a key",
                self.options.host,
                self._port,
            )
        self._stopped.clear()
        try:
            self._launch(append=False)
        except BaseException:  # an interrupt too must not leave a server behind
            self.stop()
            raise

    def restart(self) -> None:
        """Kill the server's remaining processes and start it again: same port, key and model name.

        Appends to the same log. Any thread may call it, but only one at a time. A concurrent `stop`
        takes precedence.

        Raises:
            ServerError: As `start` does, or the server was stopped.
        """
        self.process.stop(kill=True)
        self._launch(append=True)

    def stop(self) -> None:
        """End all processes of the server: SIGTERM, ten seconds, SIGKILL. May be called twice."""
        with self._launch_lock:
            self._stopped.set()
            process, self._process = self._process, None
        if process is not None:
            process.stop()

    def is_alive(self) -> bool:
        """Whether the server's process is running; it may still be loading the model."""
        process = self._process
        return process is not None and process.exit_code is None

    def check(self) -> None:
        """Raise if the server is not running.

        Raises:
            ServerError: It is not started, or it has ended; the message has the end of its log.
        """
        code = self.process.exit_code
        if code is not None:
            ending = (
                f"was ended by signal {code - 128}" if code > 128 else f"ended with code {code}"
            )
            raise self.error(ending)

    def pause(self, seconds: float) -> None:
        """Sleep, but no longer than until the server is stopped.

        Raises:
            ServerError: It was stopped.
        """
        if self._stopped.wait(seconds):
            raise self._not_started()

    @property
    def progress(self) -> str:
        """What the start waits for: "23 s of 900, Loading the weights"; "" if it is not starting.

        Any thread may read it.
        """
        process = self._process
        if process is None or not self._is_starting:
            return ""
        waited = f"{time.monotonic() - self._began:.0f} s of {self.options.startup_timeout:.0f}"
        return f"{waited}, {process.last_line()[:_PROGRESS_CHARACTERS] or 'importing vLLM'}"

    @property
    def uptime(self) -> float:
        """Seconds since its last start was complete; 0 before."""
        if self._is_starting or not self.is_alive():
            return 0.0
        return max(0.0, time.monotonic() - self._began - self.startup_seconds)

    def engine_processes(self) -> list[int]:
        """Process ids of all its processes but the first, which only serves the API."""
        api_and_engines = descendants(self.process.pid)
        return api_and_engines[1:]

    def error(self, what: str) -> ServerError:
        """An error about the server with the end of its log; `what` is the predicate."""
        tail = self.process.log_tail()
        return ServerError(
            f"the vLLM server for {self.model_name} {what}. Log: {self.log_file}, last lines:\n"
            f"{tail or '(empty)'}"
        )

    def _launch(self, *, append: bool) -> None:
        with self._launch_lock:  # so that nothing is started after `stop`
            if self._stopped.is_set():
                raise self._not_started()
            check_port_free(self.options.host, self._port)
            self._process = OwnedProcess(
                serve_command(self.options, self._python, self._port, self.model_name),
                serve_environment(self.options, self._python),
                self.log_file,
                append=append,
            )
            self._began, self._is_starting = time.monotonic(), True
        try:
            self._wait_until_healthy()
        finally:
            self._is_starting = False

    def _wait_until_healthy(self) -> None:
        next_report = self._began + _PROGRESS_SECONDS
        _LOGGER.info("starting vLLM for %s; log: %s", self.model_name, self.log_file)
        while not self.probe.is_healthy():
            self.check()
            now = time.monotonic()
            if now - self._began > self.options.startup_timeout:
                raise self.error(
                    f"was not healthy within {self.options.startup_timeout:.0f} s (a large model "
                    "may need a longer startup_timeout)"
                )
            if now > next_report:
                next_report += _PROGRESS_SECONDS
                _LOGGER.info("starting vLLM for %s: %s", self.model_name, self.progress)
            self.pause(_POLL_SECONDS)
        self.check()  # otherwise it was another server that answered
        self.startup_seconds = time.monotonic() - self._began
        _LOGGER.info(
            "vLLM serves %s on %s after %.0f s", self.model_name, self.url, self.startup_seconds
        )

    def _not_started(self) -> ServerError:
        return ServerError(f"the vLLM server for {self.model_name} is not started or was stopped")
