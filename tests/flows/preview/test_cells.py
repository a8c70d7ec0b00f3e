"""What is shown of a finished row, and the results of a style."""

from typing import Any

import pytest
from prefect_imageqa.flows.preview.cells import (
    Preview,
    Said,
    Totals,
    messages_as_text,
    preview_reply,
    totals_of,
)
from prefect_imageqa.tasks.records import Answered, Asked, Kind, Prompt, QAPair, Quarantined

PROMPT = Prompt(0, "k", "d.json[0]", asked=Asked(style="short@1"))


def answered(parsed: Any) -> Answered:
    return Answered("k", "raw", parsed, "m", 10, 5, 0.25)


def test_an_answered_row_has_its_pairs() -> None:
    reply = preview_reply(PROMPT, answered([{"question": "Q?", "answer": "A", "turn": 1}]))
    assert (reply.label, reply.key, reply.text, reply.kind) == ("short@1", "k", "raw", "")
    assert reply.pairs == (QAPair("Q?", "A", turn=1),)
    assert (reply.tokens, reply.latency) == (5, 0.25)


def test_what_is_no_pair_is_said() -> None:
    reply = preview_reply(PROMPT, answered(["no pair"]))
    assert reply.kind == "unparsed"
    assert "no QA pairs" in reply.reason


def test_a_quarantined_row_has_its_reason_and_reply() -> None:
    row = Quarantined("k", 0, "d.json[0]", Kind.TRUNCATED, "too long", text="raw")
    reply = preview_reply(PROMPT, row)
    assert (reply.kind, reply.reason, reply.text, reply.pairs) == (
        *("truncated", "too long", "raw"),
        (),
    )


def test_images_have_their_numbers_in_the_prompt() -> None:
    messages = (
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "image", "image": 1}, {"type": "text", "text": "Which?"}],
        },
    )
    assert messages_as_text(messages) == (
        Said("system", "Be brief."),
        Said("user", "[image 2]\nWhich?"),
    )


def test_totals(compared: Preview) -> None:
    assert totals_of(compared) == [
        Totals("short", rows=2, answered=1, pairs=1, distinct=1, tokens=12, seconds=0.5),
        Totals("mine.md", rows=3, answered=3, pairs=5, distinct=3, tokens=0, seconds=0),
    ]


@pytest.mark.parametrize("questions", [["Who is it?", "who  is IT?"], ["Who is it?"]])
def test_the_same_question_counts_once(questions: list[str], compared: Preview) -> None:
    pairs = [{"question": question, "answer": "A"} for question in questions]
    reply = preview_reply(PROMPT, answered(pairs))
    row = compared.rows[0].__class__("d.json[0]", (), ((reply,),))
    (totals,) = totals_of(Preview("d", "m", ("short",), (row,)))
    assert (totals.pairs, totals.distinct) == (len(questions), 1)
