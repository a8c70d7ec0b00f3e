"""Hosts that are skipped for a while, because they do not answer or are too slow."""

import time

HOST_COOLDOWN_SECONDS = 60.0
"""How long an unreachable or silent host is skipped: datasets have many dead hosts."""

MAX_SLOW_IMAGES = 3
"""Images that a host takes too long to send, one after the other, until it is skipped too."""

MAX_SKIPPED_HOSTS = 10_000
"""More are not remembered: a dataset may have images from any number of hosts."""


class SkippedHosts:
    """The hosts that are skipped now, each by its name and port."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}
        self._slow_images: dict[str, int] = {}

    def why(self, host: str) -> str:
        """Why a host is skipped: "too slow" or "unreachable"; empty if it is not."""
        if self._until.get(host, 0) <= time.monotonic():
            return ""
        is_slow = self._slow_images.get(host, 0) >= MAX_SLOW_IMAGES
        return "too slow" if is_slow else "unreachable"

    def add(self, host: str) -> None:
        """Let further requests to a host fail at once, for a while."""
        if len(self._until) >= MAX_SKIPPED_HOSTS:
            self._until.clear()
        self._until[host] = time.monotonic() + HOST_COOLDOWN_SECONDS

    def note_slow(self, host: str) -> None:
        """Skip a host that sends image after image too slowly: each keeps a row waiting."""
        if len(self._slow_images) >= MAX_SKIPPED_HOSTS:
            self._slow_images.clear()
        self._slow_images[host] = self._slow_images.get(host, 0) + 1
        if self._slow_images[host] >= MAX_SLOW_IMAGES:
            self.add(host)

    def note_sent(self, host: str) -> None:
        """A host has sent an image in time."""
        self._slow_images.pop(host, None)
