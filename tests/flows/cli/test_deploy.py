"""`prefect-imageqa deploy` on a real Prefect server."""

from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import WorkPool
from prefect_imageqa import VLLMEndpoint
from prefect_imageqa.flows.cli.deploy import deployments
from prefect_imageqa.serving.errors import ImageQAError


def deploy(*options: str) -> None:
    """Run `prefect-imageqa deploy`, which must succeed."""
    with pytest.raises(SystemExit) as ended:
        deployments(["deploy", *options])
    assert ended.value.code == 0


def create_pool(name: str, kind: str) -> WorkPool:
    with get_client(sync_client=True) as client:
        return client.create_work_pool(WorkPoolCreate(name=name, type=kind))


def test_it_says_what_was_done_and_what_comes_next(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    deploy("--pool", "my pool")
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "work pool 'my pool': created"
    names = [line.split(": ")[0] for line in told[1:4]]
    assert names == ["image-qa/on-demand", "image-qa/nightly", "image-qa/preview"]
    assert all("/deployments/deployment/" in line for line in told[1:4])
    assert told[4] == f"relative paths start from {tmp_path}"
    assert told[5].startswith("no worker polls 'my pool'")
    assert told[5].endswith("`prefect worker start --pool 'my pool'`")

    with get_client(sync_client=True) as client:
        client.send_worker_heartbeat("my pool", "a worker", heartbeat_interval_seconds=30)
    deploy("--pool", "my pool")
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "work pool 'my pool': is there"
    assert told[5].startswith("a worker polls 'my pool'")


def test_its_options_are_the_defaults_of_every_deployment() -> None:
    VLLMEndpoint(urls=["http://gpu-1:8000"]).save("deployed-to", overwrite=True)
    names = {"dataset": "qas.json", "output": "s3://bucket/qa", "endpoint": "deployed-to"}
    options = [word for name, value in names.items() for word in (f"--{name}", value)]
    deploy("--pool", "options", *options, "--model", "qwen")
    with get_client(sync_client=True) as client:
        for name, more in {"on-demand": {}, "nightly": {}, "preview": {"max_rows": 20}}.items():
            deployment = client.read_deployment_by_name(f"image-qa/{name}")
            assert deployment.parameters == {**names, "model": "qwen", **more}
            assert deployment.work_pool_name == "options"


def test_several_urls_are_one_text_as_in_the_form() -> None:
    urls = ["http://gpu-1:8000", "http://gpu-2:8000"]
    options = [word for url in urls for word in ("--endpoint", url)]
    deploy("--pool", "options", *options)
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name("image-qa/nightly")
    assert deployment.parameters["endpoint"] == " ".join(urls)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--pool", "containers"], "prefect-docker.yaml --all`"),
        (["--pool", "clouds"], "is of type 'ecs', not 'process': give another --pool"),
        (["--pool", "prefect-imageqa"], "no work pool of the name 'prefect-imageqa': give another"),
        (["--pool", "a/b"], "no work pool of the name 'a/b': give another --pool"),
        (["--endpoint", "nobody"], "`prefect block register -m prefect_imageqa`"),
        (["--store", "nobody"], "`prefect block register -m prefect_imageqa`"),
        (["--endpoint", "http://me:hunter2@gpu"], "without user"),
        (["--output", "ftp://host/qa"], "ftp:// is not supported"),
        (["--dataset", "s3://me:hunter2@bucket/qa"], "without a plain bucket name"),
    ],
    ids=[
        *("docker", "ecs", "reserved", "slash"),
        *("no endpoint", "no store", "password", "output", "dataset"),
    ],
)
def test_a_mistake_gets_one_clear_line_and_changes_nothing(
    options: list[str], expected: str
) -> None:
    with get_client(sync_client=True) as client:
        if "containers" not in {pool.name for pool in client.read_work_pools()}:
            create_pool("containers", "docker")
            create_pool("clouds", "ecs")
        before = {pool.name for pool in client.read_work_pools()}
        with pytest.raises(ImageQAError) as caught:
            deployments(["deploy", *options])
        assert {pool.name for pool in client.read_work_pools()} == before
    told = str(caught.value)
    assert expected in told
    assert "\n" not in told
    assert "hunter2" not in told
