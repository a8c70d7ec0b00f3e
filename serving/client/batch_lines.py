"""Lines of OpenAI batch files, which a server answers offline: requests out, outcomes in.

`vllm run-batch` and hosted services read and write them. Pure functions, no files.
"""

from collections.abc import Mapping
from typing import Any

import orjson

from ..types import ChatRequest, Failure, FailureKind, Outcome
from .envelope import error_text
from .responses import read_reply

_URL = "/v1/chat/completions"


class NotAResultError(ValueError):
    """A line that is not the result of a request; the message says what it is."""


def request_line(custom_id: str, model: str, request: ChatRequest) -> bytes:
    """One line of a batch file, without its line end.

    Raises:
        TypeError: the request is not JSON.
    """
    body = orjson.Fragment(request.body(model))
    return orjson.dumps({"custom_id": custom_id, "method": "POST", "url": _URL, "body": body})


def read_result(line: bytes, max_tokens: int | None = None) -> tuple[str, Outcome]:
    """The `custom_id` of a line of results, and the outcome that a server would have given.

    Raises:
        NotAResultError: it is something else.
    """
    try:
        result = orjson.loads(line)
    except ValueError:
        raise NotAResultError("not JSON") from None
    custom_id = result.get("custom_id") if isinstance(result, Mapping) else None
    if not isinstance(custom_id, str) or not {"response", "error"} & result.keys():
        raise NotAResultError("not the result of a request: no custom_id, response or error")
    return custom_id, _outcome(result, max_tokens)


def _outcome(result: Mapping[str, Any], max_tokens: int | None) -> Outcome:
    response, error = result.get("response"), _innermost(result.get("error"))
    if not isinstance(response, Mapping):  # the batch has expired or was cancelled before
        message = f"the batch ended without a reply: {error_text(error or 'no reason given')}"
        return Failure(FailureKind.UNAVAILABLE, message)
    status, body = response.get("status_code", 200), response.get("body")
    if not isinstance(status, int) or not 100 <= status < 600:
        return Failure(FailureKind.BAD_REPLY, "the result has no HTTP status")
    if status != 200 or error:
        # vLLM has the words of an error beside the response, other services in its body.
        status = 500 if status == 200 else status
        body = {"error": error or _innermost(body)}
    return read_reply(status, orjson.dumps(body), 0.0, 1, max_tokens=max_tokens)


def _innermost(error: Any) -> Any:
    """The error itself: vLLM nests it in an object that has nothing else."""
    while isinstance(error, Mapping) and error.get("error"):
        error = error["error"]
    return error
