"""A client for when there is no server to ask: what it would have replied is known already."""

from collections.abc import Callable, Iterable

from ..endpoint import VLLMEndpoint
from ..types import ChatRequest, Failure, FailureKind, Outcome
from .auto_limit import MaxInFlight
from .client import ChatClient
from .retry_policy import MAX_CRASHES

_NOWHERE = "http://no-server.invalid"


class NoServer(ChatClient):
    """Fails every request, as if no server could be reached; never connects to anything."""

    def __init__(self, model: str, reason: str, max_in_flight: MaxInFlight = "auto") -> None:
        super().__init__(VLLMEndpoint(urls=[_NOWHERE], model=model), max_in_flight)
        self._reason = reason

    def complete(
        self,
        requests: Iterable[ChatRequest],
        on_outcome: Callable[[int, Outcome], None] | None = None,
        *,
        max_crashes: int = MAX_CRASHES,  # noqa: ARG002
    ) -> list[Outcome]:
        """Fail all requests."""
        failure: Outcome = Failure(FailureKind.CONNECTION, self._reason, attempts=0)
        count = 0
        for count, _ in enumerate(requests, 1):
            if on_outcome:
                on_outcome(count - 1, failure)
        return [failure] * count
