"""The bench of `performance.py`: new images, and runs of each client with all that they use."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

from drawn_images import SMALL_NOISE, draw_images, new_files
from measured import Measured, measure
from prefect_imageqa.tasks.prompting.chat import DEFAULT_SYSTEM_PROMPT, DEFAULT_USER_PROMPT
from servers import QUIET

BIN = Path(sys.executable).parent
CLIENTS = Path(__file__).with_name("performance_clients.py")
OPENAI = "openai==3.51.0"
"""What the clients to compare with are written with; in an environment of its own."""
DRAWN = 256
"""Different pictures against the stub, which does not look at them."""

EMPTY_FLOW = """
from prefect import flow

@flow
def empty():
    pass

empty()
"""


@dataclass(frozen=True)
class Run:
    """One measured run of a client.

    Attributes:
        rows: how many rows it asked about.
        seconds: of the job, by its own clock: without start-up and exit.
        wall: seconds from the start of the process until it ended.
        cpu: seconds of CPU of all its processes.
        peak_mib: peak memory of its largest process.
        tree_mib: the same of all its processes together, where sampled.
        queue: the longest queue at a server, by its slots, where sampled.
        limits: of requests in flight over time, where sampled.
    """

    rows: int
    seconds: float
    wall: float
    cpu: float
    peak_mib: float
    tree_mib: float
    queue: float = 0
    limits: Sequence[int] = ()

    @property
    def rate(self) -> float:
        """Rows per second of the job."""
        return self.rows / self.seconds


Runs = dict[str, list[Run]]
"""The runs of a scenario by contestant."""


class Bench:
    """Where and how to measure.

    Attributes:
        folder: for images and outputs; emptied between runs.
        repeats: how often each contestant runs.
        quick: whether to take few rows, to see that everything works.
    """

    def __init__(self, folder: Path, environments: Path, repeats: int, quick: bool) -> None:
        self.folder, self.repeats, self.quick = folder, repeats, quick
        self._environments, self._numbers = environments, count()
        self._home, self._prepared = folder / "prefect", folder / "prepared"
        settings = {
            "PREFECT_HOME": str(self._home),
            # The first start creates a database, which takes 20 s on a busy machine.
            "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        }
        kept = {name: value for name, value in os.environ.items() if "PREFECT" not in name}
        self._environment = kept | QUIET | settings
        self.empty_flow(is_first=True)  # creates Prefect's database
        self._home.rename(self._prepared)

    def rows(self, full: int, quick: int = 16) -> int:
        """How many rows to take."""
        return quick if self.quick else full

    def rounds(self, contestants: Mapping[str, Callable[[], Run]], most: int = 99) -> Runs:
        """Run the contestants in turn, `repeats` times, but at most `most` times."""
        runs: Runs = {name: [] for name in contestants}
        for number in range(min(self.repeats, most)):
            for name, contestant in contestants.items():
                run = contestant()
                runs[name].append(run)
                print(
                    f"  {number + 1}. {name}: {run.rate:,.0f} rows/s, {run.wall:.1f} s, "
                    f"{run.cpu:.1f} s CPU, {run.peak_mib:.0f} MiB",
                    flush=True,
                )
        return runs

    def path(self, name: str) -> Path:
        """A new name in the folder."""
        return self.folder / f"{next(self._numbers)}-{name}"

    def seed(self) -> int:
        """A new seed for pictures that no server has seen."""
        return 1000 * next(self._numbers)  # far apart: a set may use several

    @cached_property
    def _drawn(self) -> list[bytes]:
        images = self.path("drawn")
        paths = draw_images(images, self.rows(DRAWN), seed=1, noise=SMALL_NOISE)
        return [path.read_bytes() for path in paths]

    @contextmanager
    def new_images(self, rows: int) -> Iterator[Path]:
        """A folder of 640x480 JPEGs that were never sent before, as far as their bytes go."""
        images = self.path("images")
        new_files(images, rows, self.seed(), self._drawn)
        yield images
        shutil.rmtree(images)

    def ours(
        self,
        dataset: Path,
        urls: Sequence[str],
        *flags: str,
        output: Path | None = None,
        **options: Any,
    ) -> Run:
        """`prefect-imageqa run` with its defaults; the output is kept only if given."""
        target = output or self.path("output")
        command = [str(BIN / "prefect-imageqa"), "run", str(dataset), "--output", str(target)]
        command += [part for url in urls for part in ("--endpoint", url)]
        run = _run_of(self._measure([*command, "--json", *flags], **options))
        if not output:
            shutil.rmtree(target)
        return run

    def on_server(self, command: Sequence[str], environment: Mapping[str, str]) -> Run:
        """A command as `prefect-imageqa run ... --json`, on a Prefect server that runs already."""
        return _run_of(measure(command, environment, self.folder / "stderr.txt"))

    @property
    def database(self) -> Path:
        """Prefect's database, as the last run has left it."""
        return self._home / "prefect.db"

    def client(
        self, kind: str, images: Path, url: str, model: str, at_once: int, **options: Any
    ) -> Run:
        """One of the clients to compare with."""
        answers = self.path("answers")
        task = {
            "url": url,
            "model": model,
            "images": str(images),
            "prompts": [DEFAULT_SYSTEM_PROMPT, DEFAULT_USER_PROMPT],
            "at_once": at_once,
            "output": str(answers),
        }
        python = sys.executable if "raw" in kind else str(self._openai)
        measured = self._measure([python, str(CLIENTS), kind, json.dumps(task)], **options)
        answers.unlink(missing_ok=True)
        result = json.loads(measured.stdout)
        return _run(result["rows"], result["seconds"], measured)

    def empty_flow(self, **options: Any) -> Run:
        """A flow that does nothing, with Prefect's temporary server."""
        measured = self._measure([sys.executable, "-c", EMPTY_FLOW], **options)
        return _run(0, measured.wall, measured)

    def _measure(
        self, command: Sequence[str], *, is_first: bool = False, **options: Any
    ) -> Measured:
        """Run a command with a database of Prefect's that is up to date and has no runs.

        Args:
            command: what to run.
            is_first: whether it has to create that database, as the first run on a machine.
            options: of `measure`.
        """
        shutil.rmtree(self._home, ignore_errors=True)
        if not is_first:  # always at the same place: Prefect remembers it with what it has done
            shutil.copytree(self._prepared, self._home)
        return measure(command, self._environment, self.folder / "stderr.txt", **options)

    @cached_property
    def _openai(self) -> Path:
        """The Python that has openai; its environment is built when it is missing."""
        python = self._environments / OPENAI / "bin" / "python"
        if not python.exists():
            uv = str(BIN / "uv")
            home = str(python.parents[1])
            subprocess.run([uv, "venv", "-q", "--python", sys.executable, home], check=True)
            subprocess.run([uv, "pip", "install", "-q", "--python", home, OPENAI], check=True)
        return python


def _run_of(measured: Measured) -> Run:
    """A run of ours, by its summary."""
    summary = json.loads(measured.stdout.splitlines()[-1])
    # A model's reply may be of no use, but a server that fails must not look fast.
    assert summary["ok"] >= 0.98 * summary["rows"], summary
    return _run(summary["rows"], summary["seconds"], measured)


def _run(rows: int, seconds: float, measured: Measured) -> Run:
    used = asdict(measured)
    del used["stdout"]
    return Run(rows, seconds, **used)
