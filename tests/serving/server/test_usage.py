"""The memory and processor time of processes."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prefect_imageqa.serving.server.usage import own_memory, processor_seconds, total_memory

MIB = 1 << 20
MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@contextmanager
def child(code: str) -> Iterator[int]:
    """A process that has run the code and waits; gives its id."""
    command = [sys.executable, "-ISc", f"{code}; import sys; print(flush=True); sys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        yield process.pid


def test_memory_is_that_of_the_processes_themselves() -> None:
    with child("x = b'1' * (64 << 20)") as large, child("pass") as small:
        assert 64 * MIB < own_memory([large]) < 84 * MIB
        assert own_memory([large, small]) == own_memory([large]) + own_memory([small])
    assert own_memory([large]) == 0  # it has ended


def test_processor_time_includes_children_that_have_ended() -> None:
    compute = "[None for _ in iter(lambda: time.process_time() < .3, False)]"
    code = f"import os, time; os.fork() or ({compute}, os._exit(0)); os.wait()"
    with child(code) as busy, child("pass") as idle:
        assert 0.2 < processor_seconds([busy]) < 3
        assert processor_seconds([idle]) < 0.2
    assert processor_seconds([busy]) == 0


def test_the_lowest_limit_of_the_cgroups_counts(tmp_path: Path) -> None:
    membership, mount = tmp_path / "membership", tmp_path / "cgroup"
    for path, text in {
        "memory/a/memory.limit_in_bytes": "9223372036854771712\n",
        "memory/memory.limit_in_bytes": f"{100 * MIB}\n",
        "b/c/memory.max": "max\n",
        "b/memory.max": f"{50 * MIB}\n",
    }.items():
        (mount / path).parent.mkdir(parents=True, exist_ok=True)
        (mount / path).write_text(text)
    for lines, limit in {
        "4:memory:/a\n1:cpu,cpuacct:/a": 100 * MIB,
        "4:memory:/not/in/this/container": 100 * MIB,
        "0::/b/c": 50 * MIB,
        "0::/": MACHINE,
        "": MACHINE,
    }.items():
        membership.write_text(lines)
        assert total_memory(membership, mount) == limit
    assert 0 < total_memory() <= MACHINE
