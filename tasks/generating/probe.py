"""Whether the server follows a JSON schema, asked with a tiny request before any row is sent."""

import logging
from collections.abc import Mapping
from typing import Any

from ...serving.client.client import ChatClient
from ...serving.printable import printable
from ...serving.types import ChatRequest, Failure, FailureKind, Outcome
from ..errors import EndpointError
from ..prompting.reply_forms import reply_schema, response_format
from ..records import ReplyForm

_LOGGER = logging.getLogger("prefect_imageqa.generating")

_PROBE = {"role": "user", "content": "Reply with JSON."}
_PROBE_OPTIONS = {"max_tokens": 16, "temperature": 0.0}

_MAX_REASON = 300

_BUILT_IN = ((ReplyForm.PAIRS, 2), (ReplyForm.MULTIPLE_CHOICE, 1))
"""Reply forms whose schemas have all keywords that any of them has."""


def server_guides(client: ChatClient, schema: Mapping[str, Any] | None = None) -> bool:
    """Whether the server accepts requests for replies that follow a JSON schema.

    Without one of the user's, a run can do without: its prompts ask for JSON all the same.

    Args:
        client: sends a request of a few tokens, or a few of them.
        schema: that of the user; None if those of the built-in styles are used.

    Raises:
        EndpointError: the server refuses the user's schema; or no server answers.
    """
    if schema is None:
        schemas = [reply_schema(*form) for form in _BUILT_IN]
        return all(takes_guide(client, {"response_format": response_format(s)}) for s in schemas)
    if reason := guide_refusal(client, {"response_format": response_format(schema)}):
        raise EndpointError(
            f"the server refuses the JSON schema ({reason}): simplify it, or use the format json "
            "or text"
        )
    return True


def takes_guide(client: ChatClient, guide: Mapping[str, Any]) -> bool:
    """Whether the server accepts an option that makes replies follow a form; if not, that is told.

    Raises:
        EndpointError: no server answers, or it refuses to.
    """
    reason = guide_refusal(client, guide)
    if reason:
        _LOGGER.warning(
            "the server does not make replies follow a JSON schema (%s): it is asked without one, "
            "and the prompts ask for JSON",
            reason,
        )
    return not reason


def guide_refusal(client: ChatClient, guide: Mapping[str, Any]) -> str:
    """Why the server refuses requests with such an option, in its own words; empty if it does not.

    A request that fails without it, too, says nothing about it: the model may want an image. Of
    several servers, one is asked.

    Raises:
        EndpointError: no server answers, or it refuses to.
    """
    guided = _probe(client, {**_PROBE_OPTIONS, **guide})
    if not isinstance(guided, Failure) or guided.kind not in _BY_GUIDE:
        return ""
    is_other = isinstance(_probe(client, _PROBE_OPTIONS), Failure)
    return "" if is_other else printable(guided.message, _MAX_REASON)


_BY_GUIDE = {FailureKind.BAD_REQUEST, FailureKind.SERVER_ERROR, FailureKind.CRASH}
"""Failures that it can cause, after the client's retries; others pass."""


def _probe(client: ChatClient, options: Mapping[str, Any]) -> Outcome:
    return client.complete([ChatRequest([_PROBE], options)])[0]
