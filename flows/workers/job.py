"""What a worker is told when it is started: plain JSON, without credentials of anything."""

import hashlib
from importlib.metadata import version
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ...serving.printable import printable
from ...tasks.errors import ImageQAError
from ...tasks.runs.parameters import Images, Limits
from ...tasks.storing.layout import WorkerFolder

VERSION = version("prefect-imageqa")


class WorkerJob(BaseModel):
    """The job of a worker of a run. Engines pass it on as `model_dump(mode="json")`.

    Attributes:
        output: URI of the run's output, through which batches and replies are exchanged.
        store: name of a saved Image QA Store block with the credentials; empty for those of the
            worker's own environment.
        run: id of the run.
        worker: name of the worker within the run.
        key: hexadecimal key, drawn for this run: the worker takes only batches signed with it.
        endpoint: URLs of the servers; empty if a block is named.
        endpoint_block: name of a saved vLLM Endpoint block.
        model: name the model is served under.
        process: machine and process of the run, as in its record.
        workers: how many there are, which share the servers.
        limits: those of the run; a number of requests in flight is that of this worker.
        images: where images may come from, and the size they are sent at.
        is_deployed: whether the run is one of a deployment: then whoever started it has chosen the
            URLs, which do not get the key of the worker's environment.
        version: of this package, where the run is.
        confined: the only folder that images may come from, if there is one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    output: str
    store: str = ""
    run: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{1,64}$")]
    worker: Annotated[str, Field(pattern=r"^[0-9]{1,6}$")]
    key: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", repr=False)]
    endpoint: tuple[str, ...] = ()
    endpoint_block: str = ""
    model: str = ""
    process: str = ""
    workers: Annotated[int, Field(ge=1)] = 1
    limits: Limits = Limits()
    images: Images = Images()
    is_deployed: bool = False
    version: str = VERSION
    confined: str | None = None

    @property
    def crew(self) -> str:
        """Name of the folder of the workers: another one if Prefect starts the run once more."""
        return f"{self.run}-{hashlib.sha256(self.key.encode()).hexdigest()[:8]}"

    @property
    def folder(self) -> WorkerFolder:
        """What the run and this worker exchange."""
        return WorkerFolder(self.crew, self.worker)

    @model_validator(mode="before")
    @classmethod
    def _check_version(cls, told: Any) -> Any:
        """Refuse to work for another version, which may say things in another way.

        Raises:
            ImageQAError: the run has another version.
        """
        theirs = told.get("version", VERSION) if isinstance(told, dict) else VERSION
        if theirs != VERSION:
            raise ImageQAError(
                f"the worker has prefect-imageqa {VERSION}, its run {printable(str(theirs), 20)}: "
                "install the same version where the workers are"
            )
        return told
