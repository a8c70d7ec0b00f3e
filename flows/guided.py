"""Whether the server makes replies follow a JSON schema, found out before the first batch."""

import logging
from collections.abc import Mapping
from typing import Any

from ..serving.client.client import ChatClient
from ..serving.printable import printable
from ..tasks.errors import EndpointError
from ..tasks.generating.probe import schema_refusal
from ..tasks.prompting.reply_forms import reply_schema
from ..tasks.records import ReplyForm

_LOGGER = logging.getLogger("prefect_imageqa.flows")

_MAX_REASON = 300


def server_guides(client: ChatClient, schema: Mapping[str, Any] | None = None) -> bool:
    """Whether the server accepts requests for replies that follow a JSON schema.

    Without one of the user's, a run can do without: its prompts ask for JSON all the same.

    Args:
        client: sends a request of a few tokens, or a few of them.
        schema: that of the user; None if those of the built-in styles are used.

    Raises:
        EndpointError: the server refuses the user's schema; or no server answers.
    """
    if schema is not None:
        if reason := schema_refusal(client, schema):
            raise EndpointError(
                f"the server refuses the JSON schema ({printable(reason, _MAX_REASON)}): simplify "
                "it, or use the format json or text"
            )
        return True
    for form, pairs in _BUILT_IN:
        if reason := schema_refusal(client, reply_schema(form, pairs)):
            _LOGGER.warning(
                "the server does not make replies follow a JSON schema (%s): it is asked without "
                "one, and the prompts ask for JSON",
                printable(reason, _MAX_REASON),
            )
            return False
    return True


_BUILT_IN = ((ReplyForm.PAIRS, 2), (ReplyForm.MULTIPLE_CHOICE, 1))
"""Reply forms whose schemas have all keywords that any of them has."""
