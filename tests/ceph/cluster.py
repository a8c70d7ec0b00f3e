"""A Ceph cluster in a folder: one monitor, one storage daemon, one S3 gateway."""

import socket
import subprocess
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.error import HTTPError
from urllib.request import urlopen

KEY, SECRET = "ceph-test-key", "ceph-test-secret"
START_TIMEOUT = 180
"""Seconds; it takes about 15 on an idle machine."""

CONFIG = """
[global]
fsid = {fsid}
mon_host = v2:127.0.0.1:{mon_port}
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
keyring = {folder}/keyring
run_dir = {folder}
admin_socket = {folder}/$name.$pid.asok
log_file = {folder}/$name.log
crash_dir = {folder}
mon_data = {folder}/mon
mon_allow_pool_size_one = true
mon_cluster_log_to_file = false
osd_data = {folder}/osd
osd_crush_chooseleaf_type = 0
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 4
osd_pool_default_pgp_num = 4
osd_memory_target = 939524096
bluestore_block_size = 4294967296
bluestore_cache_size = 67108864
rgw_frontends = beast endpoint=127.0.0.1:{s3_port}
rgw_data = {folder}/rgw
rgw_thread_pool_size = 32
rgw_run_sync_thread = false
rgw_enable_usage_log = false
"""


CAPABILITIES = {
    "mon.": {"mon": "allow *"},
    "client.admin": {"mon": "allow *", "osd": "allow *"},
    "osd.0": {"mon": "allow profile osd", "osd": "allow *"},
}
"""Permissions of each daemon; the gateway runs as the administrator here."""


class CephCluster:
    """A cluster that runs while used as a context manager; on exit all its processes are killed.

    Attributes:
        url: the S3 endpoint; its user has `KEY` and `SECRET`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        mon_port, s3_port = _free_ports(2)
        self.url = f"http://127.0.0.1:{s3_port}"
        self._mon = f"v2:127.0.0.1:{mon_port}"
        self._fsid = str(uuid.uuid4())
        self._config = folder / "ceph.conf"
        self._config.write_text(
            CONFIG.format(fsid=self._fsid, folder=folder, mon_port=mon_port, s3_port=s3_port)
        )
        self._running: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def _start(self) -> None:
        for name in ("mon", "osd", "rgw"):
            (self._folder / name).mkdir()
        monmap = str(self._folder / "monmap")
        named = ("--addv", "a", f"[{self._mon}]", "--fsid", self._fsid)
        _run("monmaptool", "--create", *named, monmap)
        keyring = str(self._folder / "keyring")
        _run("ceph-authtool", "--create-keyring", keyring)
        for name, caps in CAPABILITIES.items():
            allowed = [word for area, cap in caps.items() for word in ("--cap", area, cap)]
            _run("ceph-authtool", keyring, "--gen-key", "-n", name, *allowed)
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", keyring)
        self._spawn("ceph-mon", "-f", "-i", "a")
        osd = str(uuid.uuid4())
        self._run("ceph", "osd", "new", osd)
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        self._spawn("ceph-osd", "-f", "-i", "0")
        self._run(
            *("radosgw-admin", "user", "create", "--uid=test", "--display-name=test"),
            *(f"--access-key={KEY}", f"--secret-key={SECRET}"),
        )
        self.start_gateway()

    def start_gateway(self) -> None:
        """Start the S3 gateway and wait until it responds."""
        self.gateway = self._spawn("radosgw", "-f", "-n", "client.admin")
        for _ in range(START_TIMEOUT * 10):
            assert self.gateway.poll() is None, f"radosgw died; see {self._folder}"
            try:
                with urlopen(self.url, timeout=5):  # noqa: S310
                    return
            except HTTPError:
                return
            except OSError:
                time.sleep(0.1)
        raise AssertionError(f"radosgw did not start; see {self._folder}")

    def kill_gateway(self) -> None:
        """Kill the S3 gateway, as a power failure would."""
        self.gateway.kill()
        self.gateway.wait(timeout=10)

    def _spawn(self, *command: str) -> "subprocess.Popen[bytes]":
        # Even if the tests are killed, no daemon outlives them.
        tied_to_us = ("setpriv", "--pdeathsig", "KILL", command[0], "-c", str(self._config))
        process = subprocess.Popen(
            [*tied_to_us, *command[1:]],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._running.append(process)
        return process

    def _run(self, program: str, *arguments: str) -> None:
        _run(program, "-c", str(self._config), *arguments)

    def _stop(self) -> None:
        for process in reversed(self._running):
            process.kill()  # none of its data is needed any more
            process.wait(timeout=30)


def _run(*command: str) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=START_TIMEOUT
    )
    assert done.returncode == 0, f"{' '.join(command[:3])}: {done.stderr[-2000:]}"


def _free_ports(count: int) -> list[int]:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports
