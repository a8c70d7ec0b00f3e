"""`prefect-imageqa deploy`: the flow in Prefect's UI, for a newcomer."""

from collections.abc import Iterator
from shlex import quote
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

if TYPE_CHECKING:
    from ..deploy import DeployResult

deployments = App()
"""Commands that `cli` takes over."""


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
    """Put the flow into the UI of your Prefect server, as three deployments.

    `image-qa/on-demand` is a form with a Run button, `image-qa/nightly` a schedule that asks about
    the new images (paused until you switch it on), `image-qa/preview` the first 20 rows. The work
    pool and the block types are created where they are missing. The same command again updates
    them. Relative paths of datasets and outputs start from the folder it is called in.

    Example: prefect-imageqa deploy --dataset images.parquet --output qa --endpoint qwen

    Parameters
    ----------
    pool:
        Work pool of type "process"; `prefect worker start` is given the same name.
    dataset:
        Dataset that the deployments ask about where a run names no other.
    output:
        Local path or s3:// URI under which runs keep everything where they name no other.
    endpoint:
        URL of a running vLLM server, or the name of a saved vLLM Endpoint block; repeat the
        option for several URLs. By default http://127.0.0.1:8000.
    model:
        Name the server serves the model under.
    store:
        Name of a saved Image QA Store block whose S3 credentials are used.
    """
    from ..deploy import deploy as deploy_all

    given = {
        "dataset": dataset,
        "output": output,
        "endpoint": " ".join(endpoint or ()),
        "model": model,
        "store": store,
    }
    parameters = {name: value for name, value in given.items() if value}
    for line in _told(pool, deploy_all(pool, parameters)):
        print(line)
    return 0


def _told(pool: str, deployed: "DeployResult") -> Iterator[str]:
    """What was done, and the command that comes next."""
    yield f"work pool {pool!r}: {'created' if deployed.created_pool else 'is there'}"
    for name, page in deployed.pages.items():
        yield f"{name}: {page}"
    yield f"relative paths start from {deployed.folder}"
    if deployed.has_worker:
        yield f"a worker polls {pool!r}: press Run, Custom run on the pages above"
    else:
        command = f"prefect worker start --pool {quote(pool)}"
        yield f"no worker polls {pool!r}, and runs wait until one does: `{command}`"
