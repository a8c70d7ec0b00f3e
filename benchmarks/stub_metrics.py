"""The part of vLLM's `/metrics` page that shows whether an engine works."""

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

LABELS = ("model_name", "engine")


class Metrics:
    """An engine's load and tokens.

    Attributes:
        running: requests that the engine works on.
        waiting: requests that wait for a slot.
        prompt_tokens: tokens read since the start.
        generation_tokens: tokens generated since the start.
    """

    def __init__(self, model: str) -> None:
        self._registry = CollectorRegistry()
        self._frozen_page: bytes | None = None

        def gauge(name: str, description: str) -> Gauge:
            return Gauge(name, description, LABELS, registry=self._registry).labels(model, "0")

        def counter(name: str, description: str) -> Counter:
            return Counter(name, description, LABELS, registry=self._registry).labels(model, "0")

        self.running = gauge(
            "vllm:num_requests_running", "Number of requests in model execution batches."
        )
        self.waiting = gauge(
            "vllm:num_requests_waiting", "Number of requests waiting to be processed."
        )
        self.prompt_tokens = counter("vllm:prompt_tokens", "Number of prefill tokens processed.")
        self.generation_tokens = counter(
            "vllm:generation_tokens", "Number of generation tokens processed."
        )

    def freeze(self) -> None:
        """Show the present state from now on, as the API process does for an engine that hangs."""
        self._frozen_page = generate_latest(self._registry)

    def thaw(self) -> None:
        """Show the current state again."""
        self._frozen_page = None

    def page(self) -> bytes:
        """The page, in the Prometheus text format."""
        return self._frozen_page or generate_latest(self._registry)
