"""A run of `faults.py`: its servers, its dataset, and the moment at which a fault begins."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fault_proxy import FaultProxy, Rule
from PIL import Image
from servers import PrefectServer, S3Server, StubServer
from timed_run import TimedRun

POLL_SECONDS = 0.05

Inject = Callable[["World"], None]


@dataclass(frozen=True)
class Scenario:
    """A run, and what goes wrong.

    Attributes:
        rows: of its dataset.
        inject: called once the run has started; the faults of `faults` need no call.
        servers: flags of each stub.
        faults: further flags of the stubs, left out in the run without faults.
        flags: flags of the run.
        on_s3: what lies on S3, behind a proxy: "dataset", "images", "output".
        distinct_images: whether each row has an image of its own.
        own_prefect: whether its Prefect server is not shared, so that it can be killed.
    """

    rows: int
    inject: Inject | None = None
    servers: Sequence[Sequence[str]] = field(default=((),))
    faults: Sequence[str] = ()
    flags: Sequence[str] = ()
    on_s3: Sequence[str] = ()
    distinct_images: bool = False
    own_prefect: bool = False


@dataclass(frozen=True)
class Servers:
    """The servers of a run.

    Attributes:
        stubs: the model servers.
        s3: the S3 server, if it uses one.
        proxy: stands before it.
        prefect: Prefect's server.
        until_end: what is undone only when the run has ended.
    """

    stubs: Sequence[StubServer]
    s3: S3Server | None
    proxy: FaultProxy | None
    prefect: PrefectServer
    until_end: ExitStack


@contextmanager
def start_servers(
    scenario: Scenario, folder: Path, shared_prefect: PrefectServer, faulty: bool
) -> Iterator[Servers]:
    """Start what a scenario needs, with or without its fault."""
    faults = scenario.faults if faulty else ()
    with ExitStack() as running:
        stubs = [StubServer("--metrics", *flags, *faults) for flags in scenario.servers]
        for stub in stubs:
            running.enter_context(stub)
        s3 = running.enter_context(S3Server(folder / "s3")) if scenario.on_s3 else None
        proxy = running.enter_context(FaultProxy("127.0.0.1", s3.port)) if s3 else None
        prefect = shared_prefect
        if faulty and scenario.own_prefect:
            prefect = running.enter_context(PrefectServer(folder / "prefect"))
        until_end = running.enter_context(ExitStack())
        yield Servers(stubs, s3, proxy, prefect, until_end)


def write_images(folder: Path, count: int) -> list[str]:
    """Write small, distinct JPEGs; returns their names."""
    folder.mkdir()
    names = [f"{number:05}.jpg" for number in range(count)]
    for name in names:
        Image.effect_noise((160, 120), 60).convert("RGB").save(folder / name)
    return names


def place(
    what: str, name: str, scenario: Scenario, servers: Servers, folder: Path
) -> tuple[Path, str]:
    """Where something lies, and how the run calls it: on S3 or in the local folder."""
    if servers.s3 and what in scenario.on_s3:
        return servers.s3.bucket / name, f"{servers.s3.uri}/{name}"
    return folder / name, str(folder / name)


def write_dataset(scenario: Scenario, servers: Servers, folder: Path) -> str:
    """Write a table of distinct rows and its images; returns the table's path or URI."""
    image_folder, prefix = place("images", "images", scenario, servers, folder)
    table, uri = place("dataset", "rows.json", scenario, servers, folder)
    names = write_images(image_folder, scenario.rows if scenario.distinct_images else 64)
    rows = [
        {"image": f"{prefix}/{names[row % len(names)]}", "conversation": f"row {row}"}
        for row in range(scenario.rows)
    ]
    table.write_text(json.dumps(rows))
    return uri


def start_run(scenario: Scenario, servers: Servers, folder: Path, log: Path) -> TimedRun:
    """Start the program; it is ended before its servers."""
    output = place("output", "out", scenario, servers, folder)[1]
    arguments = [write_dataset(scenario, servers, folder), "--output", output]
    arguments += [f"--endpoint={stub.url}" for stub in servers.stubs]
    environment = dict(servers.prefect.environment)
    if servers.s3 and servers.proxy:
        environment |= servers.s3.environment | {"AWS_ENDPOINT_URL": servers.proxy.url}
    run = TimedRun([*arguments, *scenario.flags], environment, log)
    servers.until_end.callback(run.kill)
    return run


@dataclass
class World:
    """A run in progress, and the servers that it uses.

    Attributes:
        rows: of its dataset.
        fault_at: when the fault began, in seconds since the run was started; 0 until then.
    """

    rows: int
    run: TimedRun
    servers: Servers
    fault_at: float = 0.0

    def wait_until(self, happened: Callable[[], bool]) -> bool:
        """Poll until it has happened and note the time; False if the run ends before."""
        while not happened():
            if not self.run.running:
                return False
            time.sleep(POLL_SECONDS)
        self.fault_at = self.run.now
        return True

    def wait_for_answers(self, share: float) -> bool:
        """Wait until the stubs have answered this share of the rows."""
        return self.wait_until(
            lambda: sum(stub.counts()[1] for stub in self.servers.stubs) >= share * self.rows
        )

    def wait_for_s3_request(self, trigger: Rule) -> bool:
        """Wait until the rule delays a reply, so that the fault comes with a request in flight."""
        proxy = self.servers.proxy
        assert proxy
        proxy.set_rules([trigger])
        return self.wait_until(lambda: proxy.faults["slow"] > 0)

    def wait_for_end(self, seconds: float) -> None:
        """Let that time pass, or less if the run ends before."""
        deadline = time.monotonic() + seconds
        while self.run.running and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
