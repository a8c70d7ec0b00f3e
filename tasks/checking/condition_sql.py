"""Writes a parsed condition anew, as SQL of only the kinds that are listed here.

What DuckDB evaluates is never the user's text, but what this module makes of its syntax tree: what
is not listed cannot be in it. All of it takes time and memory in proportion to the texts.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from ...serving.printable import printable
from ..errors import ConditionError
from .catalogue import missing_check

Node = Mapping[str, Any]
"""A node of the syntax tree, as DuckDB's `json_serialize_sql` gives it."""

_TEXT_FUNCTIONS = frozenset(
    ("left", "lower", "ltrim", "right", "rtrim", "substr", "substring", "trim", "upper")
)
"""None gives a text that is longer than what it is given."""

_FUNCTIONS = _TEXT_FUNCTIONS.union(
    ("abs", "ceil", "exp", "floor", "greatest", "isfinite", "isinf", "isnan", "least", "ln"),
    ("log10", "mod", "pow", "round", "sign", "sqrt", "trunc", "ifnull", "nullif"),
    ("char_length", "len", "length", "strlen", "ends_with", "prefix", "starts_with", "suffix"),
    ("list_contains", "list_has"),
)

_SEARCHES = frozenset(("contains", "instr", "strpos"))
"""Functions that look for a text, which must be written out: they try it at every position."""

_PATTERNS = frozenset(("regexp_matches", "regexp_full_match"))
"""Functions whose pattern must be written out: DuckDB's engine matches in linear time."""

_LIKE: Mapping[str, tuple[str, str]] = {
    "~~": ("LIKE", "s"),
    "!~~": ("NOT LIKE", "s"),
    "~~*": ("ILIKE", "is"),
    "!~~*": ("NOT ILIKE", "is"),
}
"""Operator, and options of the regular expression that does the same. DuckDB's own LIKE can take
time that is exponential in the number of its wildcards."""

_ARITHMETIC = frozenset(("+", "-", "*", "/", "//", "%"))

_COMPARISONS = {
    "COMPARE_EQUAL": "=",
    "COMPARE_NOTEQUAL": "<>",
    "COMPARE_LESSTHAN": "<",
    "COMPARE_GREATERTHAN": ">",
    "COMPARE_LESSTHANOREQUALTO": "<=",
    "COMPARE_GREATERTHANOREQUALTO": ">=",
    "COMPARE_DISTINCT_FROM": "IS DISTINCT FROM",
    "COMPARE_NOT_DISTINCT_FROM": "IS NOT DISTINCT FROM",
}

_TYPES = frozenset(("BOOLEAN", "INTEGER", "BIGINT", "FLOAT", "DOUBLE", "VARCHAR"))
"""What CAST and TRY_CAST may give."""

_NUMBER = re.compile(
    r"-?[0-9][0-9_]*+(\.[0-9_]*+)?([eE][+-]?[0-9]{1,3})?|-?\.[0-9]++([eE][+-]?[0-9]{1,3})?"
)

_MAX_NODES = 300
_MAX_TEXTS = 20
"""Calls of functions that give a text, each of which may hold a copy of a column's texts."""

_MAX_PATTERN = 200
"""Characters of a text that is looked for."""

_MAX_PATTERN_COST = 1000
"""Characters of all patterns of a condition, times the repetitions in each, and times 10 for each
`\\p` of it: up to 20 s a megabyte of text. What users write takes 0.1 s."""


