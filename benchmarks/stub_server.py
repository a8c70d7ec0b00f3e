"""A stub of a vLLM server with a fixed latency, for benchmarks and fault injection.

It serves `/health`, `/v1/models` and `/v1/chat/completions`, and request counts on `/stats`.
With `--respawn` it is restarted on the same port when it has died, as by a service manager;
`--count-texts` counts across restarts.
A user text that starts with `STUB` controls the reply to that request:

    STUB text TEXT          reply TEXT
    STUB finish REASON      reply with that finish reason
    STUB status CODE        always answer with that HTTP status
    STUB once CODE          answer with that HTTP status the first time
    STUB raw BODY           send BODY instead of JSON
    STUB slow SECONDS       answer after that time
    STUB until PATH         answer once there is a file at that path
    STUB hang               never answer
    STUB die                exit immediately, with all requests in flight; an image that contains
                            the marker of `--poison` has the same effect
    STUB dying SECONDS      answer 500 from now on, and exit after that time, like vLLM when its
                            engine has died
"""

import argparse
import asyncio
import base64
import ctypes
import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from aiohttp import web

PR_SET_PDEATHSIG = 1
DEFAULT_TEXT = "**Question:** What is in the image?\n**Answer:** A stub."


class Stub:
    """The server's state: its slots and the requests it has received."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.model, self.latency, self.api_key = options.model, options.latency, options.api_key
        self.slots = asyncio.Semaphore(options.slots)
        self.starts = options.starts
        self.poison = base64_forms(options.poison.encode()) if options.poison else []
        self.request_log = RequestLog(options.count_texts) if options.count_texts else None
        self.requests = 0
        self.bodies: list[dict[str, Any]] = []
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
            ]
        )
        return app

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
        """The number of completion requests, and the last requests without their images."""
        stats = {"requests": self.requests, "bodies": self.bodies[-64:]}
        stats |= {"starts": self.starts, "pid": os.getpid()}
        return web.json_response(stats | (self.request_log.counts() if self.request_log else {}))

    async def models(self, _: web.Request) -> web.Response:
        """A list of one model."""
        return web.json_response({"object": "list", "data": [{"id": self.model}]})

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """Wait for a slot and the latency, then reply as the user text demands."""
        self.requests += 1
        data = await request.read()
        if self.request_log:
            self.request_log.add(json.loads(data)["messages"])
        if any(form in data for form in self.poison):
            os._exit(1)
        async with self.slots:
            await asyncio.sleep(self.latency)
        if self.dying:
            return error(500, "the stub is dying")
        # Parsing a body with images costs as much as serving it; benchmarks do not need it.
        if self.latency and b"STUB" not in data:
            return self.reply(DEFAULT_TEXT, "stop")
        body = json.loads(data)
        self.bodies.append(without_images(body))
        if body["model"] != self.model:
            return error(404, f"The model `{body['model']}` does not exist.")
        return await self.reply_to(user_text(body["messages"]))

    async def reply_to(self, text: str) -> web.StreamResponse:
        """Execute the command in a STUB text; give the default reply to any other text."""
        self.seen[text] += 1
        if not text.startswith("STUB "):
            return self.reply(DEFAULT_TEXT, "stop")
        verb, _, rest = text.removeprefix("STUB ").partition(" ")
        if verb == "text":
            return self.reply(rest, "stop")
        if verb == "finish":
            return self.reply(DEFAULT_TEXT, rest)
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
            await asyncio.sleep(float(rest.split()[0]))
        if verb == "until":
            while not Path(rest.split()[0]).exists():
                await asyncio.sleep(0.02)
        if verb == "hang":
            await asyncio.sleep(3600)
        return self.reply(DEFAULT_TEXT, "stop")

    def reply(self, text: str, finish_reason: str) -> web.Response:
        """A chat completion."""
        message = {"role": "assistant", "content": text}
        return web.json_response(
            {
                "object": "chat.completion",
                "model": self.model,
                "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
                "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
            }
        )


class RequestLog:
    """Records requests in a file, so that their counts survive a restart."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, messages: list[dict[str, Any]]) -> None:
        """Record a conversation's last user text, and a digest of the conversation."""
        digest = hashlib.sha256(json.dumps(messages).encode()).hexdigest()[:16]
        with self.path.open("a") as log:
            log.write(json.dumps([user_text(messages), digest]) + "\n")

    def counts(self) -> dict[str, dict[str, int]]:
        """How often each text, and each conversation including its images, was received."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        requests = [json.loads(line) for line in lines]
        return {
            "texts": Counter(text for text, _ in requests),
            "conversations": Counter(digest for _, digest in requests),
        }


def base64_forms(marker: bytes) -> list[bytes]:
    """The marker in base64 at any position in a file: one form per alignment."""
    forms = []
    for offset in range(3):
        encoded = base64.b64encode(bytes(offset) + marker)
        # Characters at either end also encode bits of the neighbouring bytes.
        forms.append(encoded[-(-offset * 8 // 6) : (offset + len(marker)) * 8 // 6])
    return forms


def error(status: int, message: str) -> web.Response:
    """An error in vLLM's form."""
    return web.json_response({"error": {"message": message, "code": status}}, status=status)


def user_text(messages: list[dict[str, Any]]) -> str:
    """The text of the last user turn."""
    content = messages[-1]["content"]
    if isinstance(content, str):
        return content
    return " ".join(part["text"] for part in content if part["type"] == "text")


def without_images(body: dict[str, Any]) -> dict[str, Any]:
    """The body with each image's data URI reduced to its type."""
    copy: dict[str, Any] = json.loads(json.dumps(body))
    for message in copy["messages"]:
        for part in message["content"] if isinstance(message["content"], list) else []:
            if part["type"] == "image_url":
                part["image_url"]["url"] = part["image_url"]["url"].partition(",")[0]
    return copy


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
    parser.add_argument("--poison", default="", help="marker in an image that crashes the server")
    parser.add_argument("--count-texts", type=Path, help="file that records the requests' texts")
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
    )


if __name__ == "__main__":
    main()
