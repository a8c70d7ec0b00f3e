"""A Prefect flow whose Python-only arguments stay out of Prefect's database."""

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from prefect import Flow
from prefect.blocks.core import Block
from prefect.settings import PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS, temporary_settings
from pydantic import BaseModel

EPHEMERAL_STARTUP_SECONDS = 120
"""The first start on an empty database takes as long as Prefect's own limit, 20 seconds."""


P = ParamSpec("P")
R = TypeVar("R")


def deployable_flow(**options: Any) -> Callable[[Callable[P, R]], Flow[P, R]]:
    """Like `prefect.flow`, for a flow whose parameters may be DataFrames, blocks or callables."""

    def decorate(function: Callable[P, R]) -> Flow[P, R]:
        return DeployableFlow(function, **options)

    return decorate


class DeployableFlow(Flow[P, R]):
    """A flow that stores only the parameters a deployment could have given."""

    def serialize_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Parameters as Prefect keeps them; a DataFrame, block or callable is only named.

        Prefect would store every cell of a DataFrame in its database.
        """
        plain = {
            name: value if _is_plain(value) else f"<{type(value).__name__}>"
            for name, value in parameters.items()
        }
        return super().serialize_parameters(plain)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the flow; an ephemeral Prefect server gets time enough to start."""
        setting = PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS
        seconds = max(setting.value(), EPHEMERAL_STARTUP_SECONDS)
        with temporary_settings({setting: seconds}):
            return super().__call__(*args, **kwargs)


def _is_plain(value: Any) -> bool:
    if isinstance(value, BaseModel):
        return not isinstance(value, Block)
    return isinstance(value, str | int | float | list | dict | None)
