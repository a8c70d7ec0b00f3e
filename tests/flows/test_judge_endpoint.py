"""A judge at an endpoint of its own, on two stubs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from prefect.runtime import deployment
from prefect_imageqa import Checks, ImageQAError, Limits, image_qa
from prefect_imageqa.flows.open_model import API_KEY, resolve_judge
from prefect_imageqa.flows.open_pass import OpenPass
from prefect_imageqa.tasks.errors import EndpointError, EndpointLostError, ErrorRateError
from prefect_imageqa.tasks.exporting.pairs_parquet import PAIRS
from prefect_imageqa.tasks.exporting.verify_output import verify
from prefect_imageqa.tasks.object_store.store import ObjectStore
from prefect_imageqa.tasks.storing.layout import FILTERED

RATES = 'STUB text Here:\n```json\n{"reason": "It fits.", "truth": 4}\n```'
"""What the stub obeys at the beginning of a rubric."""

GONE = "http://127.0.0.1:9"
KEPT = "judge_truth >= 4"

Ask = Callable[..., Any]


@pytest.fixture
def ask(stub: Any, drawn: Path, tmp_path: Path) -> Ask:
    """Runs the check `judge` on three pairs."""
    images = [str(drawn / "images" / f"00{number}.png") for number in range(3)]
    texts = [f"STUB text Question: What is {number}?\nAnswer: Red" for number in range(3)]
    frame = pd.DataFrame({"image": images, "conversation": texts})
    frame.to_parquet(tmp_path / "rows.parquet")

    def run(rubric: str = RATES, limits: Limits = Limits(), **judge: Any) -> Any:  # noqa: B008
        (tmp_path / "rubric.md").write_text(f"{rubric}\n\n# truth\nIs it true?\n")
        checks = Checks(names=("judge",), rubric=str(tmp_path / "rubric.md"), **judge)
        return image_qa(
            str(tmp_path / "rows.parquet"),
            str(tmp_path / "out"),
            stub.url,
            limits=limits,
            model_revision="2",
            checks=checks,
        )

    return run


def ratings(output: Path, name: str = PAIRS) -> list[int | None]:
    found: list[int | None] = pq.read_table(output / name)["judge_truth"].to_pylist()
    return found


def test_the_judge_is_asked_at_its_own_endpoint_and_its_name_is_in_the_keys(
    ask: Ask, stub: Any, start_stub: Any, tmp_path: Path
) -> None:
    judge, before = start_stub(model="arbiter"), stub.stats()["requests"]
    first = ask(judge_endpoint=judge.url)
    assert (first.requests, first.unjudged, first.corrections) == (3 + 3, {}, 0)
    assert stub.stats()["requests"] - before == 3
    assert ratings(tmp_path / "out") == [4, 4, 4]
    bodies = judge.stats()["bodies"]
    assert [body["model"] for body in bodies] == ["arbiter"] * 4  # one asks whether it is guided
    assert all("regex" in body["structured_outputs"] for body in bodies)
    assert {body["max_tokens"] for body in bodies[1:]} == {len('{"reason": "", "truth": 5}') + 400}
    own = ask()
    assert (own.requests, stub.stats()["requests"] - before) == (3, 3 + 1 + 3)
    assert ask(judge_endpoint=judge.url, judge_model="arbiter").requests == 0
    assert (ask().requests, judge.stats()["requests"]) == (0, 4)
    # With the name of its model, a judge whose ratings are all there need not be up.
    last = ask(judge_endpoint=GONE, judge_model="arbiter", keep=KEPT)
    assert (last.requests, last.unjudged, last.pairs) == (0, {}, 3)
    records = [path.read_text() for path in (tmp_path / "out" / "runs").glob("*.json")]
    assert not any(url in record for url in (judge.url, GONE) for record in records)
    assert verify(ObjectStore(uri=str(tmp_path / "out"))).problems == []


def test_a_judge_that_is_down_leaves_pairs_unjudged_until_the_next_run(
    ask: Ask, start_stub: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ({}, {"judge_model": "arbiter"}):
        summary = ask(judge_endpoint=GONE, keep=KEPT, **name)
        assert (summary.rows, summary.ok, summary.filtered) == (3, 0, 3)
        assert (summary.pairs, summary.filtered_pairs, summary.unjudged) == (0, 3, {"judge": 3})
        (told,) = [record.getMessage() for record in caplog.records if GONE in record.getMessage()]
        assert "check judge: 3 pairs stay unjudged, the next run asks about them" in told
        caplog.clear()
        assert verify(ObjectStore(uri=str(tmp_path / "out"))).problems == []
    assert ratings(tmp_path / "out", FILTERED) == [None] * 3
    judge = start_stub(model="arbiter")
    later = ask(judge_endpoint=judge.url, keep=KEPT)
    assert (later.requests, later.pairs, later.unjudged) == (3, 3, {})


def test_a_judge_that_is_lost_keeps_the_ratings_it_has_given(
    ask: Ask, start_stub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = start_stub(model="arbiter", latency=0.3, slots=1)
    record = OpenPass.record

    def lose(self: OpenPass, *stored: Any) -> Any:
        if self.is_optional:
            judge.kill()
        return record(self, *stored)

    monkeypatch.setattr(OpenPass, "record", lose)
    limits = Limits(batch_size=1, max_in_flight=1, server_wait=1)
    lost = ask(judge_endpoint=judge.url, limits=limits)
    monkeypatch.undo()
    assert (lost.rows, lost.ok, lost.pairs) == (3, 3, 3)
    assert lost.unjudged["judge"] in {1, 2}
    store = ObjectStore(uri=str(tmp_path / "out"))
    assert verify(store).problems == []
    other = start_stub(model="arbiter")
    later = ask(judge_endpoint=other.url, limits=limits)
    assert (later.requests, later.unjudged) == (lost.unjudged["judge"], {})
    assert ratings(tmp_path / "out") == [4, 4, 4]


def test_an_outage_of_the_runs_own_endpoint_stays_an_error(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: Any) -> None:
        raise EndpointLostError("waited in vain")

    monkeypatch.setattr("prefect_imageqa.flows.open_pass.takes_guide", lost)
    with pytest.raises(EndpointLostError):
        ask()


def test_a_reply_without_ratings_leaves_the_pair_unjudged(ask: Ask, start_stub: Any) -> None:
    judge = start_stub(model="arbiter")
    bad = ask("", judge_endpoint=judge.url)
    # Each is asked once more, and told what is wrong with its reply.
    assert (bad.unjudged, bad.requests, bad.corrections) == ({"judge": 3}, 3 + 6, 3)
    assert ask("", judge_endpoint=judge.url).requests == 0


def test_a_judge_that_follows_no_form_is_asked_without_one(
    ask: Ask, start_stub: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    judge = start_stub("--refuse-schemas", model="arbiter")
    first = ask(judge_endpoint=judge.url)
    assert (first.requests, first.unjudged) == (3 + 3, {})
    assert "structured_outputs" not in judge.stats()["bodies"][-1]
    assert "the server does not make replies follow" in caplog.text
    assert ratings(tmp_path / "out") == [4, 4, 4]


def test_too_many_failures_stop_the_run(
    ask: Ask, monkeypatch: pytest.MonkeyPatch, start_stub: Any
) -> None:
    monkeypatch.setattr("prefect_imageqa.flows.circuit_breaker.WINDOW", 2)
    judge = start_stub(model="arbiter")
    with pytest.raises(ErrorRateError, match="check judge"):
        ask("STUB status 400", judge_endpoint=judge.url)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"judge_endpoint": "http://user:pass-5f2c@gpu:8000"}, "must not contain a user"),
        ({"judge_endpoint": "ftp://gpu"}, "is not an http:// or https:// URL"),
        ({"judge_endpoint": "no-such-block"}, "no vLLM Endpoint block named 'no-such-block'"),
        ({"judge_model": "arbiter"}, "needs an endpoint: --judge-endpoint"),
    ],
)
def test_a_mistake_is_one_line_before_any_request(
    given: dict[str, str], message: str, ask: Ask, stub: Any, tmp_path: Path
) -> None:
    before = stub.stats()["requests"]
    with pytest.raises(ImageQAError, match=message) as raised:
        ask(**given)
    assert "\n" not in str(raised.value)
    assert "pass-5f2c" not in str(raised.value)
    assert stub.stats()["requests"] == before
    assert not (tmp_path / "out").exists()


def test_a_judge_that_wants_a_key_ends_the_run(ask: Ask, keyed_stub: Any) -> None:
    with pytest.raises(EndpointError, match=r"check judge: .*wants an API key"):
        ask(judge_endpoint=keyed_stub.url)


def test_the_key_of_the_environment_is_not_sent_by_a_deployment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checks = Checks(names=("judge",), judge_endpoint="http://gpu-2:8000 http://gpu-3:8000")
    monkeypatch.setenv(API_KEY, "a-key")
    for run, key in ((None, "a-key"), ("1", "")):
        monkeypatch.setattr(deployment, "id", run)
        endpoint = resolve_judge(checks)
        assert endpoint is not None
        assert endpoint.urls == ["http://gpu-2:8000", "http://gpu-3:8000"]
        assert endpoint.api_key.get_secret_value() == key
