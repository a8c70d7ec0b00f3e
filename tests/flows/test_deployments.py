"""The shipped deployments, deployed and run by a real worker on a real Prefect server."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    DeploymentFilterTags,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateName,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.deployments import run_deployment
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    temporary_settings,
)
from prefect.states import Pending, Scheduled
from prefect_imageqa import image_qa
from prefect_imageqa.flows.deploy import deploy
from prefect_imageqa.flows.summary import RunSummary
from prefect_imageqa.serving.demo_model.scenes import write_demo_dataset
from prefect_imageqa.tasks.errors import PrefectServerError

DEPLOYMENTS = Path(__file__).resolve().parents[2] / "deployments"


def prefect(folder: Path, *arguments: str) -> str:
    """Run Prefect's command line in a folder, against the tests' server."""
    command = [str(Path(sys.executable).with_name("prefect")), "--no-prompt", *arguments]
    told = {"PREFECT_API_URL": str(PREFECT_API_URL.value()), "PWD": str(folder)}
    done = subprocess.run(
        command,
        env={**os.environ, **told},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def on_server() -> dict[str, dict[str, Any]]:
    """The deployments as the server has them, without ids and times."""
    tagged = DeploymentFilter(tags=DeploymentFilterTags(all_=["image-qa"]))
    with get_client(sync_client=True) as client:
        found = client.read_deployments(deployment_filter=tagged)
    unlike = {"id", "created", "updated", "deployment_id", "last_polled", "status"}
    told = {deployment.name: deployment.model_dump(mode="json") for deployment in found}
    for deployment in told.values():
        deployment["schedules"].sort(key=lambda schedule: schedule["schedule"]["cron"])
        for part in (deployment, *deployment["schedules"]):
            for name in unlike & part.keys():
                del part[name]
        if limit := deployment["global_concurrency_limit"]:
            deployment["global_concurrency_limit"] = limit["limit"]
    return told


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the deployments were deployed from, with the documented commands."""
    folder = tmp_path_factory.mktemp("deployed")
    prefect(folder, "work-pool", "create", "default", "--type", "process", "--overwrite")
    told = prefect(folder, "block", "register", "-m", "prefect_imageqa")
    assert "vLLM Endpoint" in told
    assert "Image QA Store" in told
    prefect(folder, "deploy", "--prefect-file", str(DEPLOYMENTS / "prefect.yaml"), "--all")
    return folder


def work(folder: Path) -> None:
    """Let a worker do what is scheduled."""
    prefect(folder, "worker", "start", "--pool", "default", "--run-once")


def states_of(run: UUID) -> list[str]:
    """The states that a flow run has had so far."""
    with get_client(sync_client=True) as client:
        response = client.request("GET", "/flow_run_states/", params={"flow_run_id": str(run)})
    return [
        state["name"] for state in sorted(response.json(), key=lambda state: state["timestamp"])
    ]


@pytest.mark.timeout(600)
def test_a_night_asks_about_the_new_images_only(stub: Any, folder: Path) -> None:
    write_demo_dataset(folder, 22, seed=5)
    rows = json.loads((folder / "dataset.json").read_text())
    parameters = {"dataset": "dataset.json", "output": "nightly", "endpoint": stub.url}
    asked = []
    for count in (12, 22):
        (folder / "dataset.json").write_text(json.dumps(rows[:count]))
        before = stub.stats()["requests"]
        prefect(folder, "deployment", "run", "image-qa/nightly", "--params", json.dumps(parameters))
        work(folder)
        asked.append(stub.stats()["requests"] - before)
        assert len((folder / "nightly" / "qa.jsonl").read_text().splitlines()) == count
    assert asked == [12, 10]


def test_a_mistake_in_a_run_of_a_worker_is_one_line(folder: Path) -> None:
    write_demo_dataset(folder, 1, seed=5)
    parameters = {"dataset": "dataset.json", "output": "mistake", "endpoint": "no-such-block"}
    told = (
        "there is no vLLM Endpoint block named 'no-such-block': use a URL such as "
        "http://127.0.0.1:8000, or save a block in Prefect under Blocks (`prefect block register "
        "-m prefect_imageqa` lists its type there)"
    )
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name("image-qa/on-demand")
        run = client.create_flow_run_from_deployment(deployment.id, parameters=parameters)
    work(folder)
    chosen = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id]))
    deadline = time.monotonic() + 60
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(run.id).state
        while True:
            logs = [log.message for log in client.read_logs(chosen, limit=200)]
            if told in logs:
                break
            assert time.monotonic() < deadline, "\n".join(logs)  # they come to the API later
            time.sleep(0.5)
    assert state
    assert state.name == "Failed"
    assert told in str(state.message)
    assert not [log for log in logs if "Traceback" in log]


