"""`prefect-imageqa deploy`: puts the flow into Prefect's UI."""

from collections.abc import Iterator
from shlex import quote
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

if TYPE_CHECKING:
    from ..deploy import DeployResult

deployments = App()
"""Merged into the app of `main`."""


@deployments.command
def deploy(
    *,
    pool: str = "default",
    dataset: str | None = None,
    output: str | None = None,
    endpoint: Annotated[list[str] | None, Parameter(negative=())] = None,
    model: str | None = None,
    store: str | None = None,
) -> int:
    """Put the flow into the UI of your Prefect server, as deployments.

    `image-qa/on-demand` is a form with a Run button, `image-qa/nightly` processes new images on a
    schedule (paused until you enable it), `image-qa/preview` processes the first 20 rows.
    `image-qa-worker/worker` is what runs with the engine work-pool start. The work pool and the
    block types are created if missing. Run the command again to update everything.
    Relative paths of datasets and outputs are relative to the current folder.

    Example: prefect-imageqa deploy --dataset images.parquet --output qa --endpoint qwen

    Parameters
    ----------
    pool:
        Work pool of type "process"; start the worker with the same name.
    dataset:
        Default dataset of the deployments.
    output:
        Default output of the deployments: a local path or s3:// URI.
    endpoint:
        URL of a running vLLM server, or the name of a saved vLLM Endpoint block; repeat the
        option for several URLs. By default http://127.0.0.1:8000.
    model:
        Name the model is served under.
    store:
        Name of a saved Image QA Store block whose S3 credentials are used.
    """
    from ..deploy import deploy as deploy_all

    options = {
        "dataset": dataset,
        "output": output,
        "endpoint": " ".join(endpoint or ()),
        "model": model,
        "store": store,
    }
    parameters = {name: value for name, value in options.items() if value}
    for line in _lines(pool, deploy_all(pool, parameters)):
        print(line)
    return 0


def _lines(pool: str, result: "DeployResult") -> Iterator[str]:
    """What was done, and what to do next."""
    yield f"work pool {pool!r}: {'created' if result.created_pool else 'exists'}"
    for name, page in result.pages.items():
        yield f"{name}: {page}"
    yield f"relative paths start from {result.folder}"
    if result.has_worker:
        yield f"a worker polls {pool!r}: choose Run, Custom run on the pages above"
    else:
        command = f"prefect worker start --pool {quote(pool)}"
        yield f"no worker polls {pool!r}, so runs will wait; start one with `{command}`"
