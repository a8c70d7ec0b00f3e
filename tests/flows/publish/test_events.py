"""The events of a run, and the shipped automations that act on them."""

import json
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import get_client
from prefect.events import emit_event
from prefect.settings import PREFECT_API_URL
from prefect.states import Running
from prefect_imageqa import ImageQAError, image_qa

AUTOMATIONS = Path(__file__).resolve().parents[3] / "deployments" / "automations.yaml"


@pytest.fixture
def inbox() -> Iterator[tuple[str, list[str]]]:
    """A webhook's URL, and the messages that it has got."""
    messages: list[str] = []

    class Inbox(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            messages.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Inbox) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/", messages
        server.shutdown()


@pytest.fixture
def automations(inbox: tuple[str, list[str]], tmp_path: Path) -> Iterator[None]:
    """The shipped automations, created as the documentation says."""
    block: Any = CustomWebhookNotificationBlock(
        name="inbox", url=inbox[0], json_data={"subject": "{{subject}}", "body": "{{body}}"}
    )
    block_id = block.save(f"inbox-{uuid.uuid4().hex[:8]}")
    file = tmp_path / "automations.yaml"
    told = AUTOMATIONS.read_text().replace("BLOCK_DOCUMENT_ID", str(block_id))
    assert "within: 600" in told
    file.write_text(told.replace("within: 600", "within: 10"))
    command = [str(Path(sys.executable).with_name("prefect")), "--no-prompt", "automation"]
    environment = {**os.environ, "PREFECT_API_URL": str(PREFECT_API_URL.value())}

    def prefect(*arguments: str) -> str:
        done = subprocess.run(
            [*command, *arguments], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "Created 3 automation(s)" in prefect("create", "--from-file", str(file))
    yield
    for name in ("image-qa-failed", "image-qa-quarantine-high", "image-qa-silent"):
        prefect("delete", name)


def wait_for(reached: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := reached()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return found


def events_of(output: Path) -> dict[str, dict[str, Any]]:
    """The events that tell of an output, by name."""
    wanted = {"resource": {"id": [f"prefect-imageqa.output.{output}"]}}
    reply = httpx.post(f"{PREFECT_API_URL.value()}/events/filter", json={"filter": wanted})
    found: list[dict[str, Any]] = reply.raise_for_status().json()["events"]
    return {event["event"]: event for event in found}


def without_images(drawn: Path, count: int) -> str:
    """A dataset whose first rows have lost their images."""
    dataset = drawn / "dataset.json"
    rows = json.loads(dataset.read_bytes())
    for row in rows[:count]:
        row["image"] = "images/gone.png"
    dataset.write_text(json.dumps(rows))
    return str(dataset)


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


def test_a_run_without_a_sign_of_life_has_crashed(
    automations: None, inbox: tuple[str, list[str]]
) -> None:
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

        def state() -> Any:
            return client.read_flow_run(run.id).state

        wait_for(lambda: state().name == "Crashed")
        assert "no heartbeat" in state().message
    message = json.loads(wait_for(lambda: inbox[1])[0])
    assert message["subject"].endswith("is Crashed")


def test_the_automations_notify(
    automations: None, inbox: tuple[str, list[str]], stub: Any, drawn: Path, tmp_path: Path
) -> None:
    _, messages = inbox
    output = tmp_path / "qa"
    image_qa(without_images(drawn, 3), str(output), endpoint=stub.url)
    wait_for(lambda: len(events_of(output)) == 2)
    assert events_of(output)["prefect-imageqa.quarantine.high"]["payload"]["quarantined"] == 3
    message = json.loads(wait_for(lambda: messages)[0])
    assert message["subject"] == "image-qa: much in quarantine"
    assert f"{output}: 9 answered, 3 quarantined: 3 image_missing" in message["body"]

    messages.clear()
    with pytest.raises(ImageQAError):
        image_qa(str(tmp_path / "gone.json"), str(output), endpoint=stub.url)
    message = json.loads(wait_for(lambda: messages)[0])
    assert message["subject"] == "image-qa gone.json to qa is Failed"
    assert "gone.json" in message["body"]
