"""Requests exported, answered by a server, and imported, beside a run that asks that server."""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pandas as pd
import pytest
from prefect.client.schemas.objects import FlowRun
from prefect_imageqa import Limits, Sampling, image_qa
from prefect_imageqa.flows.batch_results import BatchResults
from prefect_imageqa.flows.cli.batch_files import batch_export
from prefect_imageqa.tasks.runs.parameters import Asking, Parsing
from prefect_imageqa.tasks.storing.ledger import Ledger, RowStatus

GIVEN: dict[str, Any] = {
    "model": "stub",
    "sampling": Sampling(temperature=0),
    "limits": Limits(batch_size=4),
    "asking": Asking(corrective_retry=False),  # an import has no server to ask again
}


def answered(url: str, line: bytes) -> str:
    """The result of one request, in the form that vLLM writes."""
    request = json.loads(line)
    assert request["method"] == "POST"
    data = json.dumps(request["body"]).encode()
    headers = {"Content-Type": "application/json"}
    error = None
    try:
        with urlopen(Request(url + request["url"], data, headers)) as reply:  # noqa: S310 - loopback
            response = {"status_code": 200, "body": json.load(reply)}
    except HTTPError as failed:
        response, error = {"status_code": failed.code, "body": None}, json.load(failed)
    result = {"id": "r", "custom_id": request["custom_id"], "response": response, "error": error}
    return json.dumps(result) + "\n"


def test_imported_results_are_what_a_run_would_have_stored(
    stub: Any,
    write_rows: Callable[[list[str]], str],
    runs_of: Callable[[str], list[FlowRun]],
    tmp_path: Path,
) -> None:
    pairs = [f"STUB text **Question:** What is {n}?\n**Answer:** It is {n}." for n in range(6)]
    texts = [*pairs, "STUB status 400", "STUB finish length", "STUB text not a pair", pairs[0]]
    dataset, output, requests = write_rows(texts), str(tmp_path / "out"), tmp_path / "requests"
    batch_export(dataset, output=output, to=str(requests), rows_per_file=5, **GIVEN)
    lines = [line for file in sorted(requests.glob("*.jsonl")) for line in file.open("rb")]
    assert len(lines) == 9  # the last row asks the same as the first
    results = [answered(stub.url, line) for line in lines]
    random.Random(3).shuffle(results)
    kept = [line for line in results if "It is 1." not in line]
    assert len(kept) == 8
    (tmp_path / "results.jsonl").write_text("".join(kept))

    given: Any = BatchResults([tmp_path / "results.jsonl"])
    summary = image_qa(dataset, output, given, **GIVEN)
    assert (summary.rows, summary.ok, summary.requests) == (10, 6, 0)
    assert summary.reasons == {"bad_request": 1, "truncated": 1, "unparsed": 1, "connection": 1}
    assert given.unused == 0
    [recorded] = runs_of(output)
    assert recorded.parameters["endpoint"] == "<BatchResults>"  # and not its index

    online = str(tmp_path / "online")
    image_qa(dataset, online, stub.url, **GIVEN)
    resumed = image_qa(dataset, output, stub.url, **GIVEN)
    assert (resumed.attempted, resumed.requests) == (1, 1)
    assert Path(output, "qa.jsonl").read_bytes() == Path(online, "qa.jsonl").read_bytes()
    imported, asked = (pd.read_parquet(f"{folder}/pairs.parquet") for folder in (output, online))
    pd.testing.assert_frame_equal(imported, asked)
    names = ["row", "key", "kind", "message"]
    failed, failed_online = (
        pd.read_json(f"{folder}/quarantine.jsonl", lines=True)[names] for folder in (output, online)
    )
    pd.testing.assert_frame_equal(failed, failed_online)
    # The replies are stored, whatever parser reads them.
    other = Parsing(require_pairs=False)
    batch_export(dataset, output=output, to=str(requests), **GIVEN, parsing=other)
    assert not list(requests.glob("*.jsonl"))


def test_rows_are_looked_up_together(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lookups, statuses = list[int](), Ledger.statuses

    def counted(ledger: Ledger, keys: Sequence[str]) -> list[RowStatus]:
        lookups.append(len(keys))
        return statuses(ledger, keys)

    monkeypatch.setattr(Ledger, "statuses", counted)
    dataset, output = str(drawn / "dataset.json"), str(tmp_path / "out")
    batch_export(dataset, output=output, to=str(tmp_path / "requests"), **GIVEN)
    assert lookups == [4, 4, 4]


def test_questions_and_their_answers_are_exported_in_turn(drawn: Path, tmp_path: Path) -> None:
    dataset, output, requests = str(drawn / "dataset.json"), str(tmp_path / "out"), tmp_path / "to"
    given: Any = {
        "model": "m",
        "max_rows": 2,
        "style": "several",
        "asking": Asking(answer="separately"),
    }

    def round_trip(reply: str) -> int:
        batch_export(dataset, output=output, to=str(requests), **given)
        lines = requests.joinpath("requests-00001.jsonl").read_bytes().splitlines()
        choice = {"message": {"content": reply}, "finish_reason": "stop"}
        response = {"status_code": 200, "body": {"choices": [choice]}}
        results = [
            {"custom_id": json.loads(line)["custom_id"], "response": response} for line in lines
        ]
        (tmp_path / "r.jsonl").write_text("\n".join(map(json.dumps, results)))
        image_qa(dataset, output, cast("Any", BatchResults([tmp_path / "r.jsonl"])), **given)
        return len(lines)

    assert round_trip("1. What is it?\n2. Where is it?\n3. How many are there?") == 2
    assert round_trip("It is here.") == 6
    pairs = pd.read_parquet(tmp_path / "out" / "pairs.parquet")
    assert len(pairs) == 6
    assert set(pairs["answer"]) == {"It is here."}
    batch_export(dataset, output=output, to=str(requests), **given)
    assert not list(requests.glob("*.jsonl"))
