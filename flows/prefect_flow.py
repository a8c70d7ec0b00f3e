"""A Prefect flow whose Python-only arguments stay out of Prefect's database."""

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

from prefect import Flow
from prefect.blocks.core import Block
from prefect.context import FlowRunContext
from prefect.exceptions import ParameterTypeError
from prefect.logging import get_logger
from prefect.runtime import flow_run
from prefect.settings import PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS, temporary_settings
from pydantic import BaseModel, ValidationError

from ..serving.endpoint import safe_url
from ..tasks.errors import ImageQAError
from ..tasks.naming import short_name
from .prefect_server import check_server

EPHEMERAL_STARTUP_SECONDS = 120
"""The first start on an empty database takes as long as Prefect's own limit, 20 seconds."""


URIS = frozenset({"dataset", "output", "endpoint", "store", "cache", "root"})
"""Parameters that may be URIs, into which people put passwords although they are refused."""

P = ParamSpec("P")
R = TypeVar("R")


def deployable_flow(**options: Any) -> Callable[[Callable[P, R]], Flow[P, R]]:
    """Like `prefect.flow`, for a flow whose parameters may be DataFrames, blocks or callables.

    A mistake of the user's is one line in the logs of its runs.
    """
    for logger in ("flow_runs", "task_runs", "engine"):
        get_logger(logger).addFilter(partial(_without_traceback, options["name"]))

    def decorate(function: Callable[P, R]) -> Flow[P, R]:
        return DeployableFlow(function, **options)

    return decorate


def run_name() -> str:
    """Name the current flow run by its dataset and output: `capsbench.json to qa`."""
    given = flow_run.parameters
    name = f"{short_name(given['dataset'])} to {short_name(given['output'])}"
    return f"{name}, first {given['max_rows']}" if given.get("max_rows") else name


class DeployableFlow(Flow[P, R]):
    """A flow that stores only the parameters a deployment could have given."""

    def serialize_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Parameters as Prefect keeps them; a DataFrame, block or callable is only named.

        Prefect would store every cell of a DataFrame in its database.
        """
        return super().serialize_parameters(
            {name: _storable(value, name in URIS) for name, value in parameters.items()}
        )

    def validate_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Parameters as the flow gets them.

        Raises:
            ParameterTypeError: one is wrong; one line, where Prefect's own takes several.
        """
        try:
            with _unlogged():
                return super().validate_parameters(parameters)
        except ParameterTypeError as error:
            if not isinstance(cause := error.__context__, ValidationError):
                raise
            raise ParameterTypeError("; ".join(_mistakes(cause))) from None

    def with_options(self, **options: Any) -> "DeployableFlow[P, R]":
        """Like Prefect's, which would make a plain flow."""
        changed = super().with_options(**options)
        changed.__class__ = type(self)
        return cast("DeployableFlow[P, R]", changed)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the flow; an ephemeral Prefect server gets time enough to start.

        Raises:
            PrefectServerError: the configured server does not answer, or does not fit.
        """
        if FlowRunContext.get() is None:  # a subflow's server is there
            check_server()
        setting = PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS
        seconds = max(setting.value(), EPHEMERAL_STARTUP_SECONDS)
        with temporary_settings({setting: seconds}):
            return super().__call__(*args, **kwargs)


def _without_traceback(flow: str, record: logging.LogRecord) -> bool:
    """Say what is wrong instead of where in the code it was found, where the user can mend it."""
    error = record.exc_info[1] if record.exc_info else None
    # A worker's process, which runs one flow, does not name it.
    own = getattr(record, "flow_name", flow) in (flow, "<unknown>")
    if own and isinstance(error, ImageQAError | ParameterTypeError):
        record.msg, record.args, record.exc_info = str(error), (), None
    return True


@contextmanager
def _unlogged() -> Iterator[None]:
    """Keep Prefect from logging all parameters: a URL among them may carry a password."""
    logger = get_logger("flows")
    logger.addFilter(_nothing)
    try:
        yield
    finally:
        logger.removeFilter(_nothing)


def _nothing(record: logging.LogRecord) -> bool:  # noqa: ARG001
    return False


def _mistakes(error: ValidationError) -> list[str]:
    """What is wrong with which parameter, without the values: they may be secret."""
    return [
        f"{'.'.join(map(str, mistake['loc']))}: {mistake['msg'].removeprefix('Value error, ')}"
        for mistake in error.errors(include_url=False, include_input=False)
    ]


def _without_secrets(uri: str) -> str:
    scheme, mark, rest = uri.partition("://")
    if not mark:
        return uri.rpartition("@")[2] if re.match(r"[^/]*:[^/]*@", uri) else uri
    is_web = scheme.lower() in {"http", "https"}  # elsewhere a "?" belongs to a name
    return safe_url(uri) if is_web or "@" in rest else uri


def _storable(value: Any, is_uri: bool) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, str):
        text = value.encode("utf-8", "replace").decode()  # a file's name need not be UTF-8
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
