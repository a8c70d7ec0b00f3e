"""Stopping a client ends all waits, and no more requests are sent."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from prefect_imageqa.serving.client.client import ChatClient
from prefect_imageqa.serving.endpoint import VLLMEndpoint
from prefect_imageqa.serving.errors import EndpointError
from prefect_imageqa.serving.types import ChatRequest

SLOW = ChatRequest([{"role": "user", "content": "STUB hang"}], {})


@pytest.mark.parametrize(
    "wait",
    [lambda client: client.complete([SLOW]), lambda client: client.pause(600)],
    ids=["complete", "pause"],
)
def test_stopping_ends_blocked_calls(wait: Callable[[ChatClient], object], stub: Any) -> None:
    with (
        ThreadPoolExecutor(1) as pool,
        ChatClient(VLLMEndpoint(urls=[stub.url], model="stub"), max_in_flight=1) as client,
    ):
        waiting = pool.submit(wait, client)
        deadline = time.monotonic() + 60
        while not (client._group and client._group._tasks):  # until the call blocks
            assert time.monotonic() < deadline
            time.sleep(0.01)
        client.stop()
        with pytest.raises(EndpointError, match="closed before the server answered"):
            waiting.result(60)
        sent = stub.stats()["requests"]
        for ask in (lambda: client.complete([SLOW]), lambda: client.pause(0), client.check):
            with pytest.raises(EndpointError, match="the client is closed"):
                ask()
        assert client.complete([]) == []
        assert stub.stats()["requests"] == sent


def test_a_pause_has_its_length(stub: Any) -> None:
    with ChatClient(VLLMEndpoint(urls=[stub.url], model="stub")) as client:
        began = time.monotonic()
        client.pause(0.2)
        assert time.monotonic() - began >= 0.2
