"""The schemas of replies: what they accept, and what servers accept of them."""

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from prefect_imageqa.tasks.prompting.keys import configuration_key
from prefect_imageqa.tasks.prompting.reply_forms import reply_format, reply_schema, response_format
from prefect_imageqa.tasks.records import ReplyForm

PAIR = {"question": "What is it?", "answer": "A dog."}
CHOICE = {"question": "What is it?", "options": ["a", "b", "c", "d"], "correct": "B"}
FORMS = [
    (ReplyForm.PAIRS, 1, PAIR, PAIR | {"answer": ""}),
    (ReplyForm.PAIRS, 2, {"pairs": [PAIR, PAIR]}, {"pairs": [PAIR]}),
    (ReplyForm.DIALOGUE, 2, {"pairs": [PAIR, PAIR]}, {"pairs": [PAIR, PAIR, PAIR]}),
    (ReplyForm.MULTIPLE_CHOICE, 1, CHOICE, CHOICE | {"correct": "E"}),
    (ReplyForm.MULTIPLE_CHOICE, 1, CHOICE, CHOICE | {"options": ["a", "b", "c"]}),
    (ReplyForm.ANSWER, 1, {"answer": "A dog."}, PAIR),
    (ReplyForm.QUESTIONS, 1, {"questions": ["What?"]}, {"questions": []}),
]
# vLLM refuses most others, or ignores them, depending on which of its backends decodes.
KEYWORDS = {
    *("$defs", "$ref", "additionalProperties", "enum", "items", "maxItems", "minItems"),
    *("minLength", "properties", "required", "type"),
}


@pytest.mark.parametrize(("form", "pairs", "valid", "invalid"), FORMS)
def test_a_schema_accepts_its_form_only(
    form: ReplyForm, pairs: int, valid: dict[str, Any], invalid: dict[str, Any]
) -> None:
    schema = reply_schema(form, pairs)
    jsonschema.validate(valid, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(invalid, schema)


@pytest.mark.parametrize("form", ReplyForm)
@pytest.mark.parametrize("pairs", [1, 3])
def test_a_schema_has_only_keywords_that_servers_know(form: ReplyForm, pairs: int) -> None:
    assert set(keywords(reply_schema(form, pairs))) <= KEYWORDS


def keywords(schema: dict[str, Any]) -> Iterator[str]:
    for name, value in schema.items():
        yield name
        if name in {"properties", "$defs"}:
            for each in value.values():
                yield from keywords(each)
        elif isinstance(value, dict):
            yield from keywords(value)


def test_schemas_are_the_same_with_every_version_of_pydantic() -> None:
    """They are in row keys."""
    schemas = {f"{form} {pairs}": reply_schema(form, pairs) for form, pairs, *_ in FORMS}
    assert configuration_key(schemas) == "5d71a4d499a3036db721e3689912464a"


@pytest.mark.parametrize(("form", "pairs", "valid", "_invalid"), FORMS)
def test_the_prompt_asks_for_what_the_schema_demands(
    form: ReplyForm, pairs: int, valid: dict[str, Any], _invalid: Any
) -> None:
    shown = reply_format(form, pairs, json=True).removeprefix("Reply as JSON: ")
    example = json.loads(shown.replace(", ...]", "]"))
    assert structure(example) == structure(valid)


def structure(value: Any) -> Any:
    """Keys and nesting; of a list that of its first item."""
    if isinstance(value, dict):
        return {name: structure(each) for name, each in value.items()}
    return [structure(value[0])] if isinstance(value, list) else "text"


def test_a_server_is_told_in_the_form_of_openai() -> None:
    assert response_format({"type": "object"}) == {
        "type": "json_schema",
        "json_schema": {"name": "reply", "schema": {"type": "object"}},
    }
