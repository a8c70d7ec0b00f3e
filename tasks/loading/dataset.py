"""A dataset: a table whose rows are read lazily, as often as needed."""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from itertools import islice

from ..images.references import ImageBase
from ..records import Kind, Problem, Record, Row, RowError
from .column_search import overlooked_column
from .columns import Columns, given_answer, read_value
from .conversations import questions
from .json_formats import LocatedRecord


@dataclass(frozen=True)
class Dataset:
    """A table that is streamed from its source on every pass.

    Attributes:
        name: short human-readable name, such as "capsbench.json".
        names: columns of the first readable records; later records of JSON files may have others.
        columns: which of them are read, found by now, and which one is written.
        count: number of rows, if that is known without reading them.
        base: what the relative image paths of its rows are resolved against.
        folder: the local folder or `s3://` URI that contains its files, if the source is a folder
            or a glob; None for a single file or a DataFrame.
        sources: path or URI of its file or folder; empty for a DataFrame.
        notes: what should be known about the files, such as one that is not read.
        given: the columns as they were given, some of which are found by themselves.
        max_rows: limit of the records read, from the first.
        reserved: the output column, which no row may have.
        samples: how many rows each record gives, which all ask the same.
    """

    name: str
    names: tuple[str, ...]
    columns: Columns
    count: int | None
    base: ImageBase
    folder: str | None
    sources: tuple[str, ...]
    _read: Callable[[], Iterator[LocatedRecord]]
    notes: tuple[str, ...] = ()
    given: Columns = Columns(image=None, conversation=None)  # noqa: RUF009 - frozen
    max_rows: int | None = None
    reserved: str | None = None
    samples: int = 1

    def rows(self) -> Generator[Row, None, None]:
        """Read the rows from the start, in constant memory.

        A record with a list of questions gives a row for each: the same record, but with that one
        question. Each of these gives as many rows as there are samples.

        Raises:
            DatasetError: while iterating, if a file is corrupted in a way that affects more than
                one row.
        """
        for number, (where, record) in enumerate(islice(self.records(), self.max_rows)):
            first = number * self.samples
            problem = self._problem(record)
            cells = {} if isinstance(record, Problem) else record
            for sample in range(self.samples):
                yield Row(first + sample, cells, where, problem, sample)

    def _problem(self, record: Record | Problem) -> Problem | None:
        if isinstance(record, Problem):
            return record
        if self.reserved in record:
            return Problem(
                Kind.BAD_ROW,
                f"the row already has a column {self.reserved!r}; choose another output column",
            )
        return overlooked_column(record, self.columns, self.given)

    def records(self) -> Generator[LocatedRecord, None, None]:
        """Read the records from the start, with their locations."""
        for where, record in self._read():
            if isinstance(record, Problem):
                yield where, record
            else:
                yield from self._expanded(where, record)

    def _expanded(self, where: str, record: Record) -> Iterator[LocatedRecord]:
        """The record; or, for each question of a list, the same record with that one question."""
        try:
            asked = questions(read_value(record, self.columns.conversation))
            if len(asked) > 1 and given_answer(record, self.columns.answer):
                raise RowError(
                    Kind.BAD_ROW,
                    "the row has one answer and several questions; give each a row of its own",
                )
        except RowError as error:
            yield where, error.problem
            return
        if not asked:
            yield where, record
        for number, question in enumerate(asked, 1):
            place = f"{where}, question {number}" if len(asked) > 1 else where
            yield place, {**record, str(self.columns.conversation): question}
