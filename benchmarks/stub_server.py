"""A stub of a vLLM server with a fixed latency, for benchmarks and fault injection.

It serves `/health`, `/v1/models` and `/v1/chat/completions`, counts of requests and of replies by
status on `/stats`, and with `--metrics` the engine's load and tokens on `/metrics`; `/profile` sets
another latency and number of slots.
With `--blind` it drops the images, so that they add no tokens to the prompt.
With `--respawn` it is restarted on the same port when it has died, as by a service manager;
`--count-texts` counts across restarts.
SIGUSR1 freezes it as an engine that hangs: it accepts completions, but answers none until SIGUSR2,
while `/health` and `/v1/models` answer. With `--respawn`, signal the `pid` on `/stats`.
Faults are drawn with `--fail-share` and its like; `--rate` puts a gateway before it.
A user text that starts with `STUB` controls the reply to that request:

    STUB text TEXT          reply TEXT
    STUB finish REASON      reply with that finish reason
    STUB status CODE        always answer with that HTTP status
    STUB once CODE          answer with that HTTP status the first time
    STUB raw BODY           send BODY instead of JSON
    STUB slow SECONDS       answer after that time
    STUB until PATH         answer once there is a file at that path
    STUB hang               never answer; the engine works on the request without a result
    STUB die                exit immediately, with all requests in flight; an image that contains
                            the marker of `--poison` has the same effect
    STUB dying SECONDS      answer 500 from now on, and exit after that time, like vLLM when its
                            engine has died
"""

import argparse
import asyncio
import ctypes
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web
from stub_faults import Faults, Gateway, add_fault_arguments, error
from stub_metrics import Metrics
from stub_requests import RequestLog, user_text, without_images

PR_SET_PDEATHSIG = 1
TOKEN_SECONDS = 0.1
"""How long a request takes to generate a token, as by a model of 10 tokens/s."""
PROMPT_TOKENS, IMAGE_TOKENS, COMPLETION_TOKENS = 100, 64, 20
"""Of a prompt's text, of its images together, and of a reply."""
UNUSABLE_TEXT = "I like this image."
DEFAULT_TEXT = "**Question:** What is in the image?\n**Answer:** A stub."


