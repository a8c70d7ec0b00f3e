"""Pairs that repeat an earlier one about the same record are not exported."""

from ..checking.texts import normal_form as normal_form
from ..records import Answered, QAPair, Row
from .pairs_parquet import pairs_of


class DistinctPairs:
    """The pairs of rows without repetitions; the rows of one record follow one another.

    Attributes:
        dropped: how many pairs were repetitions.
    """

    def __init__(self) -> None:
        self.dropped = 0
        self._first: dict[str, str] = {}
        """The first answer to each question of the record, by the question's normal form."""
        self._answers: dict[str, set[str]] = {}
        """The normal forms of all answers to a question that was asked again."""

    def of(self, row: Row, answer: Answered) -> list[QAPair]:
        """The pairs of an answered row whose questions are new among the rows of its record.

        A question that the model was given, and did not write, may get several answers. The turns
        of a dialogue follow from one another, and are all kept.

        Raises:
            ObjectCorruptedError: the stored answer does not consist of QA pairs.
        """
        if not row.sample:
            self._first.clear()
            self._answers.clear()
        pairs = pairs_of(answer, row.where)
        return [pair for pair in pairs if pair.turn or self._is_new(pair, answer)]

    def _is_new(self, pair: QAPair, answer: Answered) -> bool:
        question = normal_form(pair.question)
        if question not in self._first:
            self._first[question] = pair.answer
            return True
        answers = self._answers.setdefault(question, {normal_form(self._first[question])})
        is_given = question not in normal_form(answer.text)
        form = normal_form(pair.answer)
        is_new = is_given and form not in answers
        answers.add(form)
        self.dropped += not is_new
        return is_new
