"""DataFlow-MM's operators against the vLLM stub."""

import json
import logging
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from prefect_imageqa import (
    APIVLMServing_openai,
    FileStorage,
    ImageQAError,
    ImageQAGenerator,
    LocalModelVLMServing_vllm,
    PromptedVQAGenerator,
)
from prefect_imageqa.flows.dataflow import local_model
from prefect_imageqa.tasks.object_store.store import ObjectStore


@pytest.fixture
def table(drawn: Path) -> Path:
    """A JSON file like DataFlow's example, with one missing image."""
    rows = [
        {
            "source": [f"https://example.com/{n}"],
            "image": [f"images/{n:03}.png"],
            "conversation": [{"from": "human", "value": "Please construct a QA pair."}],
            "score": 0.5 if n else None,
        }
        for n in range(4)
    ]
    rows[2]["image"] = ["images/missing.png"]
    path = drawn / "capsbench_qas.json"
    path.write_text(json.dumps(rows))
    return path


def test_the_number_of_rows_does_not_change(stub: Any, s3: str, table: Path) -> None:
    bucket = ObjectStore(uri=f"{s3}/operator")
    for path in sorted(table.parent.rglob("*.*")):
        bucket.write(str(path.relative_to(table.parent)), path.read_bytes())
    entry, cache = f"{s3}/operator/{table.name}", f"{s3}/operator/cache"
    storage = FileStorage(entry, cache, "qa_task", "json").step()
    key = ImageQAGenerator(stub.url).run(storage=storage, input_modal_key="image", output_key="qa")

    rows = json.loads(bucket.read("cache/qa_task_step1.json"))
    before = json.loads(table.read_text())
    assert key == "qa"
    assert [{name: row[name] for name in before[0]} for row in rows] == before
    assert [row["qa"] is None for row in rows] == [False, False, True, False]
    assert rows[0]["qa"].startswith("**Question:**")
    lines = bucket.read("cache/qa_task_step1.quarantine.jsonl").splitlines()
    [reason] = [json.loads(line) for line in lines]
    assert (reason["row"], reason["kind"]) == (2, "image_missing")


def test_a_step_reads_the_table_of_the_previous_one(stub: Any, table: Path, tmp_path: Path) -> None:
    storage = FileStorage(str(table), str(tmp_path / "cache"), "chain", "parquet")
    generator = PromptedVQAGenerator(stub.url)
    generator.run(storage.step(), input_image_key="image", output_answer_key="first")
    generator.run(storage.step(), output_answer_key="second")
    table_now = storage.step().read()
    assert list(table_now.columns) == [
        "source",
        "image",
        "conversation",
        "score",
        "first",
        "second",
    ]
    assert table_now["first"].isna().tolist() == [False, False, True, False]
    # Without an image column only the prompt is sent, so the missing image does not matter.
    assert table_now["second"].notna().all()
    sent = stub.stats()["bodies"][-1]["messages"]
    assert sent[0] == {"role": "system", "content": "You are a helpful assistant."}
    assert sent[-1] == {"role": "user", "content": "Please construct a QA pair."}


def test_prompts_come_from_the_given_column(stub: Any, tmp_path: Path) -> None:
    prompts = ["STUB text It is a cat.", "Hello", None]
    frame = pd.DataFrame({"prompt": prompts, "answer": ["old"] * 3, "video": [None] * 3})
    frame.to_csv(tmp_path / "prompts.csv", index=False)
    storage = FileStorage(str(tmp_path / "prompts.csv"), str(tmp_path / "cache"), "p", "csv").step()
    PromptedVQAGenerator(stub.url).run(storage, input_prompt_key="prompt")
    answered = pd.read_csv(tmp_path / "cache" / "p_step1.csv")
    assert list(answered.columns) == ["prompt", "answer", "video"]
    assert answered["answer"][0] == "It is a cat."
    assert answered["answer"][1].startswith("**Question:**")
    assert pd.isna(answered["answer"][2]), "a row without a prompt is not asked"