@pytest.mark.timeout(600)
def test_a_worker_retries_a_run_and_so_does_the_button_of_the_ui(
    stub: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_FLOWS_DEFAULT_RETRIES", "1")
    parameters = {"dataset": "late/dataset.json", "output": "retried", "endpoint": stub.url}
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name("image-qa/on-demand")
        run = client.create_flow_run_from_deployment(deployment.id, parameters=parameters)
    work(folder)
    states = states_of(run.id)
    assert states[-4:] == ["Running", "AwaitingRetry", "Running", "Failed"]
    write_demo_dataset(folder / "late", 4, seed=5)
    with get_client(sync_client=True) as client:
        # What the button does.
        client.set_flow_run_state(run.id, Scheduled(name="AwaitingRetry"), force=True)
    work(folder)
    later = states_of(run.id)[len(states) :]
    assert (later[0], later[-2:]) == ("AwaitingRetry", ["Running", "Completed"])
    assert len((folder / "retried" / "qa.jsonl").read_text().splitlines()) == 4


def test_run_deployment_asks_with_the_parameters_given(
    stub: Any, folder: Path, drawn: Path
) -> None:
    sampling = {"max_tokens": 64}
    parameters = {"dataset": str(drawn / "dataset.json"), "output": "preview", "max_rows": 3}
    run: Any = run_deployment(
        "image-qa/preview",
        parameters={**parameters, "endpoint": stub.url, "sampling": sampling},
        timeout=0,
    )
    work(folder)
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(run.id).state
    assert state
    assert state.name == "Completed", state.message
    assert len((folder / "preview" / "qa.jsonl").read_text().splitlines()) == 3
    assert stub.stats()["bodies"][-1]["max_tokens"] == 64


def test_image_qa_is_a_subflow_of_a_flow(stub: Any, drawn: Path, tmp_path: Path) -> None:
    @flow(name="weekly")
    def weekly() -> RunSummary:
        return image_qa(str(drawn / "dataset.json"), str(tmp_path / "out"), stub.url)

    summary: Any = weekly()
    assert summary.ok == 12


def test_deploy_does_what_the_documented_commands_do(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_commands = on_server()
    monkeypatch.chdir(folder)
    deployed = deploy("default", {})
    assert on_server() == by_commands
    assert sorted(deployed.pages) == ["image-qa/nightly", "image-qa/on-demand", "image-qa/preview"]
    assert not deployed.created_pool
    assert set(by_commands) == {"on-demand", "nightly", "preview"}
    assert all("](https://" in told["description"] for told in by_commands.values())
    assert by_commands["preview"]["parameters"]["max_rows"] == 20
    nightly = by_commands["nightly"]
    assert [schedule["active"] for schedule in nightly["schedules"]] == [False]
    assert nightly["global_concurrency_limit"] == 1


def switch_schedule(*, on: bool) -> None:
    """What the switch of the nightly schedule does in the UI."""
    with get_client(sync_client=True) as client:
        nightly = client.read_deployment_by_name("image-qa/nightly")
        client.update_deployment_schedule(nightly.id, nightly.schedules[0].id, active=on)


def test_deploying_again_keeps_what_was_set_in_the_ui_and_takes_new_defaults(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    switch_schedule(on=True)
    with get_client(sync_client=True) as client:
        nightly = client.read_deployment_by_name("image-qa/nightly")
        prompt = "Ask about {{ place }}, in {{ $LANG }}."  # `prefect deploy` would fill that in
        mine = {"dataset": "mine.json", "system_prompt": prompt, "sampling": {"temperature": 0.2}}
        set_in_ui = {**nightly.parameters, **mine}
        client.update_deployment(nightly.id, DeploymentUpdate(parameters=set_in_ui))
    more = ["--cron", "30 4 * * *", "--timezone", "Europe/Berlin"]
    prefect(folder, "deployment", "schedule", "create", "image-qa/nightly", *more)
    deploy("default", {"output": "s3://bucket/qa"})
    told = on_server()
    assert told["nightly"]["parameters"] == {**set_in_ui, "output": "s3://bucket/qa"}
    schedules = {
        schedule["schedule"]["cron"]: schedule["active"]
        for schedule in told["nightly"]["schedules"]
    }
    assert schedules == {"0 2 * * *": True, "30 4 * * *": True}
    assert told["preview"]["parameters"] == {
        "endpoint": "http://127.0.0.1:8000",
        "max_rows": 20,
        "output": "s3://bucket/qa",
    }
    deploy("default", {})
    assert on_server() == told
    with get_client(sync_client=True) as client:
        for schedule in client.read_deployment_by_name("image-qa/nightly").schedules:
            client.delete_deployment_schedule(nightly.id, schedule.id)
    prefect(folder, "deploy", "--prefect-file", str(DEPLOYMENTS / "prefect.yaml"), "--all")


def test_a_parameter_that_no_longer_fits_is_named_and_nothing_of_it_is_shown_or_lost(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    of_old = {"dataset": "mine.json", "output": {"uri": "hunter2"}}
    with get_client(sync_client=True) as client:
        nightly = client.read_deployment_by_name("image-qa/nightly")
        of_old_flow = DeploymentUpdate(
            parameters=of_old, parameter_openapi_schema={"type": "object"}
        )
        client.update_deployment(nightly.id, of_old_flow)
        with pytest.raises(PrefectServerError) as caught:
            deploy("default", {})
        assert client.read_deployment(nightly.id).parameters == of_old
    told = str(caught.value)
    assert "field 'output'" in told
    assert "\n" not in told
    assert "hunter2" not in f"{told}{capfd.readouterr()}"
    prefect(folder, "deploy", "--prefect-file", str(DEPLOYMENTS / "prefect.yaml"), "--all")


def test_a_schedule_that_is_on_makes_runs(folder: Path) -> None:
    switch_schedule(on=True)
    with get_client(sync_client=True) as client:
        nightly = client.read_deployment_by_name("image-qa/nightly")
        # What the server does every minute, and cannot do with every release of SQLAlchemy.
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 3}):
            client.request(
                "POST", "/deployments/{id}/schedule", path_params={"id": nightly.id}, json={}
            )
        runs = client.read_flow_runs(
            deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[nightly.id])),
            flow_run_filter=FlowRunFilter(
                state=FlowRunFilterState(name=FlowRunFilterStateName(any_=["Scheduled"]))
            ),
        )
        switch_schedule(on=False)
    assert runs
    assert {run.expected_start_time.hour for run in runs if run.expected_start_time} == {2}


