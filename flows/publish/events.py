"""Events that a run emits when it completes, for Prefect's automations."""

from typing import Any

from prefect.events import emit_event

from ..summary import RunSummary

COMPLETED = "prefect-imageqa.run.completed"
"""Emitted by every completed run that has an answer: without one, nothing can follow."""

QUARANTINE_HIGH = "prefect-imageqa.quarantine.high"
"""Emitted if the share of quarantined rows exceeds `HIGH_SHARE`.

Automations cannot compare numbers in a payload, so the run does it.
"""

HIGH_SHARE = 0.05

KEPT_LOW = "prefect-imageqa.kept.low"
"""Emitted if checks and filters keep a smaller share of the pairs than `LOW_SHARE`."""

LOW_SHARE = 0.5


def emit_completed(summary: RunSummary, *, dataset: str, model: str) -> None:
    """Emit the events of a completed run; Prefect relates them to its flow run and deployment."""
    share = summary.quarantined / summary.rows if summary.rows else 0.0
    pairs = summary.pairs + summary.filtered_pairs
    kept_share = summary.pairs / pairs if pairs else 1.0
    resource = {
        "prefect.resource.id": f"prefect-imageqa.output.{summary.output}",
        "prefect.resource.name": summary.output,
        "prefect-imageqa.dataset": dataset,
        "prefect-imageqa.model": model,
    }
    payload: dict[str, Any] = {
        **summary.model_dump(mode="json", exclude={"attempted", "store"}),
        "quarantined_share": round(share, 6),
        "kept_share": round(kept_share, 6),
        "message": str(summary),
    }
    if share < 1:
        emit_event(COMPLETED, resource, payload=payload)
    if share > HIGH_SHARE:
        emit_event(QUARANTINE_HIGH, resource, payload=payload)
    if kept_share < LOW_SHARE:
        emit_event(KEPT_LOW, resource, payload=payload)
