"""Questions of one pass, answered by another: its rows, and the outcomes of both joined."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from ..errors import ObjectCorruptedError, StoreError
from ..records import Answered, FinishedRow, Quarantined, Row


def question_rows(rows: Iterable[Row], outcomes: Iterable[FinishedRow | None]) -> Iterator[Row]:
    """A row for each question that was asked about the rows of a dataset.

    Args:
        rows: the dataset.
        outcomes: of each of its rows, those with an answer have questions.
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
    `unanswered`; a row without any answer is quarantined for the reason of its first question.

    Args:
        outcomes: of the rows.
        answers: of each question of the rows, as `question_rows` gives them.

    Raises:
        StoreError: a question is neither answered nor quarantined.
    """
    upcoming = iter(answers)
    for outcome in outcomes:
        yield _joined(outcome, upcoming) if isinstance(outcome, Answered) else outcome


def _joined(asked: Answered, answers: Iterator[FinishedRow | None]) -> Answered | Quarantined:
    parsed: list[dict[str, object]] = []
    failures: list[Quarantined] = []
    reasonings: list[str] = []
    for question in asked.parsed:
        answer = next(answers, None)
        if isinstance(answer, Quarantined):
            failures.append(replace(answer, question=question["question"]))
        elif answer is None:
            raise StoreError("a question is neither answered nor quarantined: run again")
        else:
            parsed.append({**question, **_answer_of(answer)})
            reasonings.append(answer.reasoning)
    if not parsed and failures:
        return replace(failures[0], key=asked.key, question="", attempt=0)
    reasoning = "\n\n".join(text for text in (asked.reasoning, *reasonings) if text)
    return replace(asked, parsed=parsed, reasoning=reasoning, unanswered=tuple(failures))


def _questions(asked: Answered) -> list[str]:
    try:
        return [pair.question for pair in asked.pairs]
    except (TypeError, ValueError):
        raise _corrupted(asked) from None


def _answer_of(answer: Answered) -> dict[str, object]:
    try:
        (pair,) = answer.parsed
        return {"answer": pair["answer"]}
    except (TypeError, ValueError, LookupError):
        raise _corrupted(answer) from None


def _corrupted(answer: Answered) -> ObjectCorruptedError:
    return ObjectCorruptedError(
        f"the stored answer {answer.key} is corrupted: run again with --refresh"
    )
