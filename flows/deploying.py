"""The shipped deployments, on the configured Prefect server: pool, block types, deployments.

Everything here can be done with `prefect`'s own commands; docs/deploying.md says how.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, cast

import yaml
from httpx import HTTPStatusError
from prefect.blocks.core import Block
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolCreate
from prefect.client.schemas.objects import ConcurrencyLimitConfig
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from prefect.deployments.runner import DeploymentApplyError, RunnerDeployment
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.runner.storage import LocalStorage
from prefect.utilities.urls import url_for
from prefect.workers.process import ProcessWorker

from ..serving.endpoint import VLLMEndpoint, load_endpoint
from ..tasks.filesystems import split_uri
from ..tasks.object_store import ObjectStore, load_store
from .image_qa import image_qa
from .prefect_server import PrefectServerError, check_server, has_worker

SHIPPED = ("prefect.yaml", "prefect-docker.yaml", "prefect-kubernetes.yaml")
"""The same deployments, for work pools of one kind each."""

BLOCKS: tuple[type[Block], ...] = (VLLMEndpoint, ObjectStore)


@dataclass(frozen=True)
class Deployed:
    """What `deploy` has left on the server.

    Attributes:
        pool: work pool of the deployments.
        created_pool: whether it was not there before.
        pages: where the deployments, such as `image-qa/on-demand`, are in Prefect's UI.
        folder: where relative paths of `dataset` and `output` start.
        has_worker: whether a worker polls the pool.
    """

    pool: str
    created_pool: bool
    pages: dict[str, str]
    folder: Path
    has_worker: bool


def deploy(pool: str, parameters: Mapping[str, str]) -> Deployed:
    """Create or update the shipped deployments; whatever they need is created where it is missing.

    What was set on the server, in its UI say, stays: parameters and schedules.

    Args:
        pool: work pool of type `process`.
        parameters: `dataset`, `output`, `endpoint`, `model` or `store` for all deployments, over
            what is set on the server and what is shipped.

    Raises:
        PrefectServerError: there is no server, it is of another major version, or the pool is of
            another type.
        EndpointError: the endpoint is malformed, or no such block is saved.
        StoreError: a path is malformed, or no such block is saved.
    """
    check_server(needed=True)
    folder = Path.cwd()
    with get_client(sync_client=True) as client:
        for block in BLOCKS:
            cast("Any", block).register_type_and_schema(_sync=True)
        _check_parameters(parameters)
        created = _create_pool(client, pool)
        pages = {}
        for shipped in shipped_deployments():
            deployment = _deployment(shipped, pool, parameters, folder, _found(client, shipped))
            pages[deployment.full_name] = _apply(deployment)
        return Deployed(pool, created, pages, folder, has_worker(client, pool))


def shipped_deployments() -> list[dict[str, Any]]:
    """The deployments of the packaged `prefect.yaml`."""
    told = yaml.safe_load(_shipped(SHIPPED[0]).read_text("utf-8"))
    return cast("list[dict[str, Any]]", told["deployments"])


def _shipped_defaults() -> list[tuple[str, Any]]:
    """Parameters that nobody has set: those of all shipped files."""
    texts = [_shipped(name).read_text("utf-8") for name in SHIPPED]
    deployments = [told for text in texts for told in yaml.safe_load(text)["deployments"]]
    return [default for told in deployments for default in told["parameters"].items()]


def _shipped(name: str) -> Traversable:
    return files("prefect_imageqa") / "deployments" / name


def _check_parameters(parameters: Mapping[str, str]) -> None:
    """Refuse what every run would; a password in a URL would be kept in Prefect's database."""
    for uri in ("dataset", "output"):
        if uri in parameters:
            split_uri(parameters[uri])
    if "endpoint" in parameters:
        named = parameters["endpoint"].split()
        load_endpoint(named[0] if len(named) == 1 else named)
    if "store" in parameters:
        load_store(parameters["store"])


