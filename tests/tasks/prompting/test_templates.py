import time
import tracemalloc
from typing import Any

import pytest
from prefect_imageqa.tasks.errors import ImageQAError
from prefect_imageqa.tasks.prompting import templates
from prefect_imageqa.tasks.prompting.templates import compile_template
from prefect_imageqa.tasks.records import Kind, RowError

LONG = "x" * 90_000


def render(source: str, **values: Any) -> str:
    return compile_template(source, "s.md").render(values)


@pytest.mark.parametrize(
    ("source", "values", "expected"),
    [
        ("Look.", {}, "Look."),
        ("A {{ a }}", {"a": "cat"}, "A cat"),
        ("{{ a.b[1] }}{{ a['c d'] }}", {"a": {"b": [1, 2], "c d": 3}}, "23"),
        ("{{ a.items }}", {"a": {"items": "own"}}, "own"),
        ("{% if a %}1{% elif b == 2 %}2{% else %}3{% endif %}", {"a": "", "b": 2}, "2"),
        ("{% if a > 1 and not b or c in ['x'] %}y{% endif %}", {"a": 1, "b": 1, "c": "x"}, "y"),
        ("{% if a is defined %}{{ a }}{% else %}none{% endif %}", {}, "none"),
        ("{{ a|default('none') }}", {}, "none"),
        ("{{ a if b else 'c' }}{{ 'd' ~ a }}", {"a": 1, "b": 0}, "cd1"),
        ("{{ 'a' ~ b ~ [c, 'd'] }}{{ (c, 1) }}", {"b": None, "c": "é"}, 'a["é", "d"]["é", 1]'),
        ("{% for t in a %}{{ loop.index }}.{{ t }} {% endfor %}", {"a": ["x", "y"]}, "1.x 2.y"),
        ("{% for t in a if t %}{{ t }}{% else %}0{% endfor %}", {"a": [""]}, "0"),
        ("{{ a|join(', ') }}", {"a": ["x", 2]}, "x, 2"),
        ("{{ a|join }}{{ a|first }}{{ a|last }}{{ a|length }}", {"a": "['x', 'y']"}, "xyxy10"),
        ("{{ a|upper|lower|title }} {{ a|trim|capitalize }}", {"a": " ab c "}, "Ab C  Ab c"),
        ("{{ a|replace('_', ' ') }}{{ a|truncate(4) }}", {"a": "a_b_c"}, "a b ca..."),
        ("[{{ a }}]{{ b }}", {"a": None, "b": ["é", {"c": 1}]}, '[]["é", {"c": 1}]'),
        ("{# note #}{% raw %}{{ a }}{% endraw %}", {}, "{{ a }}"),
        (" a \n\n{% if b %}b{% endif %} \n{{ b }}\n", {"b": 0}, "a\n\n\n0"),
        ("{{ a }}", {"a": "{{ b }}<script>"}, "{{ b }}<script>"),
    ],
)
def test_a_template_is_rendered(source: str, values: dict[str, Any], expected: str) -> None:
    assert render(source, **values) == expected


def test_a_template_knows_its_variables() -> None:
    source = "{{ a.b }}{% for c in d %}{{ c }}{{ loop.index }}{% endfor %}{{ e|default('') }}"
    template = compile_template(source + "{% if f is defined %}{{ f }}{% endif %}", "s.md")
    assert template.names == {"a", "d", "e", "f"}
    assert template.required == {"a", "d"}


