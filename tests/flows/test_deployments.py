"""The shipped deployments, deployed to a real Prefect server and run by a real worker."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, DeploymentUpdate
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
from prefect.client.schemas.schedules import CronSchedule
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


pytestmark = pytest.mark.timeout(600)


def prefect(folder: Path, *arguments: str) -> str:
    """Run Prefect's command line in a folder, on the tests' server."""
    command = [str(Path(sys.executable).with_name("prefect")), "--no-prompt", *arguments]
    settings = {"PREFECT_API_URL": str(PREFECT_API_URL.value()), "PWD": str(folder)}
    settings["PREFECT_IMAGEQA_API_KEY"] = "stub-api-key-5f2c"  # which no run may send anywhere
    done = subprocess.run(
        command,
        env={**os.environ, **settings},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def on_server() -> dict[str, dict[str, Any]]:
    """The deployments as the server has them, by name and without ids and times."""
    tagged = DeploymentFilter(tags=DeploymentFilterTags(all_=["image-qa"]))
    with get_client(sync_client=True) as client:
        found = client.read_deployments(deployment_filter=tagged)
    varying = {"id", "created", "updated", "deployment_id", "last_polled", "status"}
    deployments = {deployment.name: deployment.model_dump(mode="json") for deployment in found}
    for deployment in deployments.values():
        deployment["schedules"].sort(key=lambda schedule: schedule["schedule"]["cron"])
        for part in (deployment, *deployment["schedules"]):
            for name in varying & part.keys():
                del part[name]
        if limit := deployment["global_concurrency_limit"]:
            deployment["global_concurrency_limit"] = limit["limit"]
    return deployments


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the documented commands were run to deploy."""
    folder = tmp_path_factory.mktemp("deployed")
    prefect(folder, "work-pool", "create", "default", "--type", "process", "--overwrite")
    prefect(folder, "deploy", "--prefect-file", str(DEPLOYMENTS / "prefect.yaml"), "--all")
    return folder


def states_of(run: UUID) -> list[str]:
    """The states that a flow run has had so far."""
    with get_client(sync_client=True) as client:
        response = client.request("GET", "/flow_run_states/", params={"flow_run_id": str(run)})
    return [
        state["name"] for state in sorted(response.json(), key=lambda state: state["timestamp"])
    ]


def schedule(deployment: str, **options: Any) -> UUID:
    """Create a run of a deployment, which the next worker picks up."""
    with get_client(sync_client=True) as client:
        read = client.read_deployment_by_name(f"image-qa/{deployment}")
        return client.create_flow_run_from_deployment(read.id, **options).id


@dataclass(frozen=True)
class WorkerRuns:
    """Runs executed by a worker that was started twice.

    Attributes:
        folder: where the deployments were deployed from; dataset and output paths are relative.
        stub: the model server of all runs.
        mistake: a run whose endpoint does not exist.
        attack: a run whose parser is a shell command, with replies to suit.
        thief: a run whose endpoint wants the API key in the worker's environment.
        preview: a run created with `run_deployment`.
        retried: a run that fails and is retried, first by Prefect, then as in Prefect's UI.
        first_states: the states of `retried` before it was retried as in the UI.
    """

    folder: Path
    stub: Any
    mistake: UUID
    attack: UUID
    thief: UUID
    preview: UUID
    retried: UUID
    first_states: list[str]


@pytest.fixture(scope="module")
def runs(folder: Path, start_stub: Any, keyed_stub: Any) -> WorkerRuns:
    """What a worker makes of runs of every deployment."""
    stub = start_stub()
    write_demo_dataset(folder, 22, seed=5)
    rows = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(rows[:12]))
    nightly = {"dataset": "dataset.json", "output": "nightly", "endpoint": stub.url}
    schedule("nightly", parameters=nightly)
    mistake = schedule(
        "on-demand", parameters={**nightly, "output": "mistake", "endpoint": "no-such-block"}
    )
    shell = [{"conversation": [{"from": "human", "value": "STUB text touch started-by-reply"}]}]
    (folder / "attack.json").write_text(json.dumps([{**rows[0], **row} for row in shell]))
    attack = schedule(
        "on-demand",
        parameters={
            **nightly,
            "dataset": "attack.json",
            "output": "attack",
            "parsing": {"parser": "os:system"},
        },
    )
    thief = schedule(
        "on-demand", parameters={**nightly, "output": "theft", "endpoint": keyed_stub.url}
    )
    preview: Any = run_deployment(
        "image-qa/preview",
        flow_run_name="First try",
        parameters={
            **nightly,
            "output": "preview",
            "max_rows": 3,
            "sampling": {"max_tokens": 64},
        },
        timeout=0,
    )
    retried = schedule(
        "on-demand",
        parameters={**nightly, "dataset": "late/dataset.json", "output": "retried"},
        job_variables={"env": {"PREFECT_FLOWS_DEFAULT_RETRIES": "1"}},
    )
    worker = ("worker", "start", "--pool", "default", "--run-once")
    prefect(folder, *worker)
    first_states = states_of(retried)

    (folder / "dataset.json").write_text(json.dumps(rows))
    schedule("nightly", parameters=nightly)
    write_demo_dataset(folder / "late", 4, seed=5)
    with get_client(sync_client=True) as client:
        # This is what "Retry" in the UI does.
        client.set_flow_run_state(retried, Scheduled(name="AwaitingRetry"), force=True)
    prefect(folder, *worker)
    return WorkerRuns(folder, stub, mistake, attack, thief, preview.id, retried, first_states)


