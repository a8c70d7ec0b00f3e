"""`prefect-imageqa deploy` on a real Prefect server."""

from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect_imageqa import VLLMEndpoint
from prefect_imageqa.flows.cli.deploy import deployments
from prefect_imageqa.serving.errors import ImageQAError


def deploy(*options: str) -> None:
    """Run `prefect-imageqa deploy`, which must succeed."""
    with pytest.raises(SystemExit) as ended:
        deployments(["deploy", *options])
    assert ended.value.code == 0


def deployed() -> dict[str, tuple[str | None, dict[str, Any]]]:
    """Work pool and parameters of the deployments on the server, by name."""
    with get_client(sync_client=True) as client:
        found = [
            client.read_deployment_by_name(name)
            for name in (
                "image-qa/on-demand",
                "image-qa/nightly",
                "image-qa/preview",
                "image-qa-worker/worker",
            )
        ]
    return {each.name: (each.work_pool_name, each.parameters) for each in found}


def test_deploy_sets_parameters_and_prints_the_next_step(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with get_client(sync_client=True) as client:
        for deployment in client.read_deployments():  # of other tests: parameters would be kept
            client.delete_deployment(deployment.id)
    VLLMEndpoint(urls=["http://gpu-1:8000"]).save("deployed-to", overwrite=True)
    parameters = {
        "dataset": "qas.json",
        "output": "s3://bucket/qa",
        "endpoint": "deployed-to",
        "model": "qwen",
    }
    options = [word for name, value in parameters.items() for word in (f"--{name}", value)]
    deploy("--pool", "my pool", *options)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "work pool 'my pool': created"
    names = [line.split(": ")[0] for line in lines[1:5]]
    assert names == [
        "image-qa/on-demand",
        "image-qa/nightly",
        "image-qa/preview",
        "image-qa-worker/worker",
    ]
    assert all("/deployments/deployment/" in line for line in lines[1:5])
    assert lines[5] == f"relative paths start from {tmp_path}"
    assert lines[6].startswith("no worker polls 'my pool'")
    assert lines[6].endswith("`prefect worker start --pool 'my pool'`")
    assert deployed() == {
        "on-demand": ("my pool", parameters),
        "nightly": ("my pool", parameters),
        "preview": ("my pool", {**parameters, "max_rows": 20}),
        "worker": ("my pool", {}),
    }

    # Again, with a worker, and two endpoints: these are one text, as in the form.
    with get_client(sync_client=True) as client:
        client.send_worker_heartbeat("my pool", "a worker", heartbeat_interval_seconds=30)
    urls = ["http://gpu-1:8000", "http://gpu-2:8000"]
    deploy("--pool", "my pool", *(word for url in urls for word in ("--endpoint", url)))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "work pool 'my pool': exists"
    assert lines[6].startswith("a worker polls 'my pool'")
    assert deployed()["nightly"] == ("my pool", {**parameters, "endpoint": " ".join(urls)})


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        pytest.param(["--pool", "containers"], "prefect-docker.yaml --all`", id="docker"),
        pytest.param(
            ["--pool", "clouds"], "has type 'ecs', not 'process': use another --pool", id="ecs"
        ),
        pytest.param(
            ["--pool", "prefect-imageqa"],
            "rejects the work pool name 'prefect-imageqa': use another --pool",
            id="reserved",
        ),
        pytest.param(
            ["--pool", "a/b"], "rejects the work pool name 'a/b': use another --pool", id="slash"
        ),
        pytest.param(
            ["--endpoint", "missing"],
            "`prefect block register -m prefect_imageqa`",
            id="no endpoint block",
        ),
        pytest.param(
            ["--store", "missing"],
            "`prefect block register -m prefect_imageqa`",
            id="no store block",
        ),
        pytest.param(["--endpoint", "http://me:hunter2@gpu"], "must not contain", id="password"),
        pytest.param(["--output", "ftp://host/qa"], "ftp:// is not supported", id="output"),
        pytest.param(
            ["--dataset", "s3://me:hunter2@bucket/qa"], "without a plain bucket name", id="dataset"
        ),
    ],
)
def test_a_user_error_is_one_line_and_changes_nothing(options: list[str], expected: str) -> None:
    with get_client(sync_client=True) as client:
        if "containers" not in {pool.name for pool in client.read_work_pools()}:
            for name, kind in {"containers": "docker", "clouds": "ecs"}.items():
                client.create_work_pool(WorkPoolCreate(name=name, type=kind))
        before = {pool.name for pool in client.read_work_pools()}
        with pytest.raises(ImageQAError) as caught:
            deployments(["deploy", *options])
        assert {pool.name for pool in client.read_work_pools()} == before
    message = str(caught.value)
    assert expected in message
    assert "\n" not in message
    assert "hunter2" not in message
