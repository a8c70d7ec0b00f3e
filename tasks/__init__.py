"""The steps of a run, one room a step; here are the five tasks that a flow is composed of.

`docs/compose.md` shows a flow of your own. Each is imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .generating import generate_batch as generate_batch
    from .loading import load_dataset as load_dataset
    from .parsing import parse_batch as parse_batch
    from .prompting import prompt_rows as prompt_rows
    from .storing import store_batch as store_batch

_ROOMS = {
    "load_dataset": ".loading",
    "prompt_rows": ".prompting",
    "generate_batch": ".generating",
    "parse_batch": ".parsing",
    "store_batch": ".storing",
}

__all__ = sorted(_ROOMS)


if not TYPE_CHECKING:  # a type checker knows the names above, and no others

    def __getattr__(name: str) -> Any:
        if name not in _ROOMS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_ROOMS[name], __name__), name)


def __dir__() -> list[str]:
    return sorted(_ROOMS)
