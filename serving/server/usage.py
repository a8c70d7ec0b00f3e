"""What processes use: memory and processor time; and how much memory they may use."""

import os
from collections.abc import Iterable
from pathlib import Path

_CGROUP_LIMITS = {
    # controllers in /proc/self/cgroup: mount point below /sys/fs/cgroup, file
    "": ("", "memory.max"),  # version 2
    "memory": ("memory", "memory.limit_in_bytes"),  # version 1
}


def own_memory(processes: Iterable[int]) -> int:
    """Bytes of memory that the processes do not share: what grows when one leaks.

    Shared memory and files, such as weights, would be counted once for each process.
    """
    total = 0
    for process in processes:
        for line in _read(Path(f"/proc/{process}/status")).splitlines():
            if line.startswith("RssAnon:"):
                total += int(line.split()[1]) * 1024
    return total


def processor_seconds(processes: Iterable[int]) -> float:
    """Processor time of the processes and of their children that have ended."""
    ticks = 0
    for process in processes:
        # pid (name) state ...: utime, stime, cutime and cstime are fields 14 to 17.
        fields = _read(Path(f"/proc/{process}/stat")).rpartition(")")[2].split()
        ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def total_memory(
    membership: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")
) -> int:
    """Bytes of memory that this process and its children may use: the machine's or the cgroup's.

    Args:
        membership: the file that names the cgroups of this process.
        mount: where the cgroups are mounted.
    """
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for line in _read(membership).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in _CGROUP_LIMITS:
            continue
        folder, file = _CGROUP_LIMITS[controllers]
        cgroup = mount / folder / path.lstrip("/")
        # A limit of an outer cgroup applies, too. In a container the path may be the host's, of
        # which only the mount point exists.
        for outer in (cgroup, *cgroup.parents):
            if outer.is_relative_to(mount):
                limits += [int(text) for text in _read(outer / file).split() if text.isdigit()]
    return min(limits)


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:  # the process has ended, or there is no such limit
        return ""
