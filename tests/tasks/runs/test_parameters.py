import json
from typing import Any

import pytest
from prefect.exceptions import ParameterTypeError
from prefect.utilities.schema_tools.validation import ValidationError as SchemaError
from prefect.utilities.schema_tools.validation import validate
from prefect_imageqa import Columns, Images, ImageSettings, Limits, Sampling, Workers, image_qa
from prefect_imageqa.tasks.runs.form_types import DatasetLike
from prefect_imageqa.tasks.runs.parameters import RESERVED_OPTIONS
from pydantic import TypeAdapter, ValidationError


def test_sampling_options_are_request_fields() -> None:
    assert Sampling().options() == {
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 40,
        "repetition_penalty": 1.0,
        "seed": 42,
        "max_tokens": 512,
    }
    options = Sampling(seed=None, extra_body={"min_p": 0.1, "stop": None}).options()
    assert "seed" not in options
    assert (options["min_p"], options["stop"]) == (0.1, None)
    assert json.loads(json.dumps(options)) == options


@pytest.mark.parametrize("name", [*sorted(RESERVED_OPTIONS), "seed", "top_k", "extra_body"])
def test_extra_body_may_not_set_reserved_options(name: str) -> None:
    with pytest.raises(ValidationError, match=f"extra_body may not set {name}"):
        Sampling(extra_body={name: 1, "min_p": 0.1})


def test_the_reserved_options() -> None:
    assert {"model", "messages", "stream", "n"} == RESERVED_OPTIONS


@pytest.mark.parametrize(
    "values",
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
def test_sampling_values_out_of_range_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Sampling(**values)


def test_limits_are_inclusive() -> None:
    least = Sampling(
        temperature=0, top_p=1, top_k=-1, repetition_penalty=0.01, max_tokens=1, seed=0
    )
    assert (least.temperature, least.top_k, least.max_tokens, least.seed) == (0, -1, 1, 0)
    assert Sampling(temperature=2, top_k=0).temperature == 2


def test_settings_are_immutable() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Sampling().temperature = 1.0  # type: ignore[misc]


def test_an_integer_and_the_equal_float_are_the_same_option() -> None:
    assert json.dumps(Sampling(temperature=1).options()) == json.dumps(
        Sampling(temperature=1.0).options()
    )


def test_a_dataset_is_a_string_in_the_form_and_any_object_in_python() -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(DatasetLike)
    assert adapter.json_schema() == {"type": "string"}
    frame = object()
    assert adapter.validate_python(frame) is frame


def test_the_form_rejects_invalid_values() -> None:
    schema = image_qa.parameters.model_dump()
    assert list(schema["properties"])[:3] == ["dataset", "output", "endpoint"]
    assert schema["required"] == ["dataset", "output"]
    # A group is described by its parameter, or by its model if both have the same description.
    assert all(group["description"] for group in schema["definitions"].values())
    assert "secret" not in json.dumps(schema).lower()
    for invalid in ({"pairs_per_image": 0}, {"limits": {"batch_size": 4097}}, {"max_rows": 0}):
        with pytest.raises(SchemaError):
            validate({"dataset": "a", "output": "b", **invalid}, schema, raise_on_error=True)


def test_the_location_of_images_is_not_part_of_their_settings() -> None:
    images = Images(max_side=512, root="/data", allow_private_hosts=True)
    assert images.settings == ImageSettings(max_side=512)
    assert "root" not in images.settings.model_dump()


def test_an_empty_image_column_means_no_images() -> None:
    assert Columns(image="").image is None
    with pytest.raises(ValidationError):
        Columns(output="")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_rows": 0}, "max_rows: Input should be greater than or equal to 1"),
        (
            {"sampling": {"extra_body": {"model": "x"}}},
            "sampling.extra_body: extra_body may not set model",
        ),
        ({"limits": {"batch_size": 9999}}, "limits.batch_size: Input should be less than"),
    ],
    ids=["max rows", "sampling", "batch size"],
)
def test_an_invalid_parameter_is_reported_in_one_line_without_the_others(
    values: dict[str, Any], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ParameterTypeError) as raised:
        image_qa.validate_parameters({"dataset": "http://a:secret@b/", "output": "o", **values})
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)
    assert "secret" not in caplog.text


def test_optional_text_fields_of_the_form_default_to_empty_strings() -> None:
    fields = image_qa.parameters.model_dump()["properties"]
    empty = {name for name, field in fields.items() if field.get("default") == ""}
    assert empty == {"endpoint", "model", "model_revision", "store", "user_prompt"}
    groups = {name: fields[name]["default"] for name in ("images", "caching")}
    assert (groups["images"]["root"], groups["caching"]["cache"]) == ("", "")


@pytest.mark.parametrize(
    ("value", "taken"), [(None, "auto"), ("auto", "auto"), (7, 7), ("7", 7)], ids=str
)
def test_requests_in_flight_are_a_number_or_found_automatically(value: Any, taken: Any) -> None:
    limits = Limits() if value is None else Limits(max_in_flight=value)
    assert limits.max_in_flight == taken
    assert json.loads(limits.model_dump_json())["max_in_flight"] == taken
    field = image_qa.parameters.model_dump()["definitions"]["Limits"]["properties"]["max_in_flight"]
    given = {"max_in_flight": taken}
    validate(given, {"type": "object", "properties": {"max_in_flight": field}})


@pytest.mark.parametrize(
    ("value", "problem"), [(0, "greater than or equal to 1"), ("many", "auto or an integer")]
)
def test_other_numbers_of_requests_in_flight_are_refused(value: Any, problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        Limits(max_in_flight=value)


@pytest.mark.parametrize("engine", ["threads", "processes"])
def test_workers_of_the_own_machine_have_no_address(engine: Any) -> None:
    with pytest.raises(ValidationError, match=f"engine {engine} has no address"):
        Workers(workers=2, engine=engine, engine_address="ray://head:10001")