REFUSED = {
    "class": ("{{ ''.__class__.__mro__ }}", "the attribute __mro__"),
    "class of a column": ("{{ a.__class__ }}", "the attribute __class__"),
    "class as an item": ("{{ a['__class__'] }}", "the item __class__"),
    "attr": ("{{ a|attr('x') }}", "filter attr is none of"),
    "map": ("{{ a|map(attribute='__class__')|list }}", "filter list is none of"),
    "format": ("{{ '%999999999d'|format(1) }}", "filter format"),
    "centre": ("{{ 'a'|center(1000000000) }}", "filter center"),
    "indent": ("{{ a|indent(1000000000) }}", "filter indent"),
    "own filter": ("{{ a|_loop_items }}", "filter _loop_items"),
    "call": ("{{ a.upper() }}", "calls"),
    "range": ("{% for i in range(999999999) %}{% endfor %}", "calls"),
    "cycler": ("{{ cycler.__init__ }}", "the attribute __init__"),
    "lipsum": ("{{ lipsum.__globals__ }}", "the attribute __globals__"),
    "self": ("{{ self }}", "the name self"),
    "context": ("{{ _deadline }}", "the name _deadline"),
    "times": ("{{ 'a' * 1000000000 }}", "arithmetic"),
    "power": ("{{ 2 ** 100000000 }}", "arithmetic"),
    "modulo": ("{{ '%1000000000d' % 1 }}", "arithmetic"),
    "plus": ("{{ a + a }}", "arithmetic"),
    "minus": ("{{ -a }}", "arithmetic"),
    "number": ("{{ a|truncate(1000000000) }}", "numbers beyond 1,000,000"),
    "infinity": ("{{ 1e999 }}", "numbers beyond 1,000,000"),
    "digits": ("{{ " + "9" * 5000 + " }}", "too large a number"),
    "slice": ("{{ a[::2] }}", "slices"),
    "dict": ("{{ {'a': 1} }}", "dict"),
    "nested loop": (
        "{% for x in a %}{% if x %}{% for y in a %}{% endfor %}{% endif %}{% endfor %}",
        "a loop inside a loop",
    ),
    "recursive loop": ("{% for x in a recursive %}{{ loop(x) }}{% endfor %}", "such a loop"),
    "unpacking": ("{% for x, y in a %}{% endfor %}", "such a loop"),
    "macro": ("{% macro m(x) %}{{ x }}{% endmacro %}", "macro"),
    "call block": ("{% call a() %}{% endcall %}", "call"),
    "set": ("{% set x = a %}", "set"),
    "set block": ("{% set x %}{{ a }}{% endset %}", "set"),
    "include": ("{% include '/etc/passwd' %}", "include"),
    "import": ("{% import 'os' as os %}", "import"),
    "from": ("{% from 'os' import path %}", "import"),
    "extends": ("{% extends 'base' %}", "extends"),
    "block": ("{% block b %}{% endblock %}", "block"),
    "filter block": ("{% filter upper %}{% endfilter %}", "filter"),
    "with": ("{% with x = a %}{% endwith %}", "with"),
    "autoescape": ("{% autoescape false %}{% endautoescape %}", "autoescape"),
    "unknown tag": ("{% do a %}", "unknown tag"),
    "test": ("{{ a is divisibleby 3 }}", "test divisibleby is none of"),
    "arguments": ("{{ a|default(*b) }}", "filter default"),
    "parentheses": ("{{ " + "(" * 3000 + "a" + ")" * 3000 + " }}", "nested too deeply"),
    "not": ("{{ " + "not " * 3000 + "a }}", "nested too deeply"),
    "or": ("{{ " + " or ".join(["a"] * 3000) + " }}", "nested too deeply"),
    "if": ("{% if a %}" * 200 + "{% endif %}" * 200, "nested too deeply"),
    "terms": ("{{ " + " ~ ".join(["a"] * 3000) + " }}", "too long"),
    "long": ("x" * 20_001, "over 20,000 characters"),
    "unclosed": ("{{ a", "unexpected end of template"),
    "invalid": ("{% if %}{% endif %}", "Expected an expression"),
}
NO_LINE = "s.md, line 10: not allowed in a template: autoescape"