def answered(runs: WorkerRuns, output: str) -> int:
    """Number of rows in an export."""
    return len((runs.folder / output / "qa.jsonl").read_text().splitlines())


def test_nightly_runs_process_only_the_new_images(runs: WorkerRuns) -> None:
    records = [
        json.loads(path.read_text()) for path in (runs.folder / "nightly" / "runs").iterdir()
    ]
    records.sort(key=lambda record: str(record["started"]))
    assert [record["counts"]["requests"] for record in records] == [12, 10]
    assert answered(runs, "nightly") == 22


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ("mistake", "there is no vLLM Endpoint block named 'no-such-block': "),
        ("attack", "there is no parser 'os:system': give one of "),
        ("thief", "{keyed_stub}/v1 wants an API key (HTTP 401), and no key was sent: "),
    ],
)
def test_a_mistake_in_a_parameter_is_reported_in_one_line(
    run: str, message: str, runs: WorkerRuns, keyed_stub: Any
) -> None:
    run_id, message = getattr(runs, run), message.format(keyed_stub=keyed_stub.url)
    of_run = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run_id]))
    deadline = time.monotonic() + 120
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(run_id).state
        while True:
            logs = [log.message for log in client.read_logs(of_run, limit=200)]
            if reported := [log for log in logs if log.startswith(message)]:
                break
            assert time.monotonic() < deadline, "\n".join(logs)  # they reach the API later
            time.sleep(0.5)
    assert state
    assert state.name == "Failed"
    assert message in str(state.message)
    assert not [log for log in reported if "\n" in log]
    assert not [log for log in logs if "Traceback" in log]


def test_a_parameter_does_not_run_code_on_a_worker(runs: WorkerRuns) -> None:
    assert states_of(runs.attack)[-1] == "Failed"
    assert not list(runs.folder.rglob("started-by-reply*"))
    assert not (runs.folder / "attack").exists()


def test_a_run_is_retried_by_prefect_and_from_the_ui(runs: WorkerRuns) -> None:
    assert runs.first_states[-4:] == ["Running", "AwaitingRetry", "Running", "Failed"]
    later = states_of(runs.retried)[len(runs.first_states) :]
    assert (later[0], later[-2:]) == ("AwaitingRetry", ["Running", "Completed"])
    assert answered(runs, "retried") == 4


def test_run_deployment_passes_its_parameters_on(runs: WorkerRuns) -> None:
    assert states_of(runs.preview)[-1] == "Completed"
    with get_client(sync_client=True) as client:
        assert client.read_flow_run(runs.preview).name == "First try"
        assert client.read_flow_run(runs.attack).name.startswith("attack.json to attack, ")
    assert answered(runs, "preview") == 3
    limits = [body["max_tokens"] for body in runs.stub.stats()["bodies"]]
    assert limits.count(64) == 3


def test_image_qa_as_a_subflow(stub: Any, drawn: Path, tmp_path: Path) -> None:
    @flow(name="weekly")
    def weekly() -> RunSummary:
        return image_qa(str(drawn / "dataset.json"), str(tmp_path / "out"), stub.url)

    summary: Any = weekly()
    assert summary.ok == 12