def test_a_second_night_is_cancelled_while_one_is_going(folder: Path) -> None:
    with get_client(sync_client=True) as client:
        nightly = client.read_deployment_by_name("image-qa/nightly")
        parameters = {"dataset": "d.json", "output": "out"}
        runs = [
            client.create_flow_run_from_deployment(nightly.id, parameters=parameters)
            for _ in range(2)
        ]
        answers: list[Any] = [client.set_flow_run_state(run.id, Pending()) for run in runs]
        states = [client.read_flow_run(run.id).state for run in runs]
        for run in runs:
            client.delete_flow_run(run.id)
    assert [state and state.name for state in states] == ["Pending", "Cancelled"], answers


@pytest.mark.parametrize("kind", ["docker", "kubernetes"])
def test_the_other_work_pools_take_the_same_deployments(kind: str, folder: Path) -> None:
    process = on_server()
    prefect(folder, "work-pool", "create", kind, "--type", kind, "--overwrite")
    prefect(folder, "deploy", "--prefect-file", str(DEPLOYMENTS / f"prefect-{kind}.yaml"), "--all")
    told = on_server()
    assert told.keys() == process.keys()
    for name, deployment in told.items():
        assert deployment["work_pool_name"] == kind
        assert deployment["job_variables"]["image"].startswith("prefect-imageqa:")
        for same in ("entrypoint", "tags", "description", "schedules", "concurrency_options"):
            assert deployment[same] == process[name][same]
