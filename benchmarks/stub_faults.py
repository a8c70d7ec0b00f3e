"""The faults that the stub of a vLLM server draws at random, and the gateway before it."""

import argparse
import base64
import hashlib
import itertools
import json
import random
import time
from typing import Any, Literal

from aiohttp import web

Fault = Literal["fail", "drop", "garbage"]


class Faults:
    """Which requests fail, and how.

    Failures, drops and garbage are drawn for each request, so a request that is sent again may
    succeed. The same seed and the same number of requests give the same faults.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.shares: dict[Fault, float] = {
            "fail": options.fail_share,
            "drop": options.drop_share,
            "garbage": options.garbage_share,
        }
        self.hang_share: float = options.hang_share
        self.unusable_share: float = options.unusable_share
        self.corrected_share: float = options.corrected_share
        self.refuses_schemas: bool = options.refuse_schemas
        self.fail_status: int = options.fail_status
        self.poison = base64_forms(options.poison.encode()) if options.poison else []
        self.seed = options.seed
        self.random = random.Random(options.seed)
        self.garbage_bodies = itertools.cycle(
            [
                ("text/html", "<html><body><h1>Please log in</h1></body></html>"),
                ("application/json", '{"object": "chat.completion", "choices": [{"mess'),
                ("application/json", '{"object": "chat.completion", "choices": []}'),
            ]
        )

    def draw(self) -> Fault | None:
        """The fault of the next request."""
        number = self.random.random()
        for fault, share in self.shares.items():
            number -= share
            if number < 0:
                return fault
        return None

    def hangs(self, data: bytes) -> bool:
        """Whether this row is never answered: every time it is asked, and after a restart."""
        return self._draws(self.hang_share, data)

    def is_unusable(self, data: bytes) -> bool:
        """Whether the reply to this row is in no form that can be read.

        A row that is shown its own reply has another chance.
        """
        share = self.unusable_share
        if share and json.loads(data)["messages"][-2:][0]["role"] == "assistant":
            share = 1 - self.corrected_share
        return self._draws(share, data)

    def refuses(self, data: bytes) -> bool:
        """Whether the request asks for a form of the reply, which this server does not support."""
        guides = (b'"response_format"', b'"structured_outputs"')
        return self.refuses_schemas and any(guide in data for guide in guides)

    def _draws(self, share: float, data: bytes) -> bool:
        """Whether a row is among such a share of all rows, always the same ones."""
        if not share:
            return False
        text = json.dumps([self.seed, json.loads(data)["messages"]])
        digest = hashlib.sha256(text.encode()).digest()
        return int.from_bytes(digest[:8]) < share * (1 << 64)

    def kills(self, data: bytes) -> bool:
        """Whether an image contains the marker that crashes the server."""
        return any(form in data for form in self.poison)

    def failure(self) -> web.Response:
        """An error of the chosen status."""
        return error(self.fail_status, "simulated failure")

    def garbage(self) -> web.Response:
        """HTTP 200 with what is no completion: HTML, half a JSON object, no choices, in turn."""
        content_type, body = next(self.garbage_bodies)
        return web.Response(text=body, content_type=content_type)


class Gateway:
    """A gateway that limits the requests per second.

    By default a token bucket, which holds the tokens of one second, but at least one; with
    `window` it instead counts the requests of each second of the clock.
    """

    def __init__(self, rate: float, window: bool) -> None:
        self.rate, self.window = rate, window
        self.capacity = max(1.0, rate)
        self.tokens = self.capacity
        self.checked = time.monotonic()

    def admits(self) -> bool:
        """Whether the next request is let through."""
        now = time.monotonic()
        if not self.window:
            self.tokens = min(self.capacity, self.tokens + (now - self.checked) * self.rate)
        elif int(now) > int(self.checked):
            self.tokens = self.capacity
        self.checked = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True

    def refusal(self) -> web.Response:
        """HTTP 429."""
        response = error(429, "too many requests")
        response.headers["Retry-After"] = "1"
        return response


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
    body: dict[str, Any] = {"error": {"message": message, "code": status}}
    return web.json_response(body, status=status)


def add_fault_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that `Faults` and `Gateway` read."""
    parser.add_argument("--poison", default="", help="marker in an image that crashes the server")
    parser.add_argument("--fail-share", type=float, default=0, help="share of requests that fail")
    parser.add_argument("--fail-status", type=int, default=500, help="HTTP status of a failure")
    parser.add_argument("--drop-share", type=float, default=0, help="share of requests dropped")
    parser.add_argument("--garbage-share", type=float, default=0, help="share of useless replies")
    parser.add_argument("--hang-share", type=float, default=0, help="share of rows never answered")
    parser.add_argument("--unusable-share", type=float, default=0, help="share of prose for pairs")
    parser.add_argument(
        "--corrected-share",
        type=float,
        default=1,
        help="share of these rows that are answered when they are shown their reply",
    )
    parser.add_argument(
        "--refuse-schemas", action="store_true", help="answer 400 to requests with a JSON schema"
    )
    # With seed 2, every share of the first 500 to 4,000 draws is close to what was asked for.
    parser.add_argument("--seed", type=int, default=2, help="decides which requests and rows")
    parser.add_argument("--rate", type=float, default=0, help="requests/s that a gateway admits")
    parser.add_argument(
        "--rate-window",
        action="store_true",
        help="the gateway counts requests per second of the clock, instead of a token bucket",
    )
