"""Conditions on pairs, as users write them: `consistency >= 0.66 AND NOT blind_answerable`.

DuckDB parses and evaluates them. Its settings alone do not keep a condition from reading the
catalogue, from waiting, or from taking all memory: so it only ever evaluates what `condition_sql`
writes anew.
"""

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ...serving.printable import printable
from ..errors import ConditionError
from .condition_sql import ConditionWriter, Node

if TYPE_CHECKING:
    import duckdb

MAX_CHARACTERS = 4000
"""Length of a condition."""

_SECONDS, _SECONDS_PER_MB = 10.0, 1.0
"""Processor time that a condition may take: so much, and so much for each megabyte of its columns.
Patterns of users take up to 0.1 s a megabyte, hostile ones more than a hundred times that."""

_PIECE_BYTES = 1 << 20
"""What is evaluated at once."""

_TABLE = "pairs"
_NOT_ONE = "it must be one condition, and nothing else"

_SETTINGS: Mapping[str, str | bool | int | float | list[str]] = {
    "allow_community_extensions": False,
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "enable_external_access": False,
    "max_expression_depth": 64,
    "max_temp_directory_size": "0GB",
    "memory_limit": "1GB",
    "python_enable_replacements": False,
    "threads": 1,
}


@dataclass(frozen=True, slots=True)
class Part:
    """One of the parts that AND joins to a condition; a pair must meet each of them.

    Attributes:
        text: the part.
        columns: the columns that it names.
    """

    text: str
    columns: tuple[str, ...]


