"""`VLLMServer`: starts a vLLM server, waits until it is healthy, restarts and stops it."""

import http.client
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
    local_checkpoint,
    serve_command,
    serve_environment,
)
from .process import OwnedProcess
from .vllm_python import find_vllm_python

_LOGGER = logging.getLogger("prefect_imageqa.serving")
_POLL_SECONDS = 0.25
_PROGRESS_SECONDS = 10.0


class VLLMServer:
    """A vLLM server process tree, owned by this process.

    Use it as a context manager, or call `start` and `stop`. However this process ends, the
    server's processes end with it. Progress is logged to "prefect_imageqa.serving".

    Attributes:
        url: its base URL, such as http://127.0.0.1:8000.
        model_name: the model name in requests; never a path.
        log_file: the server's output.

    Raises:
        ServerError: There is no interpreter with vLLM, or no such model.
    """

    def __init__(self, options: ServerOptions) -> None:
        self._options = options
        self._python = find_vllm_python(options.python)
        checkpoint = local_checkpoint(options.model)
        self.model_name = options.served_model_name or (
            checkpoint.name if checkpoint else str(options.model)
        )
        self._port = options.port or free_port(options.host)
        self._address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(options.host, options.host)  # noqa: S104
        bracketed = f"[{self._address}]" if ":" in self._address else self._address
        self.url = f"http://{bracketed}:{self._port}"
        self.log_file = options.log_file or default_log_file(self.model_name, self._port)
        self._process: OwnedProcess | None = None
        self._stopped = True
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
        self._stopped = False
        try:
            self._launch(append=False)
        except BaseException:  # an interrupt too must not leave a server behind
            self.stop()
            raise

    def restart(self) -> None:
        """End the server's remaining processes and start it again: same port, key and model name.

        Appends to the same log. Any thread may call it, but only one at a time. A concurrent `stop`
        takes precedence.

        Raises:
            ServerError: As `start` does, or the server was stopped.
        """
        self.process.stop()
        self._launch(append=True)

    def stop(self) -> None:
        """End all processes of the server: SIGTERM, ten seconds, SIGKILL. May be called twice."""
        with self._launch_lock:
            self._stopped = True
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

    def wait(self) -> None:
        """Wait until the server ends by itself, which it should not.

        Raises:
            ServerError: It is not started, or it has ended; the message has the end of its log.
        """
        self.process.wait()
        self.check()

    def is_healthy(self) -> bool:
        """Whether the server answers on /health within two seconds."""
        connection = http.client.HTTPConnection(self._address, self._port, timeout=2)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def error(self, what: str) -> ServerError:
        """An error about the server with the end of its log; `what` is the predicate."""
        tail = self.process.log_tail()
        return ServerError(
            f"the vLLM server for {self.model_name} {what}. Log: {self.log_file}, last lines:\n"
            f"{tail or '(empty)'}"
        )

    def _launch(self, *, append: bool) -> None:
        with self._launch_lock:  # so that nothing is started after `stop`
            if self._stopped:
                raise self._not_started()
            check_port_free(self._options.host, self._port)
            self._process = OwnedProcess(
                serve_command(self._options, self._python, self._port, self.model_name),
                serve_environment(self._options, self._python),
                self.log_file,
                append=append,
            )
        self._wait_until_healthy()

    def _wait_until_healthy(self) -> None:
        began = time.monotonic()
        deadline = began + self._options.startup_timeout
        next_report = began + _PROGRESS_SECONDS
        _LOGGER.info("starting vLLM for %s; log: %s", self.model_name, self.log_file)
        while not self.is_healthy():
            self.check()
            now = time.monotonic()
            if now > deadline:
                raise self.error(
                    f"was not healthy within {self._options.startup_timeout:.0f} s (a large model "
                    "may need a longer startup_timeout)"
                )
            if now > next_report:
                next_report += _PROGRESS_SECONDS
                last = self.process.last_line() or "importing vLLM"
                _LOGGER.info("starting vLLM for %s: %.0f s, %s", self.model_name, now - began, last)
            time.sleep(_POLL_SECONDS)
        self.check()  # otherwise it was another server that answered
        _LOGGER.info(
            "vLLM serves %s on %s after %.0f s",
            *(self.model_name, self.url, time.monotonic() - began),
        )

    def _not_started(self) -> ServerError:
        return ServerError(f"the vLLM server for {self.model_name} is not started or was stopped")
