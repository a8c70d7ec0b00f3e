"""A Prefect flow that keeps secrets, tables and tracebacks out of Prefect's database and logs."""

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

from coolname.data import config as _words  # Prefect's own dependency: it picks names with it
from prefect import Flow
from prefect.blocks.core import Block
from prefect.context import FlowRunContext
from prefect.exceptions import ParameterTypeError
from prefect.logging import get_logger
from prefect.runtime import flow_run
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import BaseModel, ValidationError

from ..serving.endpoint import safe_url
from ..serving.ephemeral_server import ephemeral_settings
from ..serving.printable import printable
from ..tasks.errors import ImageQAError
from ..tasks.run_names import short_name
from .prefect_outage import (
    UnreportedError,
    drop_unsent,
    ends_in_time,
    has_caller,
    quiet_outages,
)
from .prefect_server import check_server
from .run_log import shorten_log

URIS = frozenset({"dataset", "output", "endpoint", "judge_endpoint", "store", "cache", "root"})
"""Parameters that may be URIs: people put passwords into these, although they are rejected."""

_PREFECTS_WORDS = {
    word for kind in cast("dict[str, Any]", _words).values() for word in kind.get("words", ())
}

P = ParamSpec("P")
R = TypeVar("R")


def deployable_flow(**options: Any) -> Callable[[Callable[P, R]], Flow[P, R]]:
    """Like `prefect.flow`, for a flow whose parameters may be DataFrames, blocks or callables.

    In the logs of its runs, a user error is one line without a traceback. Its runs end in time,
    even if Prefect's server is lost.
    """
    shorten_log(options["name"])

    def decorate(function: Callable[P, R]) -> Flow[P, R]:
        flow = DeployableFlow(function, **options)
        flow.fn = ends_in_time(function)  # Prefect reads the version from the original's file
        return flow

    return decorate


def run_name() -> str:
    """The name of the current flow run; one that somebody has chosen stays.

    Of the words that Prefect picks, dataset and output are put first:
    `capsbench.json to qa, wooden-cobra`. So the runs of a schedule have different names, and those
    in the log of a worker are found again.
    """
    given, parameters = str(flow_run.name or ""), flow_run.parameters
    words = given.split("-")
    if given and not (len(words) == 2 and _PREFECTS_WORDS.issuperset(words)):
        return given
    name = f"{short_name(parameters['dataset'])} to {short_name(parameters['output'])}"
    if parameters.get("max_rows"):
        name = f"{name}, first {parameters['max_rows']}"
    return f"{name}, {given}" if given else name


class DeployableFlow(Flow[P, R]):
    """A flow that stores only parameters that a deployment could have, and no secrets."""

    def serialize_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Parameters as Prefect stores them: for a DataFrame, block or callable only its type.

        Prefect would store every cell of a DataFrame in its database.
        """
        return super().serialize_parameters(
            {name: _storable(value, name in URIS) for name, value in parameters.items()}
        )

    def validate_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Parameters as the flow receives them.

        Raises:
            ParameterTypeError: a parameter is invalid; unlike Prefect's, the message is one line.
        """
        try:
            with _without_parameter_log():
                return super().validate_parameters(parameters)
        except ParameterTypeError as error:
            if not isinstance(cause := error.__context__, ValidationError):
                raise
            raise ParameterTypeError("; ".join(_messages(cause))) from None

    def with_options(self, **options: Any) -> "DeployableFlow[P, R]":
        """Like Prefect's, but returns a `DeployableFlow` and not a plain flow.

        Raises:
            ImageQAError: a task runner other than Prefect's threads: the steps of a run share
                memory.
        """
        runner = options.get("task_runner") or ThreadPoolTaskRunner
        kind = runner if isinstance(runner, type) else type(runner)
        if not issubclass(kind, ThreadPoolTaskRunner):
            raise ImageQAError(
                f"{self.name} does not run on {kind.__name__}: give it workers, such as "
                "workers=Workers(workers=4, engine='ray'); the other engines are dask, work-pool "
                "and processes"
            )
        changed = super().with_options(**options)
        changed.__class__ = type(self)
        return cast("DeployableFlow[P, R]", changed)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the flow, with enough time for a temporary Prefect server to start.

        Raises:
            PrefectServerError: the configured server does not answer, or has another version; a
                temporary one does not start.
        """
        is_subflow = FlowRunContext.get() is not None
        if not is_subflow:
            check_server()
        with ephemeral_settings(), has_caller(not is_subflow), quiet_outages():
            try:
                return super().__call__(*args, **kwargs)
            except UnreportedError as error:
                ended = error
            drop_unsent()
        return ended.state if kwargs.get("return_state") else ended.result()


@contextmanager
def _without_parameter_log() -> Iterator[None]:
    """Keep Prefect from logging all parameters: a URL among them may contain a password."""
    logger = get_logger("flows")
    logger.addFilter(_drop)
    try:
        yield
    finally:
        logger.removeFilter(_drop)


def _drop(record: logging.LogRecord) -> bool:  # noqa: ARG001
    return False


def _messages(error: ValidationError) -> list[str]:
    """What is wrong with each parameter, without the values: they may be secret."""
    return [
        printable(
            f"{'.'.join(map(str, detail['loc']))}: {detail['msg'].removeprefix('Value error, ')}"
        )
        for detail in error.errors(include_url=False, include_input=False)
    ]


def _without_secrets(uri: str) -> str:
    scheme, mark, rest = uri.partition("://")
    if not mark:
        return uri.rpartition("@")[2] if re.match(r"[^/]*:[^/]*@", uri) else uri
    is_web = scheme.lower() in {"http", "https"}  # in other schemes a "?" is part of the path
    return safe_url(uri) if is_web or "@" in rest else uri


def _storable(value: Any, is_uri: bool) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, str):
        text = value.encode("utf-8", "replace").decode()  # file names need not be UTF-8
        return re.sub(r"\S+", lambda part: _without_secrets(part[0]), text) if is_uri else text
    if isinstance(value, list):
        return [_storable(item, is_uri) for item in value]
    if isinstance(value, dict):
        return {name: _storable(item, is_uri or name in URIS) for name, item in value.items()}
    if isinstance(value, BaseModel) and not isinstance(value, Block):
        return _storable(value.model_dump(mode="json"), is_uri)
    if isinstance(value, int | float | None):
        return value
    return f"<{type(value).__name__}>"
