"""Prefect blocks that load and save at once, also in a notebook."""

from typing import TYPE_CHECKING, Any, Self, cast
from uuid import UUID

from .ephemeral_server import ephemeral_settings

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient


class SyncBlock:
    """Put before `Block` in the bases of a block.

    Where an event loop runs, as in a notebook, Prefect's `load` and `save` return a coroutine:
    without an `await`, nothing is saved, and what is "loaded" has no methods. Asynchronous code
    has `aload` and `asave`.
    """

    @classmethod
    def load(
        cls,
        name: str,
        validate: bool = True,
        client: "PrefectClient | None" = None,
        *,
        _sync: bool = True,
    ) -> Self:
        """The saved block of that name.

        Args:
            name: of the saved block; Prefect's pages also show it as `vllm-endpoint/NAME`, which is
                not the name.
            validate: whether its fields are checked.
            client: of Prefect's API.
        """
        parent = cast("Any", super())
        with ephemeral_settings():
            return cast("Self", parent.load(name, validate, client, _sync=_sync))

    def save(
        self,
        name: str | None = None,
        overwrite: bool = False,
        client: "PrefectClient | None" = None,
        *,
        _sync: bool = True,
    ) -> UUID:
        """Save the block under a name; `overwrite` replaces one of that name. Returns its ID."""
        parent = cast("Any", super())
        with ephemeral_settings():
            return cast("UUID", parent.save(name, overwrite, client, _sync=_sync))
