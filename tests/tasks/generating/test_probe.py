"""A tiny request shows whether the server follows JSON schemas."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from prefect_imageqa.serving.client.client import ChatClient
from prefect_imageqa.serving.endpoint import VLLMEndpoint
from prefect_imageqa.serving.types import ChatRequest, Completion, Failure, FailureKind, Outcome
from prefect_imageqa.tasks.errors import EndpointError
from prefect_imageqa.tasks.generating.probe import guide_refusal, server_guides

GUIDE = {"response_format": {"type": "json_object"}}
REPLY = Completion("{", "length", 1, 16, 0.1, "stub")
REFUSAL = Failure(FailureKind.BAD_REQUEST, "HTTP 400: the schema is odd", 400)
TIMEOUT = Failure(FailureKind.TIMEOUT, "no reply within 300 s")
CRASH = Failure(FailureKind.CRASH, "it closed the connection")


class ProbedClient(ChatClient):
    """A client without a network, of a server that replies to requests with and without a schema.

    Attributes:
        requests: in order.
    """

    def __init__(self, guided: Outcome, unguided: Outcome) -> None:
        super().__init__(VLLMEndpoint(urls=["http://127.0.0.1:9"], model="stub"))
        self.requests: list[ChatRequest] = []
        self._replies = {True: guided, False: unguided}

    def complete(
        self,
        requests: Iterable[ChatRequest],
        on_outcome: Callable[[int, Outcome], None] | None = None,  # noqa: ARG002
        **_: Any,
    ) -> list[Outcome]:
        asked = list(requests)
        self.requests += asked
        return [self._replies["response_format" in request.options] for request in asked]


@pytest.mark.parametrize(
    ("guided", "unguided", "refusal", "requests"),
    [
        pytest.param(REPLY, REPLY, "", 1, id="followed"),
        pytest.param(REFUSAL, REPLY, "HTTP 400: the schema is odd", 2, id="refused"),
        pytest.param(CRASH, REPLY, "it closed the connection", 2, id="crashed"),
        pytest.param(TIMEOUT, REPLY, "", 1, id="no reply in time"),
        pytest.param(REFUSAL, REFUSAL, "", 2, id="refused without a schema too"),
    ],
)
def test_a_schema_is_refused_if_the_same_request_succeeds_without(
    guided: Outcome, unguided: Outcome, refusal: str, requests: int
) -> None:
    client = ProbedClient(guided, unguided)
    assert guide_refusal(client, GUIDE) == refusal
    assert len(client.requests) == requests
    assert client.requests[0].options["response_format"] == GUIDE["response_format"]
    assert all(request.options["max_tokens"] <= 16 for request in client.requests)


@pytest.fixture(scope="module")
def refusing(start_stub: Any) -> Iterator[ChatClient]:
    """The client of a server that refuses schemas."""
    stub = start_stub("--refuse-schemas")
    with ChatClient(VLLMEndpoint(urls=[stub.url], model="stub")) as client:
        yield client


def test_a_server_that_accepts_schemas_is_guided(stub: Any) -> None:
    with ChatClient(VLLMEndpoint(urls=[stub.url], model="stub")) as client:
        assert server_guides(client)
        assert server_guides(client, {"type": "object"})


def test_without_a_schema_of_the_users_a_server_need_not_guide(
    refusing: ChatClient, caplog: pytest.LogCaptureFixture
) -> None:
    assert not server_guides(refusing)
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "(HTTP 400: response_format json_schema is not supported): it is asked" in warning


def test_a_refused_schema_of_the_users_ends_the_run(refusing: ChatClient) -> None:
    with pytest.raises(EndpointError, match=r"refuses the JSON schema \(HTTP 400: response_format"):
        server_guides(refusing, {"type": "object"})
