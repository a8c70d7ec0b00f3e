"""The artifact and the event about the checks of a run, without a Prefect server."""

from collections import Counter
from typing import Any

import pytest
from prefect_imageqa import ObjectStore
from prefect_imageqa.flows.publish import artifacts, events
from prefect_imageqa.flows.summary import RunSummary
from prefect_imageqa.tasks.reporting.evaluation import Evaluation
from prefect_imageqa.tasks.reporting.markdown import artifact_key


def test_the_funnel_is_an_artifact(monkeypatch: pytest.MonkeyPatch) -> None:
    published: list[Any] = []
    monkeypatch.setattr(artifacts, "create_markdown_artifact", lambda *args: published.append(args))
    summary = RunSummary(rows=20, ok=16, filtered=4, pairs=16, output="/data/out")
    evaluation = Evaluation(20, 20, {1: 20}, 20, Counter(), (), (), 16, Counter({"form": 4}))
    artifacts.show_funnel(ObjectStore(uri="/data/out"), summary, evaluation, dataset="a_b.json")
    [(markdown, key, title)] = published
    assert "| pairs kept | 16 | 80.0 % |" in markdown
    assert "| form | 4 | 20.0 % |" in markdown
    assert key == artifact_key("/data/out", "funnel")
    assert title == "Checks of a\\_b\\.json"


@pytest.mark.parametrize(
    ("pairs", "filtered", "names"),
    [
        (9, 10, [events.COMPLETED, events.KEPT_LOW]),
        (10, 10, [events.COMPLETED]),
        (0, 0, [events.COMPLETED]),
    ],
)
def test_a_run_that_keeps_few_pairs_says_so(
    pairs: int, filtered: int, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    emitted: list[tuple[str, float]] = []

    def emit(name: str, _: object, payload: dict[str, Any]) -> None:
        emitted.append((name, payload["kept_share"]))

    monkeypatch.setattr(events, "emit_event", emit)
    summary = RunSummary(rows=20, ok=20, pairs=pairs, filtered_pairs=filtered, output="/data/out")
    events.emit_completed(summary, dataset="d.json", model="m")
    share = round(pairs / (pairs + filtered), 6) if pairs else 1.0
    assert emitted == [(name, share) for name in names]
