"""Rows that crash the server are found by bisection, and no others are blamed."""

from collections.abc import Callable, Iterable
from itertools import chain, combinations

import pytest
from prefect_imageqa.serving.client.client import ChatClient
from prefect_imageqa.serving.client.retry_policy import MAX_CRASHES
from prefect_imageqa.serving.endpoint import VLLMEndpoint
from prefect_imageqa.serving.types import ChatRequest, Completion, Failure, FailureKind, Outcome
from prefect_imageqa.tasks.errors import EndpointLostError
from prefect_imageqa.tasks.generating.chat_requests import GenerationSettings
from prefect_imageqa.tasks.generating.generate import complete_batch
from prefect_imageqa.tasks.images.reader import ImageReader
from prefect_imageqa.tasks.records import Batch, Kind, Problem, Prompt

SETTINGS = GenerationSettings(ImageReader())


class CrashingClient(ChatClient):
    """A client without a network, of a server that some rows crash; it is back at once.

    Attributes:
        losses: how many times the server was lost.

    Args:
        crashing: the numbers of these rows.
        in_flight: requests in flight at a time.
        in_order: whether the rows before a crashing one are answered before the crash.
        max_losses: after so many losses the server does not come back.
    """

    def __init__(
        self,
        crashing: Iterable[int],
        in_flight: int = 64,
        in_order: bool = False,
        max_losses: int = 1 << 30,
    ) -> None:
        super().__init__(VLLMEndpoint(urls=["http://127.0.0.1:9"], model="stub"))
        self.losses = 0
        self._crashing = {f"row {number}" for number in crashing}
        self._in_flight = in_flight
        self._in_order = in_order
        self._max_losses = max_losses

    def complete(
        self,
        requests: Iterable[ChatRequest],
        on_outcome: Callable[[int, Outcome], None] | None = None,
        *,
        max_crashes: int = MAX_CRASHES,
    ) -> list[Outcome]:
        """Each request is in flight at one loss at most, as with an isolated batch."""
        assert on_outcome
        assert max_crashes == 1
        texts = [str(request.messages[0]["content"]) for request in requests]
        for start in range(0, len(texts), self._in_flight):
            sent = texts[start : start + self._in_flight]
            crash = next((n for n, text in enumerate(sent) if text in self._crashing), None)
            answered = len(sent) if crash is None else crash * self._in_order
            for position, text in enumerate(sent):
                outcome: Outcome = Completion(text, "stop", 1, 1, 0.1, "stub")
                if position >= answered:
                    outcome = Failure(FailureKind.CRASH, "it closed the connection")
                on_outcome(start + position, outcome)
            self.losses += crash is not None
            if self.losses >= self._max_losses:
                raise EndpointLostError("waited in vain")
        return []


def isolated_batch(size: int) -> Batch:
    prompts = tuple(
        Prompt(row, f"{row:032x}", f"d:{row}", ({"role": "user", "content": f"row {row}"},))
        for row in range(size)
    )
    return Batch(1, "b" * 32, prompts, (0,) * size, isolated=True)


def rows_with(pending: Batch, kind: type[Completion] | Kind) -> list[int]:
    """The rows with a completion, or with a problem of a kind."""
    rows = []
    for prompt in pending.prompts:
        reply = pending.replies.get(prompt.key)
        if kind == (reply.kind if isinstance(reply, Problem) else type(reply)):
            rows.append(prompt.row)
    return rows


@pytest.mark.parametrize("in_flight", [1, 2, 64])
@pytest.mark.parametrize("in_order", [False, True])
def test_bisection_finds_exactly_the_rows_that_crash_the_server(
    in_flight: int, in_order: bool
) -> None:
    for size in range(1, 8):
        for crashing in chain.from_iterable(combinations(range(size), n) for n in range(size + 1)):
            pending, client = isolated_batch(size), CrashingClient(crashing, in_flight, in_order)
            complete_batch(pending, client, SETTINGS)
            assert rows_with(pending, Kind.CRASH) == list(crashing)
            assert rows_with(pending, Completion) == sorted({*range(size)} - {*crashing})


@pytest.mark.parametrize("crashing", [[77], [0, 1], [3, 130, 255], range(0, 256, 2)])
def test_a_row_that_crashes_the_server_costs_few_crashes(crashing: list[int]) -> None:
    pending, client = isolated_batch(256), CrashingClient(crashing, in_flight=256)
    complete_batch(pending, client, SETTINGS)
    assert rows_with(pending, Kind.CRASH) == list(crashing)
    # One in each group from 256 rows down to the row alone: 9 for a single row.
    assert client.losses <= len(crashing) * 9


def test_the_results_of_a_search_that_is_given_up_are_retained() -> None:
    """Two of eight rows crash the server, which is gone after the first of them is found."""
    pending, client = isolated_batch(8), CrashingClient({2, 5}, max_losses=5)
    with pytest.raises(EndpointLostError, match="in vain"):
        complete_batch(pending, client, SETTINGS)
    assert rows_with(pending, Kind.CRASH) == [2]
    assert rows_with(pending, Completion) == [0, 1, 3]
    assert len(pending.replies) == 4, "a crash with other rows in flight proves nothing"


def test_a_search_is_resumed_with_the_rows_that_have_no_reply() -> None:
    pending = isolated_batch(8)
    with pytest.raises(EndpointLostError):
        complete_batch(pending, CrashingClient({2, 5}, max_losses=5), SETTINGS)
    again = CrashingClient({2, 5})
    complete_batch(pending, again, SETTINGS)
    assert rows_with(pending, Kind.CRASH) == [2, 5]
    assert rows_with(pending, Completion) == [0, 1, 3, 4, 6, 7]
    assert again.losses == 3  # rows 4 to 7, then 4 and 5, then 5