def test_deploy_does_the_same_as_the_documented_commands(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_commands = on_server()
    monkeypatch.chdir(folder)
    deployed = deploy("default", {})
    assert on_server() == by_commands
    assert sorted(deployed.pages) == [
        "image-qa-worker/worker",
        "image-qa/nightly",
        "image-qa/on-demand",
        "image-qa/preview",
    ]
    assert not deployed.created_pool
    assert set(by_commands) == {"on-demand", "nightly", "preview", "worker"}
    assert all("](https://" in shown["description"] for shown in by_commands.values())
    assert by_commands["preview"]["parameters"]["max_rows"] == 20
    nightly = by_commands["nightly"]
    assert [schedule["active"] for schedule in nightly["schedules"]] == [False]
    assert nightly["global_concurrency_limit"] == 1


def read_nightly() -> Any:
    with get_client(sync_client=True) as client:
        return client.read_deployment_by_name("image-qa/nightly")


@pytest.fixture
def _restored(folder: Path) -> Iterator[None]:
    """Undo what the test changes in the deployments."""
    with get_client(sync_client=True) as client:
        names = [f"image-qa/{name}" for name in ("on-demand", "nightly", "preview")]
        names.append("image-qa-worker/worker")
        before = [client.read_deployment_by_name(name) for name in names]
        yield
        for deployment in before:
            fields = ("parameters", "parameter_openapi_schema", "work_pool_name", "job_variables")
            restored = {name: getattr(deployment, name) for name in fields}
            client.update_deployment(deployment.id, DeploymentUpdate(**restored))
            for current in client.read_deployment(deployment.id).schedules:
                client.delete_deployment_schedule(deployment.id, current.id)
            for old in deployment.schedules:
                create = DeploymentScheduleCreate(
                    schedule=old.schedule, active=old.active, slug=old.slug
                )
                client.create_deployment_schedules(deployment.id, [create])


def switch_schedule(*, on: bool) -> None:
    """Do what the switch of the nightly schedule does in the UI."""
    nightly = read_nightly()
    with get_client(sync_client=True) as client:
        client.update_deployment_schedule(nightly.id, nightly.schedules[0].id, active=on)


@pytest.mark.usefixtures("_restored")
def test_deploying_again_keeps_what_was_set_in_the_ui_and_sets_new_defaults(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    switch_schedule(on=True)
    nightly = read_nightly()
    prompt = "Ask about {{ place }}, in {{ $LANG }}."  # `prefect deploy` would fill that in
    mine = {"dataset": "mine.json", "system_prompt": prompt, "sampling": {"temperature": 0.2}}
    set_in_ui = {**nightly.parameters, **mine}
    more = CronSchedule(cron="30 4 * * *", timezone="Europe/Berlin")
    with get_client(sync_client=True) as client:
        client.update_deployment(nightly.id, DeploymentUpdate(parameters=set_in_ui))
        client.create_deployment_schedules(
            nightly.id, [DeploymentScheduleCreate(schedule=more, active=True)]
        )
    deploy("default", {"output": "s3://bucket/qa"})
    deployed = on_server()
    assert deployed["nightly"]["parameters"] == {**set_in_ui, "output": "s3://bucket/qa"}
    schedules = {
        schedule["schedule"]["cron"]: schedule["active"]
        for schedule in deployed["nightly"]["schedules"]
    }
    assert schedules == {"0 2 * * *": True, "30 4 * * *": True}
    assert deployed["preview"]["parameters"] == {
        "endpoint": "http://127.0.0.1:8000",
        "max_rows": 20,
        "output": "s3://bucket/qa",
    }


@pytest.mark.usefixtures("_restored")
def test_a_parameter_that_no_longer_fits_is_named_and_neither_shown_nor_lost(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    old = {"dataset": "mine.json", "output": {"uri": "hunter2"}}
    nightly = read_nightly()
    with get_client(sync_client=True) as client:
        of_old_flow = DeploymentUpdate(parameters=old, parameter_openapi_schema={"type": "object"})
        client.update_deployment(nightly.id, of_old_flow)
    with pytest.raises(PrefectServerError) as caught:
        deploy("default", {})
    assert read_nightly().parameters == old
    message = str(caught.value)
    assert "field 'output'" in message
    assert "\n" not in message
    assert "hunter2" not in f"{message}{capfd.readouterr()}"


@pytest.mark.usefixtures("_restored")
def test_an_active_schedule_creates_runs(folder: Path) -> None:
    switch_schedule(on=True)
    nightly = read_nightly()
    with get_client(sync_client=True) as client:
        # The server does this every minute, but not with every release of SQLAlchemy.
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 3}):
            client.request(
                "POST", "/deployments/{id}/schedule", path_params={"id": nightly.id}, json={}
            )
        scheduled = client.read_flow_runs(
            deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[nightly.id])),
            flow_run_filter=FlowRunFilter(
                state=FlowRunFilterState(name=FlowRunFilterStateName(any_=["Scheduled"]))
            ),
        )
    assert scheduled
    assert {run.expected_start_time.hour for run in scheduled if run.expected_start_time} == {2}


def test_a_nightly_run_is_cancelled_while_another_one_is_active(folder: Path) -> None:
    nightly = read_nightly()
    with get_client(sync_client=True) as client:
        runs = [
            client.create_flow_run_from_deployment(
                nightly.id, parameters={"dataset": "d.json", "output": "out"}
            )
            for _ in range(2)
        ]
        answers: list[Any] = [client.set_flow_run_state(run.id, Pending()) for run in runs]
        states = [client.read_flow_run(run.id).state for run in runs]
        for run in runs:
            client.delete_flow_run(run.id)
    assert [state and state.name for state in states] == ["Pending", "Cancelled"], answers


@pytest.mark.usefixtures("_restored")
@pytest.mark.parametrize("kind", ["docker", "kubernetes"])
def test_other_work_pools_get_the_same_deployments(kind: str, folder: Path) -> None:
    process = on_server()
    prefect(folder, "work-pool", "create", kind, "--type", kind, "--overwrite")
    prefect(folder, "deploy", "--prefect-file", str(DEPLOYMENTS / f"prefect-{kind}.yaml"), "--all")
    deployed = on_server()
    assert deployed.keys() == process.keys()
    for name, deployment in deployed.items():
        assert deployment["work_pool_name"] == kind
        assert deployment["job_variables"]["image"].startswith("prefect-imageqa:")
        for same in ("entrypoint", "tags", "description", "schedules", "concurrency_options"):
            assert deployment[same] == process[name][same]
