"""Templates of style files: Jinja2, of which only what costs bounded work is allowed.

A sandbox alone is not enough: it keeps a template from reaching out, but not from computing
`"a" * 10**9` or from looping for hours. So everything in a template must be on a short list, which
is checked when the style is opened; and it sees plain data of bounded size only.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import StrictUndefined, meta, nodes
from jinja2.runtime import Context, LoopContext, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from ...serving.printable import printable
from ..errors import ImageQAError
from ..records import Kind, RowError
from .template_rules import TESTS, RefusedError, check_tree
from .template_values import FILTERS, concatenated, loop_items, shown

MAX_TEMPLATE = 20_000
"""Characters of a template."""

MAX_OUTPUT = 50_000
"""Characters that it may become."""

MAX_SECONDS = 1.0
"""CPU time of rendering one row; usually it takes some microseconds."""

_LOOP = ("index", "index0", "first", "last", "length")
# Templates cannot write such names.
_DEADLINE, _LOOP_ITEMS, _CONCAT = "_deadline", "_loop_items", "_concat"


@dataclass(frozen=True, slots=True)
class Template:
    """A template that may be rendered.

    Attributes:
        where: its file, for messages.
        names: the variables that it uses.
        required: those it cannot do without.
    """

    where: str
    names: frozenset[str]
    required: frozenset[str]
    _compiled: jinja2.Template

    def render(self, values: Mapping[str, Any]) -> str:
        """The text, without white space around it or at the ends of lines.

        Args:
            values: plain data, see `plain_value`.

        Raises:
            RowError: a variable is missing or of the wrong type, or the text is too long.
        """
        return self._render(values) if self.names else _constant(self)

    def _render(self, values: Mapping[str, Any]) -> str:
        deadline = time.thread_time() + MAX_SECONDS
        chunks, length = list[str](), 0
        try:
            for chunk in self._compiled.generate({**values, _DEADLINE: deadline}):
                chunks.append(chunk)
                length += len(chunk)
                if length > MAX_OUTPUT:
                    raise RowError(Kind.BAD_ROW, f"becomes over {MAX_OUTPUT:,} characters long")
                _check_time(deadline)
        except Exception as error:
            reason = printable(str(error) or type(error).__name__, 200)
            raise RowError(Kind.BAD_ROW, f"{self.where}: {reason}") from None
        return "\n".join(line.rstrip() for line in "".join(chunks).split("\n")).strip()


@lru_cache(maxsize=256)
def _constant(template: Template) -> str:
    """The text of a template without variables."""
    return template._render({})


def compile_template(source: str, where: str, first_line: int = 1) -> Template:
    """Check a template, and compile it.

    Args:
        source: its text.
        where: its file, for messages.
        first_line: line of the file in which it begins.

    Raises:
        ImageQAError: it is not valid, or does what is not allowed; with the line.
    """
    try:
        if len(source) > MAX_TEMPLATE:
            raise RefusedError(1, f"the template has over {MAX_TEMPLATE:,} characters")
        tree = _ENVIRONMENT.parse(source)
        check_tree(tree)
        names = frozenset(meta.find_undeclared_variables(tree))
        required = names - _optional(tree)
        _Bounding().visit(tree)
        tree.set_environment(_ENVIRONMENT)
        compiled = _ENVIRONMENT.from_string(tree)
    except RefusedError as error:
        line, reason = error.line, error.reason
    except jinja2.TemplateSyntaxError as error:
        line, reason = error.lineno, printable(error.message or "invalid template", 200)
    except (RecursionError, SyntaxError, MemoryError, ValueError):
        line, reason = 1, "the template is nested too deeply, or has too large a number"
    else:
        return Template(where, names, required, compiled)
    raise ImageQAError(f"{where}, line {first_line - 1 + line}: {reason}")


class _Missing(StrictUndefined):
    """A variable or an item that is not there; its use is an error that names it."""

    @property
    def _undefined_message(self) -> str:
        name = printable(str(self._undefined_name), 60)
        if self._undefined_obj is jinja2.utils.missing:
            return f"the row has no column {name!r}"
        return f"there is no item {name!r}"


class _Environment(ImmutableSandboxedEnvironment):
    """Attributes are items of plain data, and nothing else."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        if isinstance(obj, LoopContext) and attribute in _LOOP:
            return getattr(obj, attribute)
        return self.getitem(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(obj, Undefined):
            return obj  # the column itself is missing: say so
        if isinstance(obj, dict | list):
            try:
                return obj[argument]
            except (LookupError, TypeError):
                pass
        return self.undefined(obj=obj, name=argument)


class _Bounding(NodeTransformer):
    """Lets loops and concatenations go through filters, which bound their work."""

    def visit_For(self, node: nodes.For) -> nodes.For:  # noqa: N802 - Jinja calls it so
        self.generic_visit(node)
        node.iter = _filtered(node.iter, _LOOP_ITEMS)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:  # noqa: N802 - as this
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), _CONCAT)


def _filtered(value: nodes.Node, name: str) -> nodes.Filter:
    return nodes.Filter(value, name, [], [], None, None, lineno=value.lineno)


def _optional(tree: nodes.Template) -> frozenset[str]:
    """The variables whose absence the template asks about, or replaces."""
    asked = [*tree.find_all((nodes.Test, nodes.Filter))]
    return frozenset(
        node.node.name
        for node in asked
        if isinstance(node.node, nodes.Name) and node.name in ("defined", "undefined", "default")
    )


@jinja2.pass_context
def _loop(context: Context, value: Any) -> Iterator[Any]:
    """The items of a loop, as long as there is time."""
    for item in loop_items(value):
        _check_time(context[_DEADLINE])
        yield item


def _timed(function: Callable[..., Any]) -> Callable[..., Any]:
    """The filter, which begins only as long as there is time."""

    @jinja2.pass_context
    def timed(context: Context, *args: Any) -> Any:
        _check_time(context[_DEADLINE])
        return function(*args)

    return timed


def _check_time(deadline: float) -> None:
    if time.thread_time() > deadline:
        raise RowError(Kind.BAD_ROW, f"takes longer than {MAX_SECONDS:g} s")


def _environment() -> _Environment:
    environment = _Environment(undefined=_Missing, finalize=shown, cache_size=0)
    environment.globals.clear()
    timed = {name: _timed(function) for name, function in FILTERS.items()}
    environment.filters = {**timed, _CONCAT: _timed(concatenated), _LOOP_ITEMS: _loop}
    environment.tests = {name: environment.tests[name] for name in TESTS}
    return environment


_ENVIRONMENT = _environment()