@pytest.mark.parametrize("arguments", [{"input_video_key": "clip"}, {"input_image_key": "video"}])
def test_a_column_of_videos_is_rejected(
    arguments: dict[str, str], stub: Any, tmp_path: Path
) -> None:
    pd.DataFrame({"prompt": ["?"], "clip": ["a.mp4"], "video": [["b.mp4"]]}).to_json(
        tmp_path / "videos.jsonl", orient="records", lines=True
    )
    storage = FileStorage(str(tmp_path / "videos.jsonl"), str(tmp_path / "cache")).step()
    with pytest.raises(ImageQAError, match="videos, which are not supported"):
        PromptedVQAGenerator(stub.url).run(storage, input_prompt_key="prompt", **arguments)


@pytest.mark.parametrize(
    ("key", "message"),
    [("prompts", "no column 'prompts'; the columns are: prompt"), ("prompt", "several questions")],
    ids=["missing", "several"],
)
def test_each_row_has_one_prompt(key: str, message: str, stub: Any, tmp_path: Path) -> None:
    (tmp_path / "entry.json").write_text(json.dumps([{"prompt": ["What?", "Where?"]}]))
    storage = FileStorage(str(tmp_path / "entry.json"), str(tmp_path / "cache")).step()
    before = stub.stats()["requests"]
    with pytest.raises(ImageQAError, match=message):
        PromptedVQAGenerator(stub.url).run(storage, input_prompt_key=key)
    assert stub.stats()["requests"] == before


class Template:
    """A prompt template as DataFlow-MM has them."""

    def build_prompt(self) -> str:
        return "Describe the shapes."


def test_a_pipeline_of_dataflow_runs_on_a_running_server(
    keyed_stub: Any, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DF_API_KEY", "stub-api-key-5f2c")
    serving = APIVLMServing_openai(
        api_url=f"{keyed_stub.url}/v1/chat/completions",
        model_name="stub",
        image_io=None,
        send_request_stream=False,
        max_workers=3,
        timeout=1800,
    )
    storage = FileStorage(str(table), str(tmp_path / "cache"), cache_type="json").step()
    generator = PromptedVQAGenerator(serving, "Be brief.", prompt_template=Template())
    generator.run(
        storage=storage,
        input_conversation_key="conversation",
        input_image_key="image",
        input_video_key="video",  # which the table does not have
        output_answer_key="caption",
    )
    serving.cleanup()
    rows = json.loads((tmp_path / "cache" / "dataflow_cache_step1.json").read_text())
    assert [row["caption"] is None for row in rows] == [False, False, True, False]
    body = keyed_stub.stats()["bodies"][-1]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("stub", 0.7, 1024)
    system, user = body["messages"]
    assert system["content"] == "Be brief."
    assert [part["type"] for part in user["content"]] == ["image_url", "text"]
    assert user["content"][-1]["text"] == "Describe the shapes."


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"api_url": "localhost:8000"}, "urls: 'localhost:8000' is not an http"),
        ({"max_workers": 0}, "max_in_flight: Input should be greater than or equal to 1"),
        ({"image_io": object()}, "image_io: generating images is not supported"),
    ],
    ids=["url", "workers", "images"],
)
def test_a_serving_with_a_wrong_argument_is_an_error(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ImageQAError, match=message) as error:
        APIVLMServing_openai(**arguments)
    assert "\n" not in str(error.value)


def test_the_start_of_a_local_model_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Server:
        """A server whose start only logs that it waits."""

        url, model_name = "http://127.0.0.1:9", "small"

        def __init__(self, options: Any) -> None:
            pass

        def start(self) -> None:
            logging.getLogger("prefect_imageqa.serving").info("starting vLLM: 23 s of 900")

        def is_alive(self) -> bool:
            return True

    monkeypatch.setattr(local_model, "VLLMServer", Server)
    monkeypatch.setattr(local_model, "_servers", {})
    serving = LocalModelVLMServing_vllm("owner/small", vllm_temperature=0)
    parameters = serving.flow_parameters()
    assert (parameters["endpoint"], parameters["model"]) == (Server.url, "small")
    assert parameters["sampling"].temperature == 0
    [record] = caplog.records
    assert (record.name, record.getMessage()) == ("prefect.dataflow", "starting vLLM: 23 s of 900")


def test_running_before_the_first_step_is_an_error(stub: Any, table: Path, tmp_path: Path) -> None:
    storage = FileStorage(str(table), str(tmp_path / "cache"))
    with pytest.raises(ImageQAError, match=r"storage\.step\(\)"):
        ImageQAGenerator(stub.url).run(storage)
