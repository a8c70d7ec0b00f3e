"""The events of a run, and the shipped automations that act on them."""

import json
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.events import emit_event
from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.states import Running
from prefect_imageqa import ImageQAError, image_qa

AUTOMATIONS = Path(__file__).resolve().parents[3] / "deployments" / "automations.yaml"


@pytest.fixture(autouse=True)
def _without_heartbeats() -> Iterator[None]:
    """So that a slow run is not crashed by the short time limit."""
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield


@pytest.fixture(scope="module")
def inbox() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A webhook's URL, and the messages that it has received."""
    messages: list[dict[str, str]] = []

    class Inbox(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            messages.append(json.loads(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Inbox) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/", messages
        server.shutdown()


@pytest.fixture(scope="module")
def automations(
    inbox: tuple[str, list[dict[str, str]]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """The shipped automations, created as documented, but with Prefect's shortest time limit."""
    block: Any = CustomWebhookNotificationBlock(
        name="inbox", url=inbox[0], json_data={"subject": "{{subject}}", "body": "{{body}}"}
    )
    block_id = block.save(f"inbox-{uuid.uuid4().hex[:8]}")
    file = tmp_path_factory.mktemp("automations") / "automations.yaml"
    text = AUTOMATIONS.read_text().replace("BLOCK_DOCUMENT_ID", str(block_id))
    assert "within: 600" in text
    file.write_text(text.replace("within: 600", "within: 10"))
    api = PREFECT_API_URL.value()
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("prefect")),
            *("--no-prompt", "automation", "create", "--from-file", str(file)),
        ],
        env={**os.environ, "PREFECT_API_URL": str(api)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Created 4 automation(s)" in done.stdout
    yield
    for automation in httpx.post(f"{api}/automations/filter", json={}).raise_for_status().json():
        if automation["name"] in text:
            httpx.delete(f"{api}/automations/{automation['id']}").raise_for_status()


@pytest.fixture(scope="module")
def silent_run(automations: None) -> FlowRun:
    """A flow run that sent one heartbeat and then nothing, as if its machine had died."""
    with get_client(sync_client=True) as client:
        flow_id = client.create_flow(image_qa)
        run = client.create_flow_run(image_qa, parameters={"dataset": "d.json", "output": "out"})
        client.set_flow_run_state(run.id, Running())
    emit_event(
        "prefect.flow-run.heartbeat",
        {"prefect.resource.id": f"prefect.flow-run.{run.id}"},
        related=[
            {
                "prefect.resource.id": f"prefect.flow.{flow_id}",
                "prefect.resource.role": "flow",
                "prefect.resource.name": image_qa.name,
            }
        ],
    )
    return run


def wait_for(read: Callable[[], Any], seconds: float = 120) -> Any:
    """Poll until there is a value: events and notifications come with a delay."""
    deadline = time.monotonic() + seconds
    while not (value := read()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return value


def message_about(messages: list[dict[str, str]], subject: str) -> dict[str, str]:
    """Wait for the notification with this subject, in which `*` is any text."""
    found: list[dict[str, str]] = wait_for(
        lambda: [message for message in list(messages) if fnmatch(message["subject"], subject)]
    )
    return found[0]


def events_of(output: Path) -> dict[str, dict[str, Any]]:
    """The events about an output, by name."""
    wanted = {"resource": {"id": [f"prefect-imageqa.output.{output}"]}}
    reply = httpx.post(f"{PREFECT_API_URL.value()}/events/filter", json={"filter": wanted})
    found: list[dict[str, Any]] = reply.raise_for_status().json()["events"]
    return {event["event"]: event for event in found}


def without_images(drawn: Path, count: int) -> str:
    """A dataset whose first rows have lost their images."""
    dataset = drawn / "dataset.json"
    rows = json.loads(dataset.read_bytes())
    for row in rows[:count]:
        row["image"] = "images/missing.png"
    dataset.write_text(json.dumps(rows))
    return str(dataset)


@pytest.mark.usefixtures("silent_run")  # its time limit passes during this test and the next
def test_a_completed_run_emits_its_counts(stub: Any, drawn: Path, tmp_path: Path) -> None:
    output = tmp_path / "qa"
    image_qa(str(drawn / "dataset.json"), str(output), endpoint=stub.url)
    [(name, event)] = wait_for(lambda: events_of(output)).items()
    assert name == "prefect-imageqa.run.completed"
    assert event["resource"]["prefect-imageqa.dataset"] == "dataset.json"
    assert event["resource"]["prefect-imageqa.model"] == "stub"
    assert (event["payload"]["rows"], event["payload"]["ok"]) == (12, 12)
    assert event["payload"]["quarantined_share"] == 0
    roles = {related["prefect.resource.role"] for related in event["related"]}
    assert {"flow-run", "flow"} <= roles


def test_failures_and_quarantine_are_notified(
    automations: None,
    inbox: tuple[str, list[dict[str, str]]],
    stub: Any,
    drawn: Path,
    tmp_path: Path,
) -> None:
    _, messages = inbox
    output = tmp_path / "qa"
    image_qa(without_images(drawn, 3), str(output), endpoint=stub.url)
    with pytest.raises(ImageQAError):
        image_qa(str(tmp_path / "missing.json"), str(output), endpoint=stub.url)
    wait_for(lambda: len(events_of(output)) == 2)
    assert events_of(output)["prefect-imageqa.quarantine.high"]["payload"]["quarantined"] == 3
    message = message_about(messages, "image-qa: many rows quarantined")
    assert f"{output}: 9 answered, 3 quarantined: 3 image_missing" in message["body"]
    message = message_about(messages, "image-qa missing.json to qa, * is Failed")
    assert "missing.json" in message["body"]


def test_a_run_without_heartbeats_is_crashed(
    silent_run: FlowRun, inbox: tuple[str, list[dict[str, str]]]
) -> None:
    message_about(inbox[1], f"image-qa {silent_run.name} is Crashed")
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(silent_run.id).state
    assert state
    assert state.name == "Crashed"
    assert "no heartbeat" in str(state.message)
