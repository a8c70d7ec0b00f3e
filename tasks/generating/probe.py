"""Whether the server follows a JSON schema, asked with a tiny request before any row is sent."""

from collections.abc import Mapping
from typing import Any

from ...serving.client.client import ChatClient
from ...serving.types import ChatRequest, Failure, FailureKind, Outcome
from ..prompting.reply_forms import response_format

_PROBE = {"role": "user", "content": "Reply with JSON."}
_PROBE_OPTIONS = {"max_tokens": 16, "temperature": 0.0}


def schema_refusal(client: ChatClient, schema: Mapping[str, Any]) -> str:
    """Why the server refuses requests with a JSON schema, in its own words; empty if it does not.

    A request that fails without the schema, too, says nothing about the schema: the model may want
    an image. Of several servers, one is asked.

    Raises:
        EndpointError: no server answers, or it refuses to.
    """
    guided = _probe(client, {**_PROBE_OPTIONS, "response_format": response_format(schema)})
    if not isinstance(guided, Failure) or guided.kind not in _BY_SCHEMA:
        return ""
    return "" if isinstance(_probe(client, _PROBE_OPTIONS), Failure) else guided.message


_BY_SCHEMA = {FailureKind.BAD_REQUEST, FailureKind.SERVER_ERROR, FailureKind.CRASH}
"""Failures that a schema can cause, after the client's retries; others pass."""


def _probe(client: ChatClient, options: Mapping[str, Any]) -> Outcome:
    return client.complete([ChatRequest([_PROBE], options)])[0]
