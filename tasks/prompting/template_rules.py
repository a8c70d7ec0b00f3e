"""What a template of a style file may consist of: a short list; all else is refused."""

from jinja2 import nodes

from ...serving.printable import printable
from .template_values import FILTERS

_MAX_NODES, _MAX_DEPTH = 2_000, 60
_MAX_NUMBER = 1_000_000

_ALLOWED = (
    nodes.Template,
    nodes.Output,
    nodes.TemplateData,
    nodes.Name,
    nodes.Const,
    nodes.List,
    nodes.Tuple,
    nodes.Getattr,
    nodes.Getitem,
    nodes.If,
    nodes.For,
    nodes.Compare,
    nodes.Operand,
    nodes.And,
    nodes.Or,
    nodes.Not,
    nodes.Concat,
    nodes.CondExpr,
    nodes.Filter,
    nodes.Test,
)
_NOT_ALLOWED = {
    nodes.Call: "calls",
    nodes.CallBlock: "call blocks",
    nodes.Macro: "macros",
    nodes.Assign: "set",
    nodes.AssignBlock: "set",
    nodes.Include: "include",
    nodes.Import: "import",
    nodes.FromImport: "import",
    nodes.Extends: "extends",
    nodes.Block: "blocks",
    nodes.FilterBlock: "filter blocks",
    nodes.Scope: "autoescape",
    nodes.Slice: "slices",
    nodes.Dict: "dictionaries",
    nodes.BinExpr: "arithmetic",
    nodes.UnaryExpr: "arithmetic",
}
TESTS = ("defined", "undefined", "none", "string", "number")
"""What a template may ask of a value with `is`."""

_RESERVED = ("self", "super", "caller", "varargs", "kwargs")


class RefusedError(Exception):
    """A template has what is not allowed, or too much of it; with the line of the template."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line, self.reason = line, reason


def check_tree(tree: nodes.Template) -> None:
    """Check that everything in a template is allowed.

    Raises:
        RefusedError: something is not.
    """
    count, left = 0, list[tuple[nodes.Node, int, bool]]([(tree, 0, False)])
    tree.lineno = 1
    while left:
        node, depth, in_loop = left.pop()
        count += 1
        if count > _MAX_NODES or depth > _MAX_DEPTH:
            raise RefusedError(node.lineno, "the template is too long, or nested too deeply")
        _check_node(node, in_loop)
        in_loop = in_loop or isinstance(node, nodes.For)
        for child in node.iter_child_nodes():
            child.lineno = child.lineno or node.lineno  # not every kind of node has one
            left.append((child, depth + 1, in_loop))


def _check_node(node: nodes.Node, in_loop: bool) -> None:
    match node:
        case nodes.For(recursive=True) | nodes.For(target=nodes.Tuple()):
            reason = "such a loop is not allowed: write {% for item in items %}"
        case nodes.For() if in_loop:
            reason = "a loop inside a loop is not allowed"
        case nodes.Name(name=name) if name.startswith("_") or name in _RESERVED:
            reason = f"the name {printable(name, 60)} is not allowed"
        case nodes.Getattr(attr=name) if name.startswith("_"):
            reason = f"the attribute {printable(name, 60)} is not allowed"
        case nodes.Getitem(arg=nodes.Const(value=str(name))) if name.startswith("_"):
            reason = f"the item {printable(name, 60)} is not allowed"
        case nodes.Const(value=int() | float() as number) if not abs(number) <= _MAX_NUMBER:
            reason = f"numbers beyond {_MAX_NUMBER:,} are not allowed"
        case nodes.Filter(dyn_args=None, dyn_kwargs=None, kwargs=[]) if node.name in FILTERS:
            return
        case nodes.Filter():
            reason = f"filter {printable(node.name, 60)} is none of {', '.join(sorted(FILTERS))}"
        case nodes.Test(args=[]) if node.name in TESTS:
            return
        case nodes.Test():
            reason = f"test {printable(node.name, 60)} is none of {', '.join(TESTS)}"
        case _ if isinstance(node, _ALLOWED):
            return
        case _:
            kinds = (what for kind, what in _NOT_ALLOWED.items() if isinstance(node, kind))
            reason = f"not allowed in a template: {next(kinds, type(node).__name__.lower())}"
    raise RefusedError(node.lineno, reason)
