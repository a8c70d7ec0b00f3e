"""Prefect's form, Python and the command line agree on every parameter."""

import functools
import inspect
import sys
from pathlib import Path
from typing import Any

import pytest
from cyclopts import App
from prefect_imageqa import image_qa
from prefect_imageqa.flows.cli.main import main
from prefect_imageqa.flows.cli.run import flag_of, run
from prefect_imageqa.tasks.runs.parameters import RunParameters
from pydantic import BaseModel

PARAMETERS = inspect.signature(image_qa.fn).parameters
GROUPS: dict[str, type[BaseModel]] = {
    name: parameter.annotation
    for name, parameter in PARAMETERS.items()
    if isinstance(parameter.annotation, type) and issubclass(parameter.annotation, BaseModel)
}
FORM: dict[str, Any] = image_qa.parameters.model_dump()
FIELDS = [(group, field) for group, model in GROUPS.items() for field in model.model_fields]

FIXED = (
    *("output", "endpoint", "model", "system-prompt", "user-prompt", "image-key"),
    *("conversation-key", "output-key", "batch-size", "max-in-flight", "temperature"),
    *("max-tokens", "seed", "cache", "refresh", "retry-quarantined", "store", "json"),
)
"""Flags whose names must not change."""


@functools.cache
def options() -> dict[str, Any]:
    """The arguments of the command as cyclopts parses them, by their first name."""
    app = App()
    app.command(run, name="run")
    arguments = app["run"].assemble_argument_collection(parse_docstring=True)
    return {found.name: found for found in arguments if found.name != "*"}


def test_form_flow_and_run_record_have_the_same_parameters() -> None:
    assert list(FORM["properties"]) == list(PARAMETERS) == list(RunParameters.model_fields)
    for group, model in GROUPS.items():
        assert list(FORM["definitions"][model.__name__]["properties"]) == list(model.model_fields)
        assert PARAMETERS[group].default == model()
        assert RunParameters.model_fields[group].annotation is model


def test_parameters_and_flags_correspond() -> None:
    single = {f"--{name.replace('_', '-')}" for name in PARAMETERS if name not in GROUPS}
    grouped = {f"--{flag_of(group, field)}" for group, field in FIELDS}
    assert len(grouped) == len(FIELDS), "two fields have the same flag"
    assert not single & grouped
    expected = (single - {"--dataset"}) | grouped | {"DATASET", "--json"}
    assert set(options()) == expected
    assert {f"--{flag}" for flag in FIXED} <= expected


@pytest.mark.parametrize(("group", "field"), FIELDS)
def test_a_field_is_the_same_everywhere(group: str, field: str) -> None:
    model = GROUPS[group]
    info = model.model_fields[field]
    option = options()[f"--{flag_of(group, field)}"]
    shown = FORM["definitions"][model.__name__]["properties"][field]
    assert info.description
    assert option.parameter.help == shown["description"] == info.description
    default = info.get_default(call_default_factory=True)
    assert option.field_info.default == default
    plain = [*default] if isinstance(default, tuple) else default
    assert shown.get("default", plain) in (plain, plain or "")
    bounds = {"ge": "minimum", "le": "maximum", "gt": "exclusiveMinimum"}
    for limit in info.metadata:
        for name, title in bounds.items():
            if hasattr(limit, name):
                assert shown[title] == getattr(limit, name)


@pytest.mark.parametrize("name", [name for name in PARAMETERS if name not in GROUPS])
def test_a_single_parameter_is_the_same_everywhere(name: str) -> None:
    option = options()["DATASET" if name == "dataset" else f"--{name.replace('_', '-')}"]
    described, *_ = FORM["properties"][name]["description"].split("\n\n")
    assert " ".join(option.parameter.help.split()) == " ".join(described.split())
    assert option.field_info.required is (PARAMETERS[name].default is inspect.Parameter.empty)


INVALID = {
    "--temperature": "2.5",
    "--top-p": "0",
    "--max-tokens": "0",
    "--batch-size": "4097",
    "--max-in-flight": "0",
    "--max-error-rate": "1.5",
    "--max-side": "27",
    "--jpeg-quality": "96",
    "--pairs-per-image": "21",
    "--max-rows": "0",
    "--output-key": "",
    "--seed": "seven",
    "--extra-body": '{"model": "other"}',
    "--extra-body.min_p": "0.1",  # would be a string
}


@pytest.mark.parametrize("flag", INVALID)
def test_an_invalid_value_is_reported_in_one_line_with_its_flag(
    flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["run", "d.json", "--output", str(tmp_path / "out"), flag, INVALID[flag]]
    monkeypatch.setattr(sys, "argv", ["prefect-imageqa", *arguments, "--model", "m"])
    with pytest.raises(SystemExit) as done:
        main()
    [line] = capsys.readouterr().err.splitlines()
    assert done.value.code == 2
    assert line.startswith("prefect-imageqa: "), line
    assert f"{flag}" in line
    assert not (tmp_path / "out").exists()
