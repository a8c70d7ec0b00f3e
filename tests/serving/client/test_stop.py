"""A client that is stopped: nothing waits any more, and nothing is sent."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from prefect_imageqa.serving.client.client import ChatClient
from prefect_imageqa.serving.endpoint import VLLMEndpoint
from prefect_imageqa.serving.errors import EndpointError
from prefect_imageqa.serving.types import ChatRequest

SLOW = ChatRequest([{"role": "user", "content": "STUB slow 5"}], {})


@pytest.mark.parametrize(
    ("wait", "told"),
    [
        (lambda client: client.complete([SLOW]), "closed before the server had answered"),
        (lambda client: client.pause(60), "closed before the server had answered"),
    ],
    ids=["complete", "pause"],
)
def test_who_waits_is_told(wait: Callable[[ChatClient], object], told: str, stub: Any) -> None:
    with (
        ThreadPoolExecutor(1) as pool,
        ChatClient(VLLMEndpoint(urls=[stub.url], model="stub"), max_in_flight=1) as client,
    ):
        waiting = pool.submit(wait, client)
        threading.Event().wait(0.3)
        began = time.monotonic()
        client.stop()
        with pytest.raises(EndpointError, match=told):
            waiting.result(10)
        assert time.monotonic() - began < 3
        sent = stub.stats()["requests"]
        for ask in (lambda: client.complete([SLOW]), lambda: client.pause(0), client.check):
            with pytest.raises(EndpointError, match="the client is closed"):
                ask()
        assert client.complete([]) == []
        assert stub.stats()["requests"] == sent


def test_a_pause_takes_its_time(stub: Any) -> None:
    with ChatClient(VLLMEndpoint(urls=[stub.url], model="stub")) as client:
        began = time.monotonic()
        client.pause(0.2)
        assert time.monotonic() - began >= 0.2
