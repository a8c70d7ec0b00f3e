"""The process of a worker: `python -m prefect_imageqa.flows.workers.process`, job on its input."""

import os
import signal
import sys
import threading

from ...tasks.errors import ImageQAError
from ..process_memory import collect_rarely, keep_little_freed_memory
from .job import WorkerJob
from .worker import work


def main() -> int:
    """Work until the run tells it to end, its input is closed, or by SIGTERM or SIGINT."""
    collect_rarely()
    keep_little_freed_memory()
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    told = sys.stdin.buffer.readline()
    threading.Thread(target=_watch_input, args=(stopped,), daemon=True).start()
    try:
        work(WorkerJob.model_validate_json(told), stopped)
    except ImageQAError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _watch_input(stopped: threading.Event) -> None:
    """The input is closed when the process of the run ends, however it does."""
    # Not by `sys.stdin`, whose lock Python needs when it ends: that would crash it.
    while os.read(0, 1024):
        pass
    stopped.set()


if __name__ == "__main__":
    sys.exit(main())
