"""A stand-in for vLLM that answers after a set time: for benchmarks, and for faults on demand.

It speaks `/health`, `/v1/models` and `/v1/chat/completions`, and counts requests under `/stats`.
A user text that starts with `STUB` says what to do with that request:

    STUB text TEXT          reply TEXT
    STUB finish REASON      stop for that reason
    STUB status CODE        answer with that HTTP status, always
    STUB once CODE          answer with that HTTP status the first time
    STUB raw BODY           send BODY instead of JSON
    STUB hang               never answer
"""

import argparse
import asyncio
import json
import os
from collections import Counter
from typing import Any

from aiohttp import web

DEFAULT_TEXT = "**Question:** What is in the image?\n**Answer:** A stub."


class Stub:
    """The server's state: its slots, and what it has seen."""

    def __init__(self, model: str, latency: float, slots: int, api_key: str) -> None:
        self.model, self.latency, self.api_key = model, latency, api_key
        self.slots = asyncio.Semaphore(slots)
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
        return web.json_response({"requests": self.requests, "bodies": self.bodies[-64:]})

    async def models(self, _: web.Request) -> web.Response:
        """The one model."""
        return web.json_response({"object": "list", "data": [{"id": self.model}]})

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """Wait for a slot and the latency, then do as the user text says."""
        self.requests += 1
        data = await request.read()
        async with self.slots:
            await asyncio.sleep(self.latency)
        # Parsing a body with images costs as much as serving it; look only where it may say more.
        if self.latency and b"STUB" not in data:
            return self.reply(DEFAULT_TEXT, "stop")
        body = json.loads(data)
        self.bodies.append(without_images(body))
        if body["model"] != self.model:
            return error(404, f"The model `{body['model']}` does not exist.")
        return await self.obey(user_text(body))

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


def error(status: int, message: str) -> web.Response:
    """An error in vLLM's form."""
    return web.json_response({"error": {"message": message, "code": status}}, status=status)


def user_text(body: dict[str, Any]) -> str:
    """The last user turn's text."""
    content = body["messages"][-1]["content"]
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


def main() -> None:
    """Serve until stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", default="stub")
    parser.add_argument("--latency", type=float, default=0.05, help="seconds per request")
    parser.add_argument("--slots", type=int, default=256, help="requests worked on at once")
    parser.add_argument("--api-key", default="")
    options = parser.parse_args()
    stub = Stub(options.model, options.latency, options.slots, options.api_key)
    web.run_app(stub.app(), host="127.0.0.1", port=options.port, print=None, access_log=None)


if __name__ == "__main__":
    main()
