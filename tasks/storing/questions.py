"""Questions of one pass, answered by another: its rows, and the outcomes of both joined."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...serving.printable import printable
from ..errors import ObjectCorruptedError, StoreError
from ..records import Answered, FinishedRow, Quarantined, Row


def question_rows(rows: Iterable[Row], outcomes: Iterable[FinishedRow | None]) -> Iterator[Row]:
    """A row for each question that was asked about the rows of a dataset.

    The outcomes are those of the rows; answered ones have questions.
    """
    for row, outcome in zip(rows, outcomes, strict=False):
        if isinstance(outcome, Answered):
            for number, question in enumerate(_questions(outcome), 1):
                where = f"{row.where}, question {number}"
                yield replace(row, where=where, question=question)


def with_answers(
    outcomes: Iterable[FinishedRow | None], answers: Iterable[FinishedRow | None]
) -> Iterator[FinishedRow | None]:
    """The outcomes of a pass that asked for questions, with their answers.

    A row is answered if one of its questions is. Those that could not be answered are in
    `unanswered`; a row without any answer is quarantined for the reason of its first question. The
    answers are to the questions in the order of `question_rows`.

    Raises:
        StoreError: a question is neither answered nor quarantined.
    """
    upcoming = iter(answers)
    for outcome in outcomes:
        yield _joined(outcome, upcoming) if isinstance(outcome, Answered) else outcome


def _joined(asked: Answered, answers: Iterator[FinishedRow | None]) -> Answered | Quarantined:
    parsed: list[dict[str, Any]] = []
    failures: list[Quarantined] = []
    reasonings, lost = [asked.reasoning], asked.lost
    for question in asked.parsed:
        answer = next(answers, None)
        if isinstance(answer, Quarantined):
            failures.append(replace(answer, question=question["question"]))
        elif answer is None:
            raise StoreError("a question is neither answered nor quarantined: run again")
        else:
            parsed.append({**question, **_answer_of(answer)})
            reasonings.append(answer.reasoning)
            lost += answer.lost
    if not parsed and failures:
        first = failures[0]
        message = f"{printable(first.question, 100)}: {first.message}"
        return replace(first, key=asked.key, message=message, question="", attempt=0)
    return replace(
        asked,
        text=_as_text(parsed) if parsed else asked.text,
        parsed=parsed,
        reasoning="\n\n".join(filter(None, reasonings)),
        lost=lost,
        unanswered=tuple(failures),
    )


def _as_text(pairs: Sequence[Mapping[str, Any]]) -> str:
    """The pairs as a model writes them that answers its questions itself."""
    texts = [f"**Question:** {pair['question']}\n**Answer:** {pair['answer']}" for pair in pairs]
    if len(texts) == 1:
        return texts[0]
    return "\n\n".join(f"{number}. {text}" for number, text in enumerate(texts, 1))


def _questions(asked: Answered) -> list[str]:
    try:
        return [pair.question for pair in asked.pairs]
    except (TypeError, ValueError):
        raise _corrupted(asked) from None


def _answer_of(answer: Answered) -> dict[str, Any]:
    """What the answer adds to its question."""
    try:
        (pair,) = answer.parsed
        return {name: value for name, value in pair.items() if name != "question"}
    except (TypeError, ValueError, LookupError):
        raise _corrupted(answer) from None


def _corrupted(answer: Answered) -> ObjectCorruptedError:
    return ObjectCorruptedError(
        f"the stored answer {answer.key} is corrupted: run again with --refresh"
    )
