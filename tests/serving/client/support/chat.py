"""Short forms for tests of the chat client."""

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from prefect_imageqa.serving.client import ChatClient
from prefect_imageqa.serving.endpoint import VLLMEndpoint
from prefect_imageqa.serving.types import ChatRequest, Completion, Failure, Outcome


def ask(text: Any) -> ChatRequest:
    """A request with that text."""
    return ChatRequest([{"role": "user", "content": text}], {"max_tokens": 16})


def endpoint(*urls: str, model: str | None = "m", **options: Any) -> VLLMEndpoint:
    """An endpoint of these servers."""
    return VLLMEndpoint(urls=list(urls), model=model, **options)


def texts(outcomes: Sequence[Outcome]) -> list[str]:
    """The texts of the completions."""
    return [outcome.text for outcome in outcomes if isinstance(outcome, Completion)]


def only_failure(outcomes: Sequence[Outcome]) -> Failure:
    """The only outcome, a failure."""
    (outcome,) = outcomes
    assert isinstance(outcome, Failure), outcome
    return outcome


def wait_until(condition: Callable[[], object], seconds: float = 30) -> None:
    """Poll until the condition is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition never became true"
        time.sleep(0.005)


@contextmanager
def completing(
    client: ChatClient, sent: Iterable[Any], **options: Any
) -> Iterator[Future[list[Outcome]]]:
    """The outcomes of requests with these texts, sent from another thread.

    The client is stopped when the block fails, lest the thread waits for ever.
    """
    with ThreadPoolExecutor(1) as executor:
        outcomes = executor.submit(client.complete, map(ask, sent), **options)
        try:
            yield outcomes
        except BaseException:
            client.stop()
            raise


def noted(client: ChatClient, part: str, least: int = 0) -> Callable[[], bool]:
    """Whether one of the client's notes contains that text.

    `N s` stands for any number of seconds from `least` on: a test may look too late for a certain
    one.
    """
    pattern = re.compile(re.escape(part).replace(re.escape("N s"), r"(\d+) s"))

    def is_noted() -> bool:
        found = filter(None, map(pattern.search, client.stats.notes))
        return any(all(int(number) >= least for number in match.groups()) for match in found)

    return is_noted


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the client has logged: threads of earlier tests may log as well."""
    return [r.getMessage() for r in caplog.records if r.name == "prefect_imageqa.serving"]
