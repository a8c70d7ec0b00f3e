"""Several machines on one: Prefect workers with homes, and if wanted namespaces, of their own."""

import os
import signal
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from socket import SHUT_WR, create_connection, socket
from typing import Self
from urllib.parse import urlsplit

import psutil
from prefect.settings import PREFECT_API_URL

HOST = "10.77.0.1"
"""This machine, as the namespaces see it."""


@dataclass
class Namespaces:
    """Namespaces of Linux that reach nothing but this machine; needs root.

    Attributes:
        names: of the network namespaces.
        stack: closes what is open.
    """

    names: list[str]
    stack: ExitStack

    @classmethod
    @contextmanager
    def opened(cls, count: int) -> Iterator[Self]:
        """Create some."""
        with ExitStack() as stack:
            _ip(f"address add {HOST}/32 dev lo", stack, f"address delete {HOST}/32 dev lo")
            names = [f"machine-{number}" for number in range(count)]
            for number, name in enumerate(names, 1):
                here, there = f"here-{number}", f"there-{number}"
                _ip(f"netns add {name}", stack, f"netns delete {name}")
                added = f"link add {here} type veth peer name {there} netns {name}"
                _ip(added, stack, f"link delete {here}")
                _ip(f"address add 10.77.{number}.1/24 dev {here}")
                _ip(f"link set {here} up")
                _ip(f"-n {name} address add 10.77.{number}.2/24 dev {there}")
                _ip(f"-n {name} link set {there} up")
                _ip(f"-n {name} link set lo up")
                _ip(f"-n {name} route add {HOST} via 10.77.{number}.1")
            yield cls(names, stack)

    def relay(self, url: str) -> str:
        """The URL of a loopback server for the namespaces, and for this machine."""
        parts = urlsplit(url)
        server = _Relay((HOST, 0), _Connection)
        server.target = (str(parts.hostname), int(parts.port or 0))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.stack.callback(server.server_close)
        self.stack.callback(server.shutdown)
        return parts._replace(netloc=f"{HOST}:{server.server_address[1]}").geturl()


def _ip(command: str, stack: ExitStack | None = None, undo: str = "") -> None:
    subprocess.run(["ip", *command.split()], check=True)
    if stack:
        stack.callback(_ip, undo)


class _Relay(socketserver.ThreadingTCPServer):
    daemon_threads = True
    target: tuple[str, int]


class _Connection(socketserver.BaseRequestHandler):
    server: _Relay

    def handle(self) -> None:
        with create_connection(self.server.target) as other:
            threading.Thread(target=_copy, args=(other, self.request), daemon=True).start()
            _copy(self.request, other)


def _copy(source: socket, target: socket) -> None:
    try:
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(SHUT_WR)
    except OSError:  # one side is gone
        return


@dataclass
class Machines:
    """Prefect workers, each with its own home and working directory.

    Attributes:
        folder: of their logs, homes and working directories.
        pool: work pool that they poll.
        namespaces: if given, each has files, processes and a network of its own.
        processes: the workers.
    """

    folder: Path
    pool: str
    namespaces: Namespaces | None = None
    processes: "list[subprocess.Popen[bytes]]" = field(default_factory=list)

    @contextmanager
    def running(self) -> Iterator[Self]:
        """Stop them all in the end."""
        try:
            yield self
        finally:
            for process in self.processes:
                if process.poll() is None:
                    entered = psutil.Process(process.pid)  # `unshare` ignores the signal
                    worker = entered.children()[0] if self.namespaces else entered
                    worker.send_signal(signal.SIGTERM)
            for process in self.processes:
                try:
                    process.wait(60)
                finally:
                    process.kill()

    def start(self, count: int) -> None:
        """Start some, each of which executes one flow run at a time."""
        command = [str(Path(sys.executable).with_name("prefect")), "worker", "start"]
        command += ["--pool", self.pool, "--limit", "1"]
        for number in range(count):
            home, work = self.folder / f"home-{number}", self.folder / f"work-{number}"
            home.mkdir()
            work.mkdir()
            environment = {
                **os.environ,
                "HOME": str(home),
                "PREFECT_HOME": str(home / ".prefect"),
                "PREFECT_API_URL": str(PREFECT_API_URL.value()),
                "PREFECT_WORKER_QUERY_SECONDS": "1",
            }
            with (self.folder / f"worker-{number}.log").open("wb") as log:
                started = subprocess.Popen(
                    [*self._entered(number), *command],
                    env=environment,
                    cwd=work,
                    stdout=log,
                    stderr=log,
                )
            self.processes.append(started)

    def flow_runs(self) -> list[psutil.Process]:
        """The processes of flow runs, and all that belongs to them."""
        workers = [psutil.Process(process.pid) for process in self.processes]
        return [each for worker in workers for each in worker.children(recursive=True)]

    def _entered(self, number: int) -> list[str]:
        """The command that enters the namespaces of a machine, in which the folder is empty."""
        if self.namespaces is None:
            return []
        enter = ["ip", "netns", "exec", self.namespaces.names[number], "unshare", "--mount"]
        enter += ["--pid", "--uts", "--fork", "--mount-proc", "--kill-child", "sh", "-c"]
        start = f"hostname machine-{number} && mount -t tmpfs none {self.folder}"
        return [*enter, f'{start} && mkdir "$HOME" && cd "$HOME" && exec "$@"', "sh"]
