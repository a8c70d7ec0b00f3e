"""The model of a preview: at a running endpoint, or only its name."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ...serving.client.client import ChatClient
from ...serving.server.checkpoint import checkpoint_digest
from ...serving.server.launch import local_checkpoint
from ...tasks.runs.parameters import RunParameters
from ..open_model import open_model

UNNAMED = "MODEL"
"""The name of the model in requests that are only shown, where none is given."""

NO_ENDPOINT = (
    "no server to ask: give the --endpoint of a running one, or --dry-run to see the requests only"
)


@dataclass(frozen=True)
class PreviewModel:
    """The model of a preview.

    Attributes:
        name: the name it is served under, which is part of row keys.
        revision: identifies its weights; empty where unknown.
        client: sends it requests; None if that is not to be done.
    """

    name: str = UNNAMED
    revision: str = ""
    client: ChatClient | None = None


@contextmanager
def open_preview_model(parameters: RunParameters, *, dry_run: bool) -> Iterator[PreviewModel]:
    """Connect to the model, or find out its name where that is enough.

    In a dry run a server is only asked which model it serves, and only if no model is named.

    Raises:
        EndpointError: the endpoint cannot be used.
    """
    name = parameters.model or ""
    if parameters.endpoint and not (dry_run and name):
        with open_model(parameters.endpoint, name or None, parameters.limits) as model:
            yield PreviewModel(model.client.model, model.revision, model.client)
        return
    # Without an endpoint, a run would serve a checkpoint on disk.
    is_folder = name and not parameters.endpoint and Path(name).expanduser().is_dir()
    checkpoint = local_checkpoint(name) if is_folder else None
    if checkpoint is not None:
        yield PreviewModel(checkpoint.name, checkpoint_digest(checkpoint))
    else:
        yield PreviewModel(name or UNNAMED)
