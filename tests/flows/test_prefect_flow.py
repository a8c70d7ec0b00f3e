"""How Prefect names a run and stores its parameters."""

from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from prefect.task_runners import ProcessPoolTaskRunner, ThreadPoolTaskRunner
from prefect.utilities.names import generate_slug
from prefect_imageqa import ImageQAError, image_qa
from prefect_imageqa.flows import prefect_flow


def stored(**parameters: Any) -> dict[str, Any]:
    return image_qa.serialize_parameters(parameters)


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("http://me:hunter2@gpu-1:8000", "http://gpu-1:8000"),
        ("http://gpu-1:8000/v1?api_key=hunter2", "http://gpu-1:8000/v1"),
        ("http://me:hunter2@a http://me:hunter2@b/v1#c", "http://a http://b/v1"),
        ("http://a/v1\nhttp://me:hunter2@b", "http://a/v1\nhttp://b"),
        (["http://a", "HTTP://me:hunter2@b"], ["http://a", "http://b"]),
        ("qwen", "qwen"),
    ],
)
def test_passwords_in_urls_are_not_stored(endpoint: Any, expected: Any) -> None:
    assert stored(endpoint=endpoint)["endpoint"] == expected


@pytest.mark.parametrize(
    "uri", ["s3://bucket/me@home/a b?.json", "photos@2x/qas.json", "qas.json", "/data/what#1?.json"]
)
def test_a_path_is_stored_unchanged(uri: str) -> None:
    assert stored(dataset=uri, output=uri) == {"dataset": uri, "output": uri}
    assert stored(dataset="s3://me:hunter2@bucket/x")["dataset"] == "s3://bucket/x"


def test_a_prompt_is_stored_unchanged() -> None:
    prompt = "See https://example.org/a?b. Sign as bot@example.org, in one line."
    assert stored(system_prompt=prompt)["system_prompt"] == prompt


def test_of_a_table_only_the_type_is_stored() -> None:
    assert stored(dataset=pd.DataFrame({"a": [1]}))["dataset"] == "<DataFrame>"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("wooden-cobra", "qas.json to qa, first 10, wooden-cobra"),
        ("test-run", "test-run"),
        ("Monday, new prompt", "Monday, new prompt"),
        ("qas.json to qa, first 10, wooden-cobra", "qas.json to qa, first 10, wooden-cobra"),
        ("", "qas.json to qa, first 10"),
    ],
    ids=["picked by Prefect", "typed like it", "typed", "of a first attempt", "none"],
)
def test_a_chosen_name_of_a_run_stays(
    given: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters = {"dataset": "s3://b/qas.json", "output": "s3://b/qa", "max_rows": 10}
    current = SimpleNamespace(name=given, parameters=parameters)
    monkeypatch.setattr(prefect_flow, "flow_run", current)
    assert prefect_flow.run_name() == expected


def test_names_that_prefect_picks_are_known() -> None:
    words = {word for _ in range(300) for word in generate_slug(2).split("-")}
    assert words <= prefect_flow._PREFECTS_WORDS


def test_another_task_runner_is_refused_with_what_there_is_instead() -> None:
    processes: Any = ProcessPoolTaskRunner()
    with pytest.raises(ImageQAError, match=r"ProcessPoolTaskRunner: give it workers, such as"):
        image_qa.with_options(task_runner=processes)
    threads: Any = ThreadPoolTaskRunner(100)
    assert image_qa.with_options(task_runner=threads).name == "image-qa"
