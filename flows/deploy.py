"""The shipped deployments, on the configured Prefect server.

`prefect deploy --all` creates and updates them. Here is what it does not do: register the block
types, create the work pool, check the parameters, and keep what was set in the UI.
"""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import yaml
from httpx import HTTPStatusError
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentUpdate, WorkPoolCreate
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectAlreadyExists
from prefect.settings import get_current_settings
from prefect.utilities.urls import url_for
from prefect.workers.process import ProcessWorker

from ..serving.endpoint import load_endpoint
from ..tasks.errors import PrefectServerError
from ..tasks.object_store.filesystems import split_uri
from ..tasks.object_store.store import load_store
from .blocks import BLOCKS
from .prefect_server import check_server, has_worker

FLOW = "image-qa"
SHIPPED = files("prefect_imageqa") / "deployments"


@dataclass(frozen=True)
class DeployResult:
    """What `deploy` has left on the server.

    Attributes:
        created_pool: whether the work pool was not there before.
        pages: where the deployments, such as `image-qa/on-demand`, are in Prefect's UI.
        folder: where relative paths of `dataset` and `output` start.
        has_worker: whether a worker polls the pool.
    """

    created_pool: bool
    pages: dict[str, str]
    folder: Path
    has_worker: bool


def deploy(pool: str, parameters: Mapping[str, str]) -> DeployResult:
    """Create or update the shipped deployments; parameters and schedules set in the UI stay.

    Args:
        pool: work pool of type `process`; created where it is missing.
        parameters: `dataset`, `output`, `endpoint`, `model` or `store` for all deployments, over
            what is set on the server and what is shipped.

    Raises:
        PrefectServerError: there is no server, or it refuses the pool or a deployment.
        EndpointError: the endpoint is malformed, or no such block is saved.
        StoreError: a path is malformed, or no such block is saved.
    """
    check_server(needed=True)
    folder = Path.cwd()
    told = yaml.safe_load((SHIPPED / "prefect.yaml").read_text("utf-8"))
    with get_client(sync_client=True) as client:
        for block in BLOCKS:
            cast("Any", block).register_type_and_schema(_sync=True)
        _check_parameters(parameters)
        created = _create_pool(client, pool)
        before = _on_server(client)
        for deployment in told["deployments"]:
            deployment["work_pool"]["name"] = pool
            if found := before.get(deployment["name"]):
                deployment["parameters"] = {**deployment["parameters"], **found.parameters}
                deployment.pop("schedules", None)  # Prefect leaves alone what the file lacks
            deployment["parameters"] = {**deployment["parameters"], **parameters}
        _prefect_deploy(told, folder)
        pages, after = {}, _on_server(client)
        for deployment in told["deployments"]:
            found, wanted = after[deployment["name"]], deployment["parameters"]
            if found.parameters != wanted:  # Prefect has filled in what looks like {{ this }}
                client.update_deployment(found.id, DeploymentUpdate(parameters=wanted))
            pages[f"{FLOW}/{found.name}"] = url_for("deployment", found.id) or str(found.id)
        return DeployResult(created, pages, folder, has_worker(client, pool))


def _check_parameters(parameters: Mapping[str, str]) -> None:
    """Refuse what every run would; a password in a URL would be kept in Prefect's database."""
    for uri in parameters.keys() & {"dataset", "output"}:
        split_uri(parameters[uri])
    if "endpoint" in parameters:
        named = parameters["endpoint"].split()
        load_endpoint(named[0] if len(named) == 1 else named)
    if "store" in parameters:
        load_store(parameters["store"])


def _create_pool(client: SyncPrefectClient, pool: str) -> bool:
    """Create the work pool where it is missing; tell whether it was."""
    template = ProcessWorker.get_default_base_job_template()
    try:
        client.create_work_pool(
            WorkPoolCreate(name=pool, type="process", base_job_template=template)
        )
    except ObjectAlreadyExists:
        kind = client.read_work_pool(pool).type
        if kind == "process":
            return False
        told = f"the work pool {pool!r} is of type {kind!r}, not 'process': give another --pool"
        variant = SHIPPED / f"prefect-{kind}.yaml"
        if variant.is_file():
            told += f", or deploy to it with `prefect deploy --prefect-file {variant} --all`"
        raise PrefectServerError(told) from None
    except (HTTPStatusError, ValueError):  # reserved by Prefect, or has a slash, say
        told = f"Prefect takes no work pool of the name {pool!r}: give another --pool"
        raise PrefectServerError(told) from None
    return True


def _on_server(client: SyncPrefectClient) -> dict[str, DeploymentResponse]:
    """The flow's deployments as the server has them."""
    flow = FlowFilter(name=FlowFilterName(any_=[FLOW]))
    return {found.name: found for found in client.read_deployments(flow_filter=flow)}


def _prefect_deploy(told: Mapping[str, Any], folder: Path) -> None:
    """Run `prefect deploy --all` in a folder; `told` is its prefect.yaml."""
    command = [sys.executable, "-P", "-m", "prefect", "--no-prompt", "deploy", "--all"]
    command += ["--prefect-file", "/dev/stdin"]
    settings = get_current_settings().to_environment_variables(exclude_unset=True)
    env = {**os.environ, **settings, "PWD": str(folder)}
    file = yaml.safe_dump(told)
    done = subprocess.run(command, env=env, input=file, capture_output=True, text=True)  # noqa: S603
    if done.returncode:
        # It may print parameters, so only which one is refused, or the kind of error, is told.
        reasons = re.findall(r"field '[^']+'|^[\w.]+(?=: )", done.stderr, re.MULTILINE)
        raise PrefectServerError(
            f"`prefect deploy` failed ({reasons[-1] if reasons else 'no reason given'}): correct "
            "the deployments' parameters in Prefect's UI, or see the log of its server"
        )