def _create_pool(client: SyncPrefectClient, pool: str) -> bool:
    """Create the work pool where it is missing; tell whether it was.

    Raises:
        PrefectServerError: it is there, and runs nothing as a process.
    """
    template = ProcessWorker.get_default_base_job_template()
    try:
        client.create_work_pool(
            WorkPoolCreate(name=pool, type="process", base_job_template=template)
        )
    except ObjectAlreadyExists:
        kind = client.read_work_pool(pool).type
        if kind != "process":
            raise PrefectServerError(_other_kind(pool, kind)) from None
        return False
    except HTTPStatusError as error:
        raise PrefectServerError(
            f"the Prefect server refuses the work pool {pool!r} ({_detail(error)}): "
            "give another --pool"
        ) from None
    return True


def _other_kind(pool: str, kind: str) -> str:
    told = f"the work pool {pool!r} is of type {kind!r}, not 'process': give another --pool"
    variant = _shipped(f"prefect-{kind}.yaml")
    if variant.is_file():
        told += f", or deploy to it with `prefect deploy --prefect-file {variant} --all`"
    return told


def _detail(error: HTTPStatusError) -> str:
    """What the server says of its refusal, in one bounded line."""
    try:
        told = str(error.response.json()["detail"])
    except (ValueError, LookupError, TypeError):
        told = f"HTTP {error.response.status_code}"
    return " ".join(told.split())[:200].rstrip(".")


def _deployment(
    shipped: dict[str, Any],
    pool: str,
    parameters: Mapping[str, str],
    folder: Path,
    found: DeploymentResponse | None,
) -> RunnerDeployment:
    """A deployment of `prefect.yaml` as `prefect deploy` makes it, with what was set before."""
    limit = shipped.get("concurrency_limit")
    defaults = _shipped_defaults()
    before = {
        name: value
        for name, value in (found.parameters if found else {}).items()
        if (name, value) not in defaults
    }
    deployment = RunnerDeployment.from_entrypoint(
        shipped["entrypoint"],
        shipped["name"],
        description=shipped["description"],
        tags=shipped["tags"],
        parameters={**shipped["parameters"], **before, **parameters},
        schedules=_schedules(shipped, found),
        concurrency_limit=ConcurrencyLimitConfig(**limit) if limit else None,
        work_pool_name=pool,
        job_variables=shipped["work_pool"]["job_variables"],
    )
    deployment.storage = LocalStorage(str(folder))
    return deployment


def _apply(deployment: RunnerDeployment) -> str:
    """Create or update a deployment; where it is in Prefect's UI."""
    try:
        document = cast("Any", deployment).apply(_sync=True)
    except DeploymentApplyError as error:
        told = " ".join(str(error).split())
        raise PrefectServerError(
            f"the Prefect server refuses deployment {deployment.full_name}: {told}"
        ) from None
    return url_for("deployment", document) or str(document)


def _schedules(
    shipped: Mapping[str, Any], found: DeploymentResponse | None
) -> list[DeploymentScheduleCreate]:
    """All schedules that a deployment has, as they are, and those of `prefect.yaml` it lacks."""
    kept = [
        DeploymentScheduleCreate.model_validate(
            schedule.model_dump(include=set(DeploymentScheduleCreate.model_fields))
        )
        for schedule in (found.schedules if found else [])
    ]
    return kept + [
        DeploymentScheduleCreate(
            slug=told["slug"],
            schedule=CronSchedule(cron=told["cron"], timezone=told["timezone"]),
            active=told["active"],
        )
        for told in shipped.get("schedules", [])
        if told["slug"] not in {schedule.slug for schedule in kept}
    ]


def _found(client: SyncPrefectClient, shipped: Mapping[str, Any]) -> DeploymentResponse | None:
    """A deployment as the server has it."""
    try:
        return client.read_deployment_by_name(f"{image_qa.name}/{shipped['name']}")
    except ObjectNotFound:
        return None
