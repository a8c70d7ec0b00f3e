"""vLLM servers in the test's own process, whose behaviour the test can change at any time."""

import asyncio
import math
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

from aiohttp import web

T = TypeVar("T")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

TEST_TEXT = "Hello"
"""The text of the client's test requests."""


def reply(text: str = "yes", **fields: Any) -> web.Response:
    """A chat completion."""
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return web.json_response({"model": "m", "choices": [choice]} | fields)


class HTTPServer:
    """A server on its own thread that passes every request to `handler`.

    Attributes:
        url: its base URL; the port stays the same when it is stopped and started again.
    """

    def __init__(self, handler: Handler, host: str = "127.0.0.1", port: int = 0) -> None:
        self.url = f"http://{host}:{port}"
        self._handler = handler
        self._loop = asyncio.new_event_loop()
        self._runner: web.AppRunner | None = None

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def start(self) -> None:
        """Accept connections."""
        self._run(self._start())

    def stop(self) -> None:
        """Cut all connections, and accept no more."""
        self._run(self._stop())

    def refuse(self) -> None:
        """Accept no more connections, but cut none."""
        assert self._runner
        for site in list(self._runner.sites):
            self._run(site.stop())

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)

    async def _start(self) -> None:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_route("*", "/{path:.*}", self._handler)
        self._runner = web.AppRunner(app, shutdown_timeout=0.01, handler_cancellation=True)
        await self._runner.setup()
        parts = urlsplit(self.url)
        await web.TCPSite(self._runner, parts.hostname, parts.port or 0, reuse_address=True).start()
        self.url = f"http://{parts.hostname}:{self._runner.addresses[0][1]}"

    async def _stop(self) -> None:
        runner, self._runner = self._runner, None
        if runner is None:
            return
        for site in list(runner.sites):
            await site.stop()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await runner.cleanup()


@contextmanager
def serving(handler: Handler) -> Iterator[str]:
    """A server that passes every request to `handler`; yields its URL."""
    with HTTPServer(handler) as server:
        yield server.url


class FakeVLLM(HTTPServer):
    """A server that replies with the user's text.

    Attributes:
        asked: requests received so far, by text; test requests have the text `TEST_TEXT`.
        active: texts of the requests that it is working on, in the order in which they came,
            without test requests.
        peak: the largest number of them.
        frozen: it answers no completions, as if the engine hangs; `/health` is not affected.
        gateway_timeout: seconds after which a gateway answers 504 for it.
        hanging: texts that are not answered as long as they are in this set.
        latency: seconds that each completion takes.
        statuses: HTTP statuses of further completions; once they are used up, `status`.
        status: HTTP status of completions.
        status_of: the same, for requests with certain texts.
        headers: of completions with another status than 200.
        max_body: the connection of a request with a larger body is closed before that is read.
        health: HTTP status of `/health`.
        asleep: an operator has put the engine to sleep.
        tokens: the token counter on `/metrics`; None if there is no such page.
        new_tokens: by how much that counter moves each time it is read.
        models_status: HTTP status of `/v1/models`.
        models: the names on `/v1/models`.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        super().__init__(self._answer, host, port)
        self.asked: Counter[str] = Counter()
        self.active: list[str] = []
        self.peak = 0
        self.frozen = False
        self.gateway_timeout = math.inf
        self.hanging: set[str] = set()
        self.latency = 0.0
        self.statuses: list[int] = []
        self.status = 200
        self.status_of: dict[str, int] = {}
        self.headers: dict[str, str] = {}
        self.max_body = 1 << 30
        self.health = 200
        self.asleep = False
        self.tokens: int | None = None
        self.new_tokens = 0
        self.models_status = 200
        self.models = ["m"]

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/health":
            return web.Response(status=self.health)
        if request.path == "/v1/models":
            models = {"data": [{"id": name} for name in self.models]}
            return web.json_response(models, status=self.models_status)
        if request.path == "/metrics":
            return self._metrics()
        if (request.content_length or 0) > self.max_body and request.transport:
            request.transport.abort()
        text = (await request.json())["messages"][-1]["content"]
        self.asked[text] += 1
        if text == TEST_TEXT:
            return await self._complete(text)
        self.active.append(text)
        self.peak = max(self.peak, len(self.active))
        try:
            return await self._complete(text)
        finally:
            self.active.remove(text)

    def _metrics(self) -> web.Response:
        if self.tokens is None:
            return web.Response(status=404)
        self.tokens += self.new_tokens
        awake = float(not self.asleep)
        return web.Response(
            text=f'vllm:generation_tokens_total{{engine="0"}} {self.tokens}.0\n'
            f'vllm:engine_sleep_state{{engine="0",sleep_state="awake"}} {awake}\n'
        )

    async def _complete(self, text: str) -> web.StreamResponse:
        await asyncio.sleep(self.latency)
        late = time.monotonic() + self.gateway_timeout
        while self.frozen or text in self.hanging:
            await asyncio.sleep(0.01)
            if time.monotonic() > late:
                return web.Response(status=504)
        status = self.statuses.pop(0) if self.statuses else self.status_of.get(text, self.status)
        if status == 200:
            return reply(text)
        error = {"error": {"message": "simulated failure"}}
        return web.json_response(error, status=status, headers=self.headers)
