"""Creates or updates the shipped deployments on the configured Prefect server.

`prefect deploy --all` does the main part. This module adds what it lacks: it registers the block
types, creates the work pool, checks the parameters, and preserves what was set in the UI.
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

FLOW, WORKER_FLOW = "image-qa", "image-qa-worker"
SHIPPED = files("prefect_imageqa") / "deployments"


@dataclass(frozen=True)
class DeployResult:
    """The result of `deploy`.

    Attributes:
        created_pool: whether the work pool was created.
        pages: deployment name, such as `image-qa/on-demand` -> its page in Prefect's UI.
        folder: working directory of the deployments, for relative paths.
        has_worker: whether a worker polls the pool.
    """

    created_pool: bool
    pages: dict[str, str]
    folder: Path
    has_worker: bool


def deploy(pool: str, parameters: Mapping[str, str]) -> DeployResult:
    """Create or update the shipped deployments; parameters and schedules set in the UI are kept.

    Args:
        pool: work pool of type `process`; created if missing.
        parameters: `dataset`, `output`, `endpoint`, `model` or `store` of all deployments of runs.
            They take precedence over those set on the server, and these over the shipped ones.

    Raises:
        PrefectServerError: there is no server, or it rejects the pool or a deployment.
        EndpointError: the endpoint is malformed, or there is no such block.
        StoreError: a path is malformed, or there is no such block.
    """
    check_server(needed=True)
    folder = Path.cwd()
    config = yaml.safe_load((SHIPPED / "prefect.yaml").read_text("utf-8"))
    with get_client(sync_client=True) as client:
        for block in BLOCKS:
            cast("Any", block).register_type_and_schema(_sync=True)
        _check_parameters(parameters)
        created_pool = _create_pool(client, pool)
        before = _read_deployments(client)
        for deployment in config["deployments"]:
            deployment["work_pool"]["name"] = pool
            name = _full_name(deployment)
            if existing := before.get(name):
                deployment["parameters"] = {**deployment["parameters"], **existing.parameters}
                deployment.pop("schedules", None)  # Prefect keeps those that the file does not set
            if name.startswith(f"{FLOW}/"):
                deployment["parameters"] = {**deployment["parameters"], **parameters}
        _prefect_deploy(config, folder)
        pages, after = {}, _read_deployments(client)
        for deployment in config["deployments"]:
            name, wanted = _full_name(deployment), deployment["parameters"]
            created = after[name]
            if created.parameters != wanted:  # Prefect replaced what looks like {{ a template }}
                client.update_deployment(created.id, DeploymentUpdate(parameters=wanted))
            pages[name] = url_for("deployment", created.id) or str(created.id)
        return DeployResult(created_pool, pages, folder, has_worker(client, pool))


def _check_parameters(parameters: Mapping[str, str]) -> None:
    """Reject what every run would reject; Prefect's database would store passwords in URLs."""
    for uri in parameters.keys() & {"dataset", "output"}:
        split_uri(parameters[uri])
    if "endpoint" in parameters:
        names = parameters["endpoint"].split()
        load_endpoint(names[0] if len(names) == 1 else names)
    if "store" in parameters:
        load_store(parameters["store"])


def _create_pool(client: SyncPrefectClient, pool: str) -> bool:
    """Create the work pool if it is missing; returns whether it was."""
    template = ProcessWorker.get_default_base_job_template()
    try:
        client.create_work_pool(
            WorkPoolCreate(name=pool, type="process", base_job_template=template)
        )
    except ObjectAlreadyExists:
        kind = client.read_work_pool(pool).type
        if kind == "process":
            return False
        message = f"the work pool {pool!r} has type {kind!r}, not 'process': use another --pool"
        variant = SHIPPED / f"prefect-{kind}.yaml"
        if variant.is_file():
            message += f", or deploy to it with `prefect deploy --prefect-file {variant} --all`"
        raise PrefectServerError(message) from None
    except (HTTPStatusError, ValueError):  # for example a reserved name, or one with a slash
        message = f"Prefect rejects the work pool name {pool!r}: use another --pool"
        raise PrefectServerError(message) from None
    return True


def _full_name(deployment: Mapping[str, Any]) -> str:
    """The name of a deployment of the file, with that of its flow: `image-qa/on-demand`."""
    is_run = deployment["entrypoint"].endswith(":image_qa")
    return f"{FLOW if is_run else WORKER_FLOW}/{deployment['name']}"


def _read_deployments(client: SyncPrefectClient) -> dict[str, DeploymentResponse]:
    """The deployments of the flows on the server, by name, such as `image-qa/on-demand`."""
    found = {}
    for name in (FLOW, WORKER_FLOW):
        flow = FlowFilter(name=FlowFilterName(any_=[name]))
        for deployment in client.read_deployments(flow_filter=flow):
            found[f"{name}/{deployment.name}"] = deployment
    return found


def _prefect_deploy(config: Mapping[str, Any], folder: Path) -> None:
    """Run `prefect deploy --all` in a folder, with `config` as its prefect.yaml."""
    command = [sys.executable, "-P", "-m", "prefect", "--no-prompt", "deploy", "--all"]
    command += ["--prefect-file", "/dev/stdin"]
    settings = get_current_settings().to_environment_variables(exclude_unset=True)
    env = {**os.environ, **settings, "PWD": str(folder)}
    file = yaml.safe_dump(config)
    done = subprocess.run(command, env=env, input=file, capture_output=True, text=True)  # noqa: S603
    if done.returncode:
        # Its output may contain parameter values: report only the name or the type of the error.
        reasons = re.findall(r"field '[^']+'|^[\w.]+(?=: )", done.stderr, re.MULTILINE)
        raise PrefectServerError(
            f"`prefect deploy` failed ({reasons[-1] if reasons else 'no reason given'}): correct "
            "the deployments' parameters in Prefect's UI, or see the log of its server"
        )