class Condition:
    """A condition on the columns of a table.

    Args:
        text: the condition; an empty one has no parts.
        schema: the columns that it may name. Upper and lower case are the same; of several columns
            that differ by case only the first counts.

    Attributes:
        parts: its parts, in order.
        columns: the columns that any of them names.

    Raises:
        ConditionError: it is none, or names a column that there is not.
    """

    def __init__(self, text: str, schema: pa.Schema) -> None:
        self._text = printable(text, 100)
        self._columns: dict[str, pa.Field] = {}
        for field in filter(_is_usable, schema):
            self._columns.setdefault(field.name.lower(), field)
        self._sql = ""
        self._spent = 0.0
        parts: Sequence[Part] = ()
        if text.strip():
            self._database = _database()
            with _reported(self._text):
                parts = self._open(text)
        self.parts = parts
        names = {name for part in self.parts for name in part.columns}
        self.columns = tuple(field.name for field in schema if field.name in names)

    def evaluate(self, batch: pa.RecordBatch) -> list[pa.ChunkedArray]:
        """Whether each row meets each part; null where a part has no result.

        Raises:
            ConditionError: a part cannot be evaluated for a row, such as a cast of a text that is
                no number; or the condition takes too long.
        """
        if not self.parts:
            return []
        table = pa.Table.from_batches([batch]).select(self.columns)
        step = max(1, _PIECE_BYTES * len(batch) // max(table.nbytes, 1))
        with _reported(self._text):
            pieces = [
                self._evaluated(table.slice(start, step), min(step, len(batch) - start))
                for start in range(0, max(len(batch), 1), step)
            ]
        return list(pa.concat_tables(pieces).columns)

    def _evaluated(self, table: pa.Table, count: int) -> pa.Table:
        began = time.thread_time()
        result = self._selected(table, count).to_arrow_table()
        if len(result) != count:
            raise ConditionError("it gives another number of rows")
        megabytes = (table.nbytes + 8 * count) / 1e6
        self._spent += time.thread_time() - began - _SECONDS_PER_MB * megabytes
        if self._spent > _SECONDS:
            raise ConditionError("it takes too long: use simpler patterns")
        return result

    def _open(self, text: str) -> Sequence[Part]:
        node = self._parsed(text)
        is_joined = (node.get("class"), node.get("type")) == ("CONJUNCTION", "CONJUNCTION_AND")
        nodes = node["children"] if is_joined else [node]
        writer = ConditionWriter(self._columns)
        self._sql = ", ".join(f"({writer.condition(node)})" for node in nodes)
        parts = tuple(map(self._part, nodes))
        fields = [self._columns[name.lower()] for name in writer.used]
        for part, given in zip(parts, self._types(pa.schema(fields)), strict=True):
            if given != "BOOLEAN":
                raise ConditionError(f"{printable(part.text, 100)} is no condition: compare it")
        return parts

    def _parsed(self, text: str) -> Node:
        """The syntax tree of one expression."""
        if len(text) > MAX_CHARACTERS:
            raise ConditionError(f"it has more than {MAX_CHARACTERS:,} characters")
        # The line break ends a comment.
        statement, plain = self._tree(f"SELECT ({text}\n)"), self._tree("SELECT (TRUE\n)")
        expressions = statement.pop("select_list", [])
        plain.pop("select_list")
        if len(expressions) != 1 or _without_places(statement) != _without_places(plain):
            raise ConditionError(_NOT_ONE)
        node: Node = expressions[0]
        if node.get("alias"):
            raise ConditionError(_NOT_ONE)
        return node

    def _tree(self, sql: str) -> dict[str, Any]:
        asked = self._database.execute("SELECT json_serialize_sql(?::VARCHAR)", [sql])
        ((serialized,),) = asked.fetchall()
        tree = json.loads(serialized)
        if tree["error"] and "depth" in tree["error_message"]:
            raise ConditionError("it is nested too deeply")
        if tree["error"] and tree["error_type"] == "parser":
            raise ConditionError(_syntax_error(sql, tree))
        if tree["error"] or len(tree["statements"]) != 1:
            raise ConditionError(_NOT_ONE)
        node: dict[str, Any] = tree["statements"][0]["node"]
        return node

    def _part(self, node: Node) -> Part:
        writer = ConditionWriter(self._columns, shown=True)
        text = writer.condition(node)
        return Part(printable(text), tuple(writer.used))

    def _types(self, schema: pa.Schema) -> list[str]:
        """The type of each part; a table without rows is enough to find invalid patterns."""
        relation = self._selected(schema.empty_table(), 0)
        relation.to_arrow_table()
        return list(map(str, relation.types))

    def _selected(self, table: pa.Table, count: int) -> "duckdb.DuckDBPyRelation":
        if not table.num_columns:  # a condition without columns, which needs to know how many rows
            table = pa.table({"row": pa.nulls(count, pa.bool_())})
        self._database.register(_TABLE, table)
        return self._database.sql(f"SELECT {self._sql} FROM {_TABLE}")  # noqa: S608 - our own SQL


def _database() -> "duckdb.DuckDBPyConnection":
    """A database in memory, without access to anything else."""
    import duckdb

    database = duckdb.connect(":memory:", config=dict(_SETTINGS))
    database.execute("SET lock_configuration = true").fetchall()
    return database


def _syntax_error(sql: str, tree: Mapping[str, Any]) -> str:
    """What is wrong with the text of a user, and not with what is written around it."""
    rest = sql.encode()[int(tree.get("position", 0)) :]
    if rest.startswith(b";"):
        return _NOT_ONE
    if rest == b")":  # ours
        return "its brackets do not match, or something is missing at its end"
    return str(tree["error_message"])


def _is_usable(field: pa.Field) -> bool:
    """Whether a condition can name a column: numbers, texts, yes or no, and lists of these."""
    kind = field.type.value_type if pa.types.is_list(field.type) else field.type
    kinds = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_string)
    name: str = field.name
    return any(is_of(kind) for is_of in kinds) and name.isprintable() and name != ""


def _without_places(node: Any) -> Any:
    """A syntax tree without where in the text its nodes are."""
    if isinstance(node, dict):
        return {
            name: _without_places(child)
            for name, child in node.items()
            if not name.startswith("query_location")
        }
    return [_without_places(child) for child in node] if isinstance(node, list) else node


@contextmanager
def _reported(text: str) -> Iterator[None]:
    """Turn the errors of DuckDB and of `condition_sql` into one line that says which condition."""
    import duckdb

    try:
        yield
    except (ConditionError, duckdb.Error, RecursionError) as error:
        what = str(error)
        if not isinstance(error, ConditionError):
            what = re.sub(r"^[A-Za-z ]+ Error: ", "", what).partition("\n")[0]
            if isinstance(error, duckdb.ConversionException):
                what += "; TRY_CAST gives NULL instead"
        raise ConditionError(f"keep {text!r}: {printable(what, 1000)}") from None
