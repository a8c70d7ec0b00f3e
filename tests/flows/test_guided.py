"""Before its first batch a run finds out whether the server follows JSON schemas."""

from collections.abc import Iterator
from typing import Any

import pytest
from prefect_imageqa.flows import guided
from prefect_imageqa.serving.client.client import ChatClient
from prefect_imageqa.serving.endpoint import VLLMEndpoint
from prefect_imageqa.tasks.errors import EndpointError


@pytest.fixture(scope="module")
def refusing(start_stub: Any) -> Iterator[ChatClient]:
    """The client of a server that refuses schemas."""
    stub = start_stub("--refuse-schemas")
    with ChatClient(VLLMEndpoint(urls=[stub.url], model="stub")) as client:
        yield client


def test_a_server_that_accepts_schemas_is_guided(stub: Any) -> None:
    with ChatClient(VLLMEndpoint(urls=[stub.url], model="stub")) as client:
        assert guided.server_guides(client)
        assert guided.server_guides(client, {"type": "object"})


def test_without_a_schema_of_the_users_a_server_need_not_guide(
    refusing: ChatClient, caplog: pytest.LogCaptureFixture
) -> None:
    assert not guided.server_guides(refusing)
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "(HTTP 400: response_format json_schema is not supported): it is asked" in warning


def test_a_refused_schema_of_the_users_ends_the_run(refusing: ChatClient) -> None:
    with pytest.raises(EndpointError, match=r"refuses the JSON schema \(HTTP 400: response_format"):
        guided.server_guides(refusing, {"type": "object"})