class ConditionWriter:
    """Writes the nodes of a condition as SQL.

    Args:
        columns: the columns that it may name, by their names in lower case.
        shown: whether it is written to be read by people, and not to be evaluated.

    Attributes:
        used: the names of the columns of the nodes written so far, in order.
    """

    def __init__(self, columns: Mapping[str, pa.Field], *, shown: bool = False) -> None:
        self._columns = columns
        self._shown = shown
        self._nodes = self._texts = self._cost = 0
        self.used: dict[str, None] = {}

    def condition(self, node: Node) -> str:
        """A node that must be true or false.

        Raises:
            ConditionError: it is not, or has a node of a kind that is not listed.
        """
        if node.get("class") == "COLUMN_REF":
            field = self._column(node)
            if not pa.types.is_boolean(field.type):
                name = printable(field.name, 100)
                raise ConditionError(f"{name} is no condition: compare it, such as {name} = ...")
        return self.write(node)

    def write(self, node: Node) -> str:
        """Any node.

        Raises:
            ConditionError: it, or a node in it, is of a kind that is not listed.
        """
        self._nodes += 1
        if self._nodes > _MAX_NODES:
            raise ConditionError(f"it has more than {_MAX_NODES} parts")
        kind = str(node.get("class"))
        write = _WRITERS.get(kind)
        if write is None:
            name = kind.replace("_", " ").lower()
            raise ConditionError(f"a {name} cannot be part of a condition")
        try:
            return write(self, node)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError):  # of another DuckDB
            raise ConditionError(f"{kind.lower()} cannot be read") from None

    def _column(self, node: Node) -> pa.Field:
        names = node["column_names"]
        field = self._columns.get(names[0].lower()) if len(names) == 1 else None
        if field is None:
            name = printable(".".join(names), 100)
            if check := missing_check(name, self._columns):
                raise ConditionError(f"there is no column {name}: run with --check {check}")
            known = ", ".join(column.name for column in self._columns.values())
            raise ConditionError(
                f"there is no column {name} (texts are in single quotes); the columns are "
                f"{printable(known, 1000)}"
            )
        return field

    def _reference(self, node: Node) -> str:
        field = self._column(node)
        name: str = field.name
        self.used[name] = None
        if self._shown and re.fullmatch(r"[a-z_][a-z0-9_]*", name):
            return name
        quoted = '"' + name.replace('"', '""') + '"'
        is_small = pa.types.is_integer(field.type) and not self._shown
        return f"CAST({quoted} AS BIGINT)" if is_small else quoted  # 100 * a rating is no int8

    def _constant(self, node: Node) -> str:
        literal = node["literal"]
        kind, text = literal["kind"], literal.get("text", "")
        if kind == "STRING":
            return _quoted(text)
        if kind == "BOOLEAN" and text in ("true", "false"):
            return str(text)
        if kind == "NULL_LITERAL":
            return "NULL"
        if kind in ("INTEGER", "NUMERIC") and _NUMBER.fullmatch(text):
            return str(text)
        raise ConditionError(f"{printable(str(text), 100)} cannot be part of a condition")

    def _comparison(self, node: Node) -> str:
        operator = _COMPARISONS[node["type"]]
        return f"{self._operand(node['left'])} {operator} {self._operand(node['right'])}"

    def _conjunction(self, node: Node) -> str:
        word = {"CONJUNCTION_AND": " AND ", "CONJUNCTION_OR": " OR "}[node["type"]]
        return word.join(self._enclosed(child, self.condition) for child in node["children"])

    def _between(self, node: Node) -> str:
        value, lower, upper = (self._operand(node[end]) for end in ("input", "lower", "upper"))
        return f"{value} BETWEEN {lower} AND {upper}"

    def _cast(self, node: Node) -> str:
        of = node["type_expr"]
        name = str(of["type_name"]).upper()
        if name not in _TYPES or of["children"] or len(of["qualified_name"]["path"]) != 1:
            known = ", ".join(sorted(_TYPES))
            raise ConditionError(f"{printable(name, 100)} is none of the types {known}")
        word = "TRY_CAST" if node["try_cast"] else "CAST"
        return f"{word}({self.write(node['child'])} AS {name})"

    def _operator(self, node: Node) -> str:
        kind, children = node["type"], node["children"]
        if kind == "OPERATOR_NOT":
            return f"NOT {self._enclosed(children[0], self.condition)}"
        first, *others = (self._operand(child) for child in children)
        if kind in ("OPERATOR_IS_NULL", "OPERATOR_IS_NOT_NULL"):
            return f"{first} {kind.removeprefix('OPERATOR_').replace('_', ' ')}"
        if kind in ("COMPARE_IN", "COMPARE_NOT_IN") and others:
            word = kind.removeprefix("COMPARE_").replace("_", " ")
            return f"{first} {word} ({', '.join(others)})"
        if kind == "OPERATOR_COALESCE":
            return f"coalesce({', '.join([first, *others])})"
        if kind == "OPERATOR_TRY":
            return f"TRY({first})"
        if kind == "ARRAY_EXTRACT" and len(others) == 1:
            return f"{first}[{others[0]}]"
        name = kind.removeprefix("OPERATOR_").replace("_", " ").lower()
        raise ConditionError(f"{name} cannot be part of a condition")

    def _function(self, node: Node) -> str:
        name = str(node["function_name"]).lower()
        arguments = [argument["expression"] for argument in node["arguments"]]
        is_plain = (
            node["qualified_name"]["path"] in ([name], [node["function_name"]])
            and not (node["distinct"] or node["filter"] or node["order_bys"]["orders"])
            and not any(argument["name"] for argument in node["arguments"])
        )
        if is_plain and name in _LIKE:
            return self._like(name, arguments)
        if is_plain and name in _PATTERNS:
            return self._pattern(name, arguments)
        if is_plain and name in _SEARCHES and len(arguments) == 2:
            wanted = _quoted(_text(arguments[1], _MAX_PATTERN, name))
            return f"{name}({self.write(arguments[0])}, {wanted})"
        if is_plain and name in _ARITHMETIC:
            operands = [self._operand(argument) for argument in arguments]
            return f"- {operands[0]}" if len(operands) == 1 else f" {name} ".join(operands)
        if name == "row":  # what parentheses with no condition in them, or with several, are
            raise ConditionError("it must be one condition, and nothing else")
        if not is_plain or name not in _FUNCTIONS:
            raise ConditionError(
                f"the function {printable(name, 100)} cannot be part of a condition"
            )
        self._texts += name in _TEXT_FUNCTIONS
        if self._texts > _MAX_TEXTS:
            raise ConditionError(f"it has more than {_MAX_TEXTS} functions of texts")
        return f"{name}({', '.join(map(self.write, arguments))})"

    def _like(self, name: str, arguments: Sequence[Node]) -> str:
        operator, options = _LIKE[name]
        text, pattern = self._operand(arguments[0]), _text(arguments[1], 1000, operator)
        if self._shown:
            return f"{text} {operator} {_quoted(pattern)}"
        parts = re.split("([%_])", pattern)
        regular = "".join({"%": ".*", "_": "."}.get(part, re.escape(part)) for part in parts)
        self._add_cost(len(pattern))
        matches = f"regexp_full_match({text}, {_quoted(regular)}, '{options}')"
        return f"NOT {matches}" if "NOT" in operator else matches

    def _pattern(self, name: str, arguments: Sequence[Node]) -> str:
        text, pattern, *options = arguments
        regular = _text(pattern, _MAX_PATTERN, name)
        counts = re.findall(r"\{(?:[0-9]+,)?([0-9]+),?\}", regular)
        repeated = math.prod(max(1, int(count[:9])) for count in counts)
        self._add_cost(len(regular) * repeated * (1 + 10 * len(re.findall(r"\\[pP]", regular))))
        flags = "".join(_text(option, 4, name) for option in options)
        if not set("cimsn").issuperset(flags):
            raise ConditionError(f"the options of {name} can be c, i, m, n and s")
        last = f", {_quoted(flags)}" if options else ""
        return f"{name}({self.write(text)}, {_quoted(regular)}{last})"

    def _add_cost(self, cost: int) -> None:
        self._cost += cost
        if self._cost > _MAX_PATTERN_COST:
            raise ConditionError("its patterns take too long: shorten them, or repeat less in them")

    def _operand(self, node: Node) -> str:
        return self._enclosed(node, self.write)

    def _enclosed(self, node: Node, write: Callable[[Node], str]) -> str:
        """A node in parentheses, unless it needs none."""
        written = write(node)
        is_call = node.get("class") == "FUNCTION" and not node["is_operator"]
        is_whole = is_call or node.get("class") in ("COLUMN_REF", "CONSTANT", "CAST")
        return written if is_whole else f"({written})"


def _text(node: Node, limit: int, what: str) -> str:
    """A text that is written out."""
    literal = node["literal"] if node.get("class") == "CONSTANT" else {}
    text = literal.get("text") if literal.get("kind") == "STRING" else None
    if not isinstance(text, str) or len(text) > limit:
        raise ConditionError(
            f"what {what} looks for must be a text in quotes, of at most {limit} characters"
        )
    return text


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


_WRITERS: Mapping[str, Callable[[ConditionWriter, Node], str]] = {
    "COLUMN_REF": ConditionWriter._reference,
    "CONSTANT": ConditionWriter._constant,
    "COMPARISON": ConditionWriter._comparison,
    "CONJUNCTION": ConditionWriter._conjunction,
    "BETWEEN": ConditionWriter._between,
    "CAST": ConditionWriter._cast,
    "OPERATOR": ConditionWriter._operator,
    "FUNCTION": ConditionWriter._function,
}
