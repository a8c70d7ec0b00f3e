import json
from typing import Any

import pytest
from prefect_imageqa.flows.settings import RESERVED_OPTIONS, DatasetLike, Sampling
from pydantic import TypeAdapter, ValidationError


def test_the_options_are_what_stands_in_a_request() -> None:
    assert Sampling().options() == {
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 40,
        "repetition_penalty": 1.0,
        "seed": 42,
        "max_tokens": 512,
    }
    more = Sampling(seed=None, extra_body={"min_p": 0.1, "stop": None})
    options = more.options()
    assert "seed" not in options
    assert (options["min_p"], options["stop"]) == (0.1, None)
    assert json.loads(json.dumps(options)) == options


@pytest.mark.parametrize("name", [*sorted(RESERVED_OPTIONS), "seed", "top_k", "extra_body"])
def test_what_a_run_sets_itself_cannot_be_set(name: str) -> None:
    with pytest.raises(ValidationError, match=f"extra_body may not set {name}"):
        Sampling(extra_body={name: 1, "min_p": 0.1})


def test_the_reserved_options() -> None:
    assert {"model", "messages", "stream", "n"} == RESERVED_OPTIONS


@pytest.mark.parametrize(
    "given",
    [
        {"temperature": -0.1},
        {"temperature": 2.1},
        {"temperature": float("nan")},
        {"top_p": 0},
        {"top_p": 1.1},
        {"top_k": -2},
        {"repetition_penalty": 0},
        {"max_tokens": 0},
        {"max_tokens": 1.5},
        {"seed": "x"},
        {"extra_body": []},
        {"min_p": 0.1},
    ],
    ids=str,
)
def test_values_out_of_range_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Sampling(**given)


def test_the_bounds_themselves_are_allowed() -> None:
    least = Sampling(
        temperature=0, top_p=1, top_k=-1, repetition_penalty=0.01, max_tokens=1, seed=0
    )
    assert (least.temperature, least.top_k, least.max_tokens, least.seed) == (0, -1, 1, 0)
    assert Sampling(temperature=2, top_k=0).temperature == 2


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Sampling().temperature = 1.0  # type: ignore[misc]


def test_a_whole_number_is_the_same_option_as_its_float() -> None:
    assert json.dumps(Sampling(temperature=1).options()) == json.dumps(
        Sampling(temperature=1.0).options()
    )


def test_every_setting_is_described_for_the_form() -> None:
    properties = Sampling.model_json_schema()["properties"]
    assert set(properties) == set(Sampling.model_fields)
    assert all(shown["description"] for shown in properties.values())


def test_a_dataset_is_a_text_in_the_form_and_anything_from_python() -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(DatasetLike)
    assert adapter.json_schema() == {"type": "string"}
    frame = object()
    assert adapter.validate_python(frame) is frame
