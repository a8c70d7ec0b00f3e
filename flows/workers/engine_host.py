"""The process in which `HostedEngine` runs an engine: its folder is the only argument."""

import shutil
import sys
import time
from importlib import import_module
from pathlib import Path

import orjson

from ...serving.server.process import terminate_on_signals
from ...tasks.errors import ImageQAError
from ...tasks.runs.workers import Workers
from .engine import Engine, StartedWorker
from .hosted_engine import FAILURE, JOBS, POLL_SECONDS, SETTINGS, STATES, STOPS
from .job import WorkerJob


def main(folder: Path) -> int:
    """Run the engine until SIGTERM, or until it fails."""
    workers = Workers.model_validate_json((folder / SETTINGS).read_bytes())
    connect = import_module(f".{workers.engine}_engine", __package__).connect
    try:
        # In this order, as Ray has its own handler of SIGTERM, which closes nothing.
        with connect(workers) as engine, terminate_on_signals():
            _serve(engine, folder)
    except ImageQAError as error:
        (folder / FAILURE).write_text(str(error))
        return 1
    except SystemExit:  # ended by a signal: the run may have been killed, and removes nothing
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return 0


def _serve(engine: Engine, folder: Path) -> None:
    started: dict[str, StartedWorker] = {}
    while True:
        for path in folder.glob(f"*{JOBS}"):
            job = WorkerJob.model_validate_json(path.read_bytes())
            path.unlink()
            started[job.worker] = engine.start(job)
        for path in folder.glob(f"*{STOPS}"):
            if path.stem in started:
                path.unlink()
                started[path.stem].stop()
        states = {name: (worker.note, worker.ended) for name, worker in started.items()}
        written = folder / f"{STATES}.new"
        written.write_bytes(orjson.dumps(states))
        written.replace(folder / STATES)
        time.sleep(POLL_SECONDS)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
