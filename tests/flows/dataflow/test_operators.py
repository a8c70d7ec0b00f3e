"""DataFlow-MM's operators against the vLLM stub."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from prefect_imageqa import FileStorage, ImageQAError, ImageQAGenerator, PromptedVQAGenerator
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
    frame = pd.DataFrame({"prompt": ["STUB text It is a cat.", "Hello"], "answer": ["old", "old"]})
    frame.to_csv(tmp_path / "prompts.csv", index=False)
    storage = FileStorage(str(tmp_path / "prompts.csv"), str(tmp_path / "cache"), "p", "csv").step()
    PromptedVQAGenerator(stub.url).run(storage, input_prompt_key="prompt")
    answered = pd.read_csv(tmp_path / "cache" / "p_step1.csv")
    assert list(answered.columns) == ["prompt", "answer"]
    assert answered["answer"][0] == "It is a cat."
    assert answered["answer"][1].startswith("**Question:**")


@pytest.mark.parametrize("arguments", [{"input_video_key": "clip"}, {"input_image_key": "video"}])
def test_a_video_column_is_rejected(
    arguments: dict[str, str], stub: Any, table: Path, tmp_path: Path
) -> None:
    storage = FileStorage(str(table), str(tmp_path / "cache")).step()
    with pytest.raises(ImageQAError, match="videos, which are not supported"):
        PromptedVQAGenerator(stub.url).run(storage, **arguments)


def test_running_before_the_first_step_is_an_error(stub: Any, table: Path, tmp_path: Path) -> None:
    storage = FileStorage(str(table), str(tmp_path / "cache"))
    with pytest.raises(ImageQAError, match=r"storage\.step\(\)"):
        ImageQAGenerator(stub.url).run(storage)
