"""What a user sees of each fault of a server or a store: no row lost, no error for an answer."""

import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from fault_proxy import FaultProxy, Rule, s3_error
from PIL import Image
from prefect_imageqa import ImageQAError, Limits, ObjectStore, VLLMEndpoint, image_qa

ROWS, BATCH_SIZE = 96, 16
HANG_SECONDS = 60

pytestmark = pytest.mark.timeout(300)


@dataclass(frozen=True)
class Seen:
    """What came of a run: a summary, or one line that says why not."""

    summary: Any
    error: str
    seconds: float


@pytest.fixture(scope="module")
def matrix(request: pytest.FixtureRequest) -> Iterator[Callable[..., None]]:
    """Collects what users saw, and leaves it as a table in `build/faults.md`."""
    head = "| fault | seen | ok | quarantined | requests | seconds |"
    lines = [head, "|---|---|---|---|---|---|"]

    def enter(fault: str, seen: Seen, requests: int) -> None:
        counts = (seen.summary.ok, seen.summary.quarantined) if seen.summary else ("", "")
        cells = (fault, seen.error or str(seen.summary), *counts, requests, f"{seen.seconds:.1f}")
        lines.append(f"| {' | '.join(map(str, cells))} |")

    yield enter
    folder = request.config.rootpath / "build"
    folder.mkdir(exist_ok=True)
    (folder / "faults.md").write_text("\n".join(lines) + "\n")


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    """Rows that the stub answers with the row's own number."""
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    path = tmp_path / "rows.jsonl"
    rows = [
        {
            "id": number,
            "image": "red.png",
            "conversation": f"STUB text **Question:** Which?\n**Answer:** Row {number}.",
        }
        for number in range(ROWS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def suffer(dataset: str, output: str, url: str, caplog: pytest.LogCaptureFixture) -> Seen:
    """Run, and see that it ends soon, without a traceback, and says one line."""
    started = time.monotonic()
    summary, told = None, ""
    with caplog.at_level(logging.INFO):
        try:
            # So long a hang is taken for one; by default a model may take ten minutes.
            endpoint = VLLMEndpoint(urls=[url], read_timeout=5, connect_timeout=2)
            summary = image_qa(
                dataset,
                output,
                endpoint=endpoint,
                limits=Limits(batch_size=BATCH_SIZE, max_in_flight=32),
            )
        except ImageQAError as error:
            told = str(error)
            assert told
            assert "\n" not in told
    seconds = time.monotonic() - started
    assert seconds < HANG_SECONDS
    assert not [record.getMessage() for record in caplog.records if record.exc_info]
    return Seen(summary, told, seconds)


def check_answers(output: str) -> int:
    """Every stored answer is the row's own; returns how many there are."""
    rows = [json.loads(line) for line in ObjectStore(uri=output).read("qa.jsonl").splitlines()]
    assert all(row["output"].endswith(f"Row {row['id']}.") for row in rows)
    assert len({row["id"] for row in rows}) == len(rows)
    return len(rows)


MODEL_FAULTS = {
    "429 now and then": Rule("answer", status=429, probability=0.1),
    "503 for a while": Rule("answer", status=503, first=10, count=5),
    "500 now and then": Rule("answer", status=500, probability=0.1),
    "reset now and then": Rule("reset", probability=0.1),
    "reply cut now and then": Rule("cut_reply", probability=0.1),
    "reply lost now and then": Rule("lose_reply", probability=0.05),
    "request cut now and then": Rule("cut_request", probability=0.1),
    "slow": Rule("slow", seconds=0.5),
    "hangs sometimes": Rule("hang", first=20, count=3),
    "429 always": Rule("answer", status=429, first=20),
    "500 always": Rule("answer", status=500, first=2),
    "reset always": Rule("reset", first=20),
    "hangs always": Rule("hang", first=60),
}


@pytest.mark.parametrize("fault", MODEL_FAULTS)
def test_a_model_server_with_faults(
    fault: str,
    stub: Any,
    dataset: str,
    tmp_path: Path,
    matrix: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = urlsplit(stub.url)
    before = stub.stats()["requests"]
    output = str(tmp_path / "out")
    rule = MODEL_FAULTS[fault]
    with FaultProxy(server.hostname, server.port, seed=3) as proxy:
        proxy.set_rules([Rule(**{**rule.__dict__, "path": "/chat/"})])
        seen = suffer(dataset, output, proxy.url, caplog)
        matrix(f"model: {fault}", seen, proxy.requests["POST"])
        assert proxy.faults.total()
        if seen.summary:
            assert seen.summary.ok + seen.summary.quarantined == ROWS
            assert check_answers(output) == seen.summary.ok
        # A reply that is lost on its way is asked for again; one that has come is not.
        lost = sum(proxy.faults[name] for name in ("cut_reply", "lose_reply", "cut_request"))
        proxy.set_rules([])
        healed = suffer(dataset, output, proxy.url, caplog)
    assert (healed.summary.ok, healed.summary.quarantined) == (ROWS, 0)
    assert check_answers(output) == ROWS
    assert ROWS <= stub.stats()["requests"] - before <= ROWS + lost


STORE_FAULTS = {
    "SlowDown now and then": s3_error(503, "SlowDown", probability=0.1),
    "InternalError now and then": s3_error(500, "InternalError", probability=0.1),
    "reset now and then": Rule("reset", probability=0.1),
    "reply cut now and then": Rule("cut_reply", method="GET", first=4, count=2),
    "request cut now and then": Rule("cut_request", method="PUT", first=4, count=3),
    "slow": Rule("slow", seconds=0.2),
    "hangs once": Rule("hang", first=40, count=1),
    "SlowDown always": s3_error(503, "SlowDown", first=40),
    "reset always": Rule("reset", first=40),
    "access denied": s3_error(403, "AccessDenied", method="PUT", path="/pairs/", first=4),
    "no more space": s3_error(507, "InsufficientStorage", method="PUT", path="/pairs/", first=4),
    "completions cannot be written": s3_error(
        500, "InternalError", method="PUT", path="/completions/"
    ),
}


@pytest.mark.parametrize("fault", STORE_FAULTS)
def test_a_store_with_faults(
    fault: str,
    stub: Any,
    dataset: str,
    s3: str,
    s3_proxy: FaultProxy,
    tmp_path: Path,
    matrix: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_proxy.url)
    before = stub.stats()["requests"]
    output = f"{s3}/faults-{tmp_path.name}"
    s3_proxy.set_rules([STORE_FAULTS[fault]])
    seen = suffer(dataset, output, stub.url, caplog)
    asked = stub.stats()["requests"] - before
    matrix(f"store: {fault}", seen, asked)
    assert s3_proxy.faults.total()
    if seen.summary:
        assert (seen.summary.ok, asked) == (ROWS, ROWS)
    s3_proxy.set_rules([])
    healed = suffer(dataset, output, stub.url, caplog)
    assert (healed.summary.ok, healed.summary.quarantined) == (ROWS, 0)
    assert check_answers(output) == ROWS
    # This stub has answered all rows before the first write has failed for good.
    at_risk = 0 if seen.summary else ROWS
    assert stub.stats()["requests"] - before <= ROWS + at_risk
