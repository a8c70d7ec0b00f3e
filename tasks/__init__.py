"""The steps of a run, one package per step, and the tasks to compose your own flow from.

docs/compose.md has an example. Each name is imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .generating import CompletionsCache as CompletionsCache
    from .generating import GenerationSettings as GenerationSettings
    from .generating import generate_batch as generate_batch
    from .generating import make_batches as make_batches
    from .images import ImageReader as ImageReader
    from .loading import load_dataset as load_dataset
    from .prompting import PromptSettings as PromptSettings
    from .prompting import RequestSpec as RequestSpec
    from .prompting import prompt_rows as prompt_rows
    from .storing import parse_and_store as parse_and_store

_NAMES = {
    ".generating": ("CompletionsCache", "GenerationSettings", "generate_batch", "make_batches"),
    ".images": ("ImageReader",),
    ".loading": ("load_dataset",),
    ".prompting": ("PromptSettings", "RequestSpec", "prompt_rows"),
    ".storing": ("parse_and_store",),
}

_PACKAGES = {name: package for package, names in _NAMES.items() for name in names}

__all__ = sorted(_PACKAGES)

if not TYPE_CHECKING:  # type checkers see only the names imported above

    def __getattr__(name: str) -> Any:
        if name not in _PACKAGES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_PACKAGES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted(_PACKAGES)
