"""A stand-in for vLLM that answers after a set time: for benchmarks, and for faults on demand.

It speaks `/health`, `/v1/models` and `/v1/chat/completions`, and counts requests under `/stats`.
With `--respawn` it comes back on the same port when it has died, as a service manager would see to;
`--count-texts` counts across its lives.
A user text that starts with `STUB` says what to do with that request:

    STUB text TEXT          reply TEXT
    STUB finish REASON      stop for that reason
    STUB status CODE        answer with that HTTP status, always
    STUB once CODE          answer with that HTTP status the first time
    STUB raw BODY           send BODY instead of JSON
    STUB slow SECONDS       answer after that time
    STUB hang               never answer
    STUB die                exit at once, with everything in flight; so does an image with the mark
                            of `--poison`
    STUB dying SECONDS      answer 500 from now on, and exit after that time, as vLLM does whose
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
    """The server's state: its slots, and what it has seen."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.model, self.latency, self.api_key = options.model, options.latency, options.api_key
        self.slots = asyncio.Semaphore(options.slots)
        self.life = options.life
        self.poison = base64_forms(options.poison.encode()) if options.poison else []
        self.journal = Journal(options.count_texts) if options.count_texts else None
        self.requests = 0
        self.bodies: list[dict[str, Any]] = []
        self.seen: Counter[str] = Counter()
        self.dying = False

    def app(self) -> web.Application:
        """The routes; images are large, so is the body limit."""
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
        """Refuse a wrong key as vLLM does."""
        guarded = self.api_key and request.path.startswith("/v1/")
        if guarded and request.headers.get("Authorization") != f"Bearer {self.api_key}":
            return web.json_response({"error": "Unauthorized"}, status=401)
        response: web.StreamResponse = await handler(request)
        return response

    async def health(self, _: web.Request) -> web.Response:
        """Always well."""
        return web.Response()

    async def stats(self, _: web.Request) -> web.Response:
        """How many completions were asked for, and the last requests without their images."""
        stats = {"requests": self.requests, "bodies": self.bodies[-64:]}
        stats |= {"life": self.life, "pid": os.getpid()}
        return web.json_response(stats | (self.journal.counts() if self.journal else {}))

    async def models(self, _: web.Request) -> web.Response:
        """The one model."""
        return web.json_response({"object": "list", "data": [{"id": self.model}]})

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """Wait for a slot and the latency, then do as the user text says."""
        self.requests += 1
        data = await request.read()
        if self.journal:
            self.journal.add(json.loads(data)["messages"])
        if any(form in data for form in self.poison):
            os._exit(1)
        async with self.slots:
            await asyncio.sleep(self.latency)
        if self.dying:
            return error(500, "the stub is dying")
        # Parsing a body with images costs as much as serving it; look only where it may say more.
        if self.latency and b"STUB" not in data:
            return self.reply(DEFAULT_TEXT, "stop")
        body = json.loads(data)
        self.bodies.append(without_images(body))
        if body["model"] != self.model:
            return error(404, f"The model `{body['model']}` does not exist.")
        return await self.obey(user_text(body["messages"]))

    async def obey(self, text: str) -> web.StreamResponse:
        """Do what a STUB text says."""
        self.seen[text] += 1
        if not text.startswith("STUB "):
            return self.reply(DEFAULT_TEXT, "stop")
        verb, _, rest = text.removeprefix("STUB ").partition(" ")
        if verb == "text":
            return self.reply(rest, "stop")
        if verb == "finish":
            return self.reply(DEFAULT_TEXT, rest)
        if verb == "status" or (verb == "once" and self.seen[text] == 1):
            return error(int(rest.split()[0]), "the stub was told to fail")
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


class Journal:
    """Counts what was asked in a file, so that the counts outlive the server."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, messages: list[dict[str, Any]]) -> None:
        """Note a conversation by its last user text, and by a digest of all of it."""
        digest = hashlib.sha256(json.dumps(messages).encode()).hexdigest()[:16]
        with self.path.open("a") as journal:
            journal.write(json.dumps([user_text(messages), digest]) + "\n")

    def counts(self) -> dict[str, dict[str, int]]:
        """How often each text, and each conversation with its images, was asked."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        noted = [json.loads(line) for line in lines]
        return {
            "asked": Counter(text for text, _ in noted),
            "conversations": Counter(digest for _, digest in noted),
        }


def base64_forms(mark: bytes) -> list[bytes]:
    """What the mark looks like in base64, wherever it lies in a file: one form per alignment."""
    forms = []
    for offset in range(3):
        encoded = base64.b64encode(bytes(offset) + mark)
        # Characters at either end hold bits of the neighbouring bytes too.
        forms.append(encoded[-(-offset * 8 // 6) : (offset + len(mark)) * 8 // 6])
    return forms


def error(status: int, message: str) -> web.Response:
    """An error in vLLM's form."""
    return web.json_response({"error": {"message": message, "code": status}}, status=status)


def user_text(messages: list[dict[str, Any]]) -> str:
    """The last user turn's text."""
    content = messages[-1]["content"]
    if isinstance(content, str):
        return content
    return " ".join(part["text"] for part in content if part["type"] == "text")


def without_images(body: dict[str, Any]) -> dict[str, Any]:
    """The body with each image's data cut to its type."""
    text = json.dumps(body)
    kept = json.loads(text)
    for message in kept["messages"]:
        for part in message["content"] if isinstance(message["content"], list) else []:
            if part["type"] == "image_url":
                part["image_url"]["url"] = part["image_url"]["url"].partition(",")[0]
    result: dict[str, Any] = kept
    return result


def respawn(arguments: list[str], seconds: float) -> None:
    """Run the server, and when it has died again after that time, until told to stop."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    libc = ctypes.CDLL(None)
    for life in itertools.count(1):
        command = [sys.executable, __file__, *arguments, "--respawn=-1", f"--life={life}"]
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
    """Serve until stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", default="stub")
    parser.add_argument("--latency", type=float, default=0.05, help="seconds per request")
    parser.add_argument("--slots", type=int, default=256, help="requests worked on at once")
    parser.add_argument("--api-key", default="")
    parser.add_argument("--poison", default="", help="mark in an image's bytes that kills")
    parser.add_argument("--count-texts", type=Path, help="file to count what is asked in")
    parser.add_argument("--respawn", type=float, default=-1, help="seconds until it comes back")
    parser.add_argument("--life", type=int, default=1, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.respawn >= 0:
        respawn(sys.argv[1:], options.respawn)
    app = Stub(options).app()
    web.run_app(app, host="127.0.0.1", port=options.port, print=None, access_log=None)


if __name__ == "__main__":
    main()