class Stub:
    """The server's state: its slots and the requests it has received."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.model, self.latency, self.api_key = options.model, options.latency, options.api_key
        self.slots = asyncio.Semaphore(options.slots)
        self.starts = options.starts
        self.faults = Faults(options)
        self.gateway = Gateway(options.rate, options.rate_window) if options.rate else None
        self.metrics = Metrics(options.model)
        self.shows_metrics = options.metrics
        self.blind = options.blind
        self.thawed = asyncio.Event()
        self.thawed.set()
        self.request_log = RequestLog(options.count_texts) if options.count_texts else None
        self.requests = 0
        self.replies: Counter[str] = Counter()
        self.bodies: deque[dict[str, Any]] = deque(maxlen=64)
        self.seen: Counter[str] = Counter()
        self.dying = False

    def app(self) -> web.Application:
        """The routes, with a body limit for large images."""
        app = web.Application(client_max_size=256 << 20, middlewares=[self.check_key])
        app.add_routes(
            [
                web.get("/health", self.health),
                web.get("/stats", self.stats),
                web.get("/v1/models", self.models),
                web.post("/v1/chat/completions", self.complete),
                web.post("/profile", self.change),
            ]
        )
        if self.shows_metrics:
            app.router.add_get("/metrics", self.show_metrics)
        app.on_startup.append(self.handle_signals)
        return app

    async def handle_signals(self, _: web.Application) -> None:
        """Freeze at SIGUSR1, go on at SIGUSR2."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, self.freeze)
        loop.add_signal_handler(signal.SIGUSR2, self.thaw)

    def freeze(self) -> None:
        """Make no progress."""
        self.thawed.clear()
        self.metrics.freeze()

    def thaw(self) -> None:
        """Go on with all requests."""
        self.metrics.thaw()
        self.thawed.set()

    @web.middleware
    async def check_key(self, request: web.Request, handler: Any) -> web.StreamResponse:
        """Reject a wrong key as vLLM does."""
        needs_key = self.api_key and request.path.startswith("/v1/")
        if needs_key and request.headers.get("Authorization") != f"Bearer {self.api_key}":
            return web.json_response({"error": "Unauthorized"}, status=401)
        response: web.StreamResponse = await handler(request)
        return response

    async def health(self, _: web.Request) -> web.Response:
        """Always healthy."""
        return web.Response()

    async def stats(self, _: web.Request) -> web.Response:
        """Counts of requests and replies, and the last requests without their images."""
        stats = {"requests": self.requests, "replies": self.replies, "bodies": list(self.bodies)}
        stats |= {"starts": self.starts, "pid": os.getpid()}
        return web.json_response(stats | (self.request_log.counts() if self.request_log else {}))

    async def change(self, request: web.Request) -> web.Response:
        """From now on, another latency and so many more or fewer slots."""
        profile = await request.json()
        self.latency, more = profile["latency"], profile["more_slots"]
        for _ in range(more):
            self.slots.release()
        self.taken = [asyncio.create_task(self.slots.acquire()) for _ in range(-more)]
        return web.Response()

    async def models(self, _: web.Request) -> web.Response:
        """A list of one model."""
        return web.json_response({"object": "list", "data": [{"id": self.model}]})

    async def show_metrics(self, _: web.Request) -> web.Response:
        """The engine's load and tokens, in the Prometheus text format."""
        return web.Response(body=self.metrics.page(), content_type="text/plain")

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """Pass a request through the gateway to the engine, and count the reply."""
        self.requests += 1
        data = await request.read()
        if self.request_log:
            self.request_log.add(json.loads(data)["messages"])
        if self.gateway and not self.gateway.admits():
            response: web.Response | None = self.gateway.refusal()
        else:
            response = await self.answer(data)
        self.replies[str(response.status) if response else "dropped"] += 1
        if response:
            return response
        if request.transport:
            request.transport.close()
        return web.Response()

    async def answer(self, data: bytes) -> web.Response | None:
        """Wait for a slot and the latency, then reply; None drops the connection instead."""
        if self.faults.kills(data):
            os._exit(1)
        with self.metrics.waiting.track_inprogress():
            await self.slots.acquire()
        with self.metrics.running.track_inprogress():
            self.metrics.prompt_tokens.inc(PROMPT_TOKENS)
            try:
                await self.work(self.latency)
            finally:
                self.slots.release()
            reply = await self.respond(data)
        if self.faults.hangs(data):
            await asyncio.Event().wait()  # the engine is done, the reply gets lost
        return reply

    async def work(self, seconds: float) -> None:
        """Generate tokens for that time; while frozen, make no progress."""
        while True:
            await self.thawed.wait()
            step = min(seconds, TOKEN_SECONDS)
            await asyncio.sleep(step)
            await self.thawed.wait()
            self.metrics.generation_tokens.inc()
            seconds -= step
            if seconds <= 0:
                return

    async def respond(self, data: bytes) -> web.Response | None:
        """Reply with the fault that was drawn, or as the user text demands."""
        fault = self.faults.draw()
        if fault == "drop":
            return None
        if fault == "fail":
            return self.faults.failure()
        if fault == "garbage":
            return self.faults.garbage()
        if self.dying:
            return error(500, "the stub is dying")
        if self.faults.refuses(data):
            return error(400, "response_format json_schema is not supported")
        if self.faults.is_unusable(data):
            return self.reply(UNUSABLE_TEXT, "stop", data)
        # Parsing an image's data URI would cost as much as serving it.
        body = json.loads(without_images(data))
        self.bodies.append(body)
        if body["model"] != self.model:
            return error(404, f"The model `{body['model']}` does not exist.")
        return await self.reply_to(user_text(body["messages"]), data)

    async def reply_to(self, text: str, data: bytes) -> web.Response:
        """Execute the command in a STUB text; give the default reply to any other text."""
        self.seen[text] += 1
        if not text.startswith("STUB "):
            return self.reply(DEFAULT_TEXT, "stop", data)
        verb, _, rest = text.removeprefix("STUB ").partition(" ")
        if verb == "text":
            return self.reply(rest, "stop", data)
        if verb == "finish":
            return self.reply(DEFAULT_TEXT, rest, data)
        if verb == "status" or (verb == "once" and self.seen[text] == 1):
            return error(int(rest.split()[0]), "simulated failure")
        if verb == "raw":
            return web.Response(text=rest)
        if verb == "die":
            os._exit(1)
        if verb == "dying":
            self.dying = True
            asyncio.get_running_loop().call_later(float(rest), os._exit, 1)
            return error(500, "the stub is dying")
        if verb == "slow":
            await self.work(float(rest.split()[0]))
        if verb == "until":
            while not Path(rest.split()[0]).exists():
                await self.work(0.02)
        if verb == "hang":
            await asyncio.Event().wait()
        return self.reply(DEFAULT_TEXT, "stop", data)

    def reply(self, text: str, finish_reason: str, data: bytes) -> web.Response:
        """A chat completion of the request `data`."""
        seen = b'"image_url"' in data and not self.blind
        prompt_tokens = PROMPT_TOKENS + (IMAGE_TOKENS if seen else 0)
        message = {"role": "assistant", "content": text}
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": COMPLETION_TOKENS}
        completion = {
            "object": "chat.completion",
            "model": self.model,
            "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
            "usage": usage | {"total_tokens": prompt_tokens + COMPLETION_TOKENS},
        }
        return web.Response(body=orjson.dumps(completion), content_type="application/json")


def respawn(arguments: list[str], seconds: float) -> None:
    """Run the server and restart it `seconds` after it has died, until SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    libc = ctypes.CDLL(None)
    for start in itertools.count(1):
        command = [sys.executable, __file__, *arguments, "--respawn=-1", f"--starts={start}"]
        with subprocess.Popen(
            command,
            preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
        ) as server:
            try:
                server.wait()
            finally:
                server.kill()
        time.sleep(seconds)


def main() -> None:
    """Parse the arguments and serve until stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", default="stub")
    parser.add_argument("--latency", type=float, default=0.05, help="seconds per request")
    parser.add_argument("--slots", type=int, default=256, help="concurrent requests")
    parser.add_argument("--api-key", default="")
    parser.add_argument("--count-texts", type=Path, help="file that records the requests' texts")
    parser.add_argument("--blind", action="store_true", help="ignore all images")
    parser.add_argument("--metrics", action="store_true", help="serve /metrics like vLLM")
    add_fault_arguments(parser)
    parser.add_argument("--respawn", type=float, default=-1, help="seconds until it is restarted")
    parser.add_argument("--starts", type=int, default=1, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.respawn >= 0:
        respawn(sys.argv[1:], options.respawn)
    app = Stub(options).app()
    # The default shutdown timeout of 60 s would wait for requests that hang on purpose.
    web.run_app(
        app,
        host="127.0.0.1",
        port=options.port,
        shutdown_timeout=0.5,
        print=None,
        access_log=None,
        handler_cancellation=True,  # vLLM, too, aborts the request of a client that has gone
    )


if __name__ == "__main__":
    main()