@pytest.mark.parametrize(("source", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_could_escape_or_run_away_is_refused_with_its_line(source: str, reason: str) -> None:
    first = 1 if reason.startswith("over 20,000") else 3  # of that one, no line is to blame
    if first == 3:
        source = f"One.\n\n{source}"
    start = time.thread_time()
    with pytest.raises(ImageQAError) as caught:
        compile_template(source, "s.md", first_line=10)
    message = str(caught.value)
    assert reason in message
    assert "\n" not in message
    assert message.startswith(("s.md, line 12: ", "s.md, line 10: the template", NO_LINE))
    assert time.thread_time() - start < 3


@pytest.mark.parametrize(
    ("source", "values", "reason"),
    [
        ("{{ caption }}", {}, "the row has no column 'caption'"),
        ("{{ a.b }}", {}, "the row has no column 'a'"),
        ("{{ a.b }}", {"a": {"c": 1}}, "there is no item 'b'"),
        ("{{ a.append }}", {"a": []}, "there is no item 'append'"),
        ("{{ a.format }}", {"a": "text"}, "there is no item 'format'"),
        ("{{ loop }}", {}, "the row has no column 'loop'"),
        ("{% for x in a %}{{ loop.cycle }}{% endfor %}", {"a": [1]}, "there is no item 'cycle'"),
        ("{% for x in a %}{% endfor %}", {"a": "text"}, "a list is needed, but there is a text"),
        ("{{ a|join }}", {"a": None}, "a list is needed, but there is a cell without a value"),
        ("{{ a|join }}", {}, "the row has no column 'a'"),
        ("{{ a > 1 }}", {"a": "2"}, "'>' not supported between"),
        ("{{ a }}", {"a": LONG}, "over 50,000 characters"),
        ("{{ a|replace('x', 'xxxxxxxxxx') }}", {"a": LONG}, "over 100,000 characters"),
        ("{{ a|replace('', 'xx') }}", {"a": LONG}, "over 100,000 characters"),
        ("{{ a|join(b) }}", {"a": ["x"] * 9_000, "b": "y" * 9_000}, "over 100,000 characters"),
        ("{% for x in a %}{{ b }}{% endfor %}", {"a": [1] * 9000, "b": "x" * 99}, "over 50,000"),
    ],
)
def test_a_row_that_cannot_be_rendered_has_a_problem(
    source: str, values: dict[str, Any], reason: str
) -> None:
    with pytest.raises(RowError) as caught:
        render(source, **values)
    assert caught.value.problem.kind is Kind.BAD_ROW
    assert str(caught.value).startswith("s.md: ")
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    "repeat",
    [
        "{{ (" + "~".join(["a"] * 1_500) + ")|title|length }}",
        "{{ [" + ",".join(["a"] * 1_500) + "] }}",
        "{{ (" + ",".join(["a"] * 1_500) + ") }}",
        "{{ [" + ",".join(["a"] * 1_500) + "]|join|length }}",
        "{{ [" + ",".join(["b"] * 1_500) + "]|join|length }}",
    ],
    ids=["concatenated", "a list", "a tuple", "joined", "joined lists"],
)
def test_a_column_that_is_repeated_takes_no_memory(repeat: str) -> None:
    template = compile_template(repeat, "s.md")
    tracemalloc.start()
    with pytest.raises(RowError, match=r"over 100,000 characters"):
        template.render({"a": LONG, "b": [LONG]})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


def test_slow_filters_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "MAX_SECONDS", 0.1)
    template = compile_template("{{ " + "~".join(["(a|title|length)"] * 450) + " }}", "s.md")
    start = time.thread_time()
    with pytest.raises(RowError, match=r"takes longer than 0\.1 s"):
        template.render({"a": "a " * 45_000})
    assert time.thread_time() - start < 2


def test_a_slow_loop_without_output_ends() -> None:
    condition = "{% if a|join == b %}{% endif %}" * 20
    start = time.thread_time()
    with pytest.raises(RowError, match="takes longer than 1 s"):
        render("{% for x in a %}" + condition + "{% endfor %}", a=["x"] * 9_000, b="")
    assert time.thread_time() - start < 3
