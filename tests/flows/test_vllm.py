"""Complete runs with a real vLLM server on CPU and the demo model."""

import io
import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
from PIL import Image
from prefect.settings import PREFECT_API_URL
from prefect_imageqa import (
    Checks,
    FileStorage,
    ImageQAGenerator,
    Limits,
    LocalModelVLMServing_vllm,
    Parsing,
    PromptedVQAGenerator,
    Sampling,
    image_qa,
)
from prefect_imageqa.flows.cli.batch_files import batch_export, batch_import
from prefect_imageqa.serving.client import ChatClient
from prefect_imageqa.serving.client.retry_policy import MAX_ATTEMPTS
from prefect_imageqa.serving.demo_model import judge, scenes
from prefect_imageqa.serving.endpoint import VLLMEndpoint
from prefect_imageqa.serving.server.launch import ServerOptions, serve_environment
from prefect_imageqa.serving.server.vllm_python import find_vllm_python
from prefect_imageqa.serving.types import ChatRequest, Completion, DataURI, FailureKind
from prefect_imageqa.tasks.checking import confidence
from prefect_imageqa.tasks.parsing.qa_pairs import parse_qa_pairs
from prefect_imageqa.tasks.prompting.style import PromptInput
from prefect_imageqa.tasks.records import QAPair

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

CHECKPOINT = Path(scenes.__file__).parent / "checkpoint"


@pytest.fixture(scope="module")
def model() -> Iterator[LocalModelVLMServing_vllm]:
    """The demo model, served by vLLM for all tests of this module."""
    serving = LocalModelVLMServing_vllm(
        hf_model_name_or_path=str(CHECKPOINT), vllm_tensor_parallel_size=1, vllm_max_tokens=512
    )
    yield serving
    serving.cleanup()


def verdicts_on(
    folder: Path, truth: list[scenes.Scene], name: str = "pairs.parquet"
) -> list[judge.Verdict]:
    """The verdict on each pair of an output."""
    pairs = pd.read_parquet(folder / name)
    columns = (pairs["row"], pairs["question"], pairs["answer"])
    return [
        judge.judge_pair(truth[row], question, answer)
        for row, question, answer in zip(*columns, strict=True)
    ]


def test_pairs_about_unseen_scenes_are_correct(
    model: LocalModelVLMServing_vllm, tmp_path: Path
) -> None:
    truth = scenes.write_demo_dataset(tmp_path / "data", 64, seed=11)
    server = model.start_serving()
    summary = image_qa(
        str(tmp_path / "data" / "dataset.json"),
        str(tmp_path / "out"),
        endpoint=server.url,
        limits=Limits(batch_size=16, max_in_flight=32),
    )
    assert (summary.ok, summary.requests) == (64, 64)
    assert summary.prompt_tokens > 64 * 9
    verdicts = verdicts_on(tmp_path / "out", truth)
    assert len(verdicts) == 64
    assert verdicts.count(judge.Verdict.RIGHT) >= 0.95 * len(verdicts)
    replies = {json.loads(line)["output"] for line in (tmp_path / "out" / "qa.jsonl").open()}
    assert len(replies) > 16  # each row has a seed of its own: not all get the same question


def with_wrong_colours(text: str) -> list[QAPair]:
    """The pairs of a reply, with other colours in every answer that names one."""
    colours = list(scenes.COLOURS)
    following = dict(zip(colours, [*colours[1:], colours[0]], strict=True))
    return [
        replace(pair, answer=re.sub(r"\w+", lambda m: following.get(m[0], m[0]), pair.answer))
        for pair in parse_qa_pairs(text)
    ]


def test_consistency_finds_planted_errors_and_keeps_right_pairs(
    model: LocalModelVLMServing_vllm, tmp_path: Path
) -> None:
    truth = scenes.write_demo_dataset(tmp_path / "data", 64, seed=11)
    checks = Checks(names=("consistency",), keep="consistency >= 0.5")
    summary = image_qa(
        str(tmp_path / "data" / "dataset.json"),
        str(tmp_path / "out"),
        endpoint=model.start_serving().url,
        parsing=Parsing(parser=with_wrong_colours),
        checks=checks,
    )
    assert (summary.ok + summary.filtered, summary.requests) == (64, 64 + 64)
    assert (summary.pairs + summary.filtered_pairs, summary.unjudged) == (64, {})
    kept = verdicts_on(tmp_path / "out", truth)
    filtered = verdicts_on(tmp_path / "out", truth, "filtered.parquet")
    right, wrong = (
        [each.count(verdict) for each in (kept, filtered)]
        for verdict in (judge.Verdict.RIGHT, judge.Verdict.WRONG)
    )
    assert sum(wrong) >= 8
    assert wrong[0] <= 0.1 * sum(wrong)
    assert right[0] >= 0.9 * sum(right)


def test_images_of_every_kind_reach_the_model(
    model: LocalModelVLMServing_vllm, tmp_path: Path
) -> None:
    """One scene in formats that vLLM itself would reject, misread, or not rotate."""
    rng = random.Random(3)
    scene = scenes.random_scene(scenes.held_out_rng(77))
    image = scenes.draw_scene(scene, 192, 192, rng)
    exif = Image.Exif()
    exif[0x0112] = 6
    rotated = image.transpose(Image.Transpose.ROTATE_90)
    image.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    image.convert("RGBA").save(tmp_path / "alpha.png")
    image.resize((1920, 1920)).save(tmp_path / "large.png")
    rotated.save(tmp_path / "rotated.jpg", quality=95, exif=exif)
    image.save(tmp_path / "really-a.jpeg", "PNG")
    second = Image.new("RGB", (192, 192))
    image.save(tmp_path / "animated.gif", save_all=True, append_images=[second])
    frame = pd.DataFrame({"image": sorted(str(path) for path in tmp_path.iterdir())})
    summary = image_qa(frame, str(tmp_path / "out"), endpoint=model.start_serving().url)
    assert (summary.rows, summary.ok) == (6, 6)
    assert verdicts_on(tmp_path / "out", [scene] * 6).count(judge.Verdict.RIGHT) >= 5


def test_a_row_that_only_the_server_rejects_is_quarantined(
    model: LocalModelVLMServing_vllm, tmp_path: Path
) -> None:
    scenes.write_demo_dataset(tmp_path, 3, seed=12)
    rows = json.loads((tmp_path / "dataset.json").read_text())
    rows[1]["conversation"][0]["value"] = "more than the model can read " * 2000
    (tmp_path / "dataset.json").write_text(json.dumps(rows))
    summary = image_qa(
        str(tmp_path / "dataset.json"), str(tmp_path / "out"), endpoint=model.start_serving().url
    )
    assert (summary.ok, summary.quarantined) == (2, 1)
    failed = json.loads((tmp_path / "out" / "quarantine.jsonl").read_text())
    assert (failed["row"], failed["kind"], failed["status"]) == (1, "bad_request", 400)
    assert "HTTP 400" in failed["message"]


def test_structured_output_is_passed_through(
    model: LocalModelVLMServing_vllm, tmp_path: Path
) -> None:
    truth = scenes.write_demo_dataset(tmp_path / "data", 8, seed=13)
    texts = {name: {"type": "string"} for name in ("question", "answer")}
    schema = {"type": "object", "properties": texts, "required": list(texts)}
    form = {"type": "json_schema", "json_schema": {"name": "qa", "schema": schema}}
    summary = image_qa(
        str(tmp_path / "data" / "dataset.json"),
        str(tmp_path / "out"),
        endpoint=model.start_serving().url,
        system_prompt="You are a image question-answer generator. Reply in JSON with the keys "
        "question and answer.",
        sampling=Sampling(extra_body={"response_format": form}, max_tokens=128),
    )
    assert summary.ok == 8
    replies = [json.loads(line)["output"] for line in (tmp_path / "out" / "qa.jsonl").open()]
    assert all(set(json.loads(reply)) == {"question", "answer"} for reply in replies)
    assert verdicts_on(tmp_path / "out", truth).count(judge.Verdict.RIGHT) >= 7


def test_a_reply_that_ends_in_whitespace_is_asked_for_once_more_without_guidance(
    model: LocalModelVLMServing_vllm, tmp_path: Path
) -> None:
    """The model has never seen numbers in JSON: it adds whitespace for ever instead."""
    scenes.write_demo_dataset(tmp_path / "data", 8, seed=13)
    numbers = {"type": "array", "items": {"type": "number"}, "minItems": 9}
    schema = {"type": "object", "properties": {"boxes": numbers}, "required": ["boxes"]}
    form = {"type": "json_schema", "json_schema": {"name": "pairs", "schema": schema}}
    summary = image_qa(
        str(tmp_path / "data" / "dataset.json"),
        str(tmp_path / "out"),
        endpoint=model.start_serving().url,
        sampling=Sampling(extra_body={"response_format": form}, max_tokens=256),
    )
    # Others end by themselves, with nothing but numbers: these are corrected in vain.
    assert summary.ok > 0
    assert summary.requests == 8 + summary.ok + summary.corrections


def test_the_dataflow_example_runs_after_changing_its_imports(
    model: LocalModelVLMServing_vllm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    scenes.write_demo_dataset(tmp_path, 4, seed=14)
    rows = json.loads((tmp_path / "dataset.json").read_text())
    for row in rows:
        row.update(source=["drawn"], image=[f"./{row['image']}"])
    (tmp_path / "capsbench_qas.json").write_text(json.dumps(rows))

    qa_generator = ImageQAGenerator(
        llm_serving=model,
        system_prompt="You are a image question-answer generator. Your task is to generate a "
        "question-answer pair for the given image content.",
    )
    storage = FileStorage(
        first_entry_file_name="./capsbench_qas.json",
        cache_path="./cache_local",
        file_name_prefix="qa_task",
        cache_type="json",
    )
    storage.step()
    qa_generator.run(storage=storage, input_modal_key="image", output_key="qa")

    written = json.loads((tmp_path / "cache_local" / "qa_task_step1.json").read_text())
    assert [{name: row[name] for name in rows[0]} for row in written] == rows
    assert all(row["qa"].startswith("**Question:** ") for row in written)


def test_batch_files_give_what_the_server_gives(
    model: LocalModelVLMServing_vllm, tmp_path: Path
) -> None:
    rows, requests, results = 12, tmp_path / "requests", tmp_path / "results.jsonl"
    scenes.write_demo_dataset(tmp_path / "data", rows, seed=16)
    dataset = str(tmp_path / "data" / "dataset.json")
    server = model.start_serving()
    given: Any = {"model": server.model_name, "sampling": Sampling(temperature=0)}
    batch_export(dataset, output=str(tmp_path / "out"), to=str(requests), **given)
    # `vllm run-batch` fails where the package is not named vllm, as this CPU build.
    command = [str(find_vllm_python().path), "-m", "vllm.entrypoints.openai.run_batch"]
    command += ["-i", str(requests / "requests-00001.jsonl"), "-o", str(results)]
    command += ["--model", str(CHECKPOINT), "--served-model-name", server.model_name]
    command += ["--enforce-eager", "--skip-mm-profiling", "--max-num-seqs", "64"]
    command += ["--no-enable-chunked-prefill", "--dtype", "bfloat16"]
    command += ["--gpu-memory-utilization", "0.2"]
    environment = serve_environment(ServerOptions(CHECKPOINT), find_vllm_python())
    subprocess.run(command, env=environment, timeout=600, check=True)
    batch_import(dataset, output=str(tmp_path / "out"), results=[str(results)], **given)
    online = image_qa(dataset, str(tmp_path / "online"), server.url, **given)
    resumed = image_qa(dataset, str(tmp_path / "out"), server.url, **given)
    assert (online.requests, resumed.ok, resumed.requests) == (rows, rows, 0)
    names = ["row", "key", "question", "answer"]
    imported, asked = (
        pd.read_parquet(tmp_path / folder / "pairs.parquet")[names] for folder in ("out", "online")
    )
    assert imported["key"].equals(asked["key"])
    # Requests that are computed together in another order may be rounded differently.
    assert (imported == asked).all(axis=1).sum() >= rows - 1


def test_a_text_without_an_image_is_answered(
    model: LocalModelVLMServing_vllm, tmp_path: Path
) -> None:
    (tmp_path / "ask.jsonl").write_text('{"prompt": "What color is the circle?"}\n')
    storage = FileStorage(str(tmp_path / "ask.jsonl"), str(tmp_path / "cache"), "t", "jsonl").step()
    PromptedVQAGenerator(model).run(storage, input_prompt_key="prompt")
    row = json.loads((tmp_path / "cache" / "t_step1.jsonl").read_text())
    assert row["answer"] == "I cannot tell without the image."


def test_wrong_answers_are_less_probable_than_right_ones(model: LocalModelVLMServing_vllm) -> None:
    check, rng = confidence.check(), random.Random(4)
    requests = list[ChatRequest]()
    for seed in range(16):
        scene = scenes.random_scene(scenes.held_out_rng(seed))
        drawn = io.BytesIO()
        scenes.draw_scene(scene, 192, 192, rng).save(drawn, "PNG")
        url = {"url": DataURI("image/png", drawn.getvalue())}
        wrong = next(colour for colour in scenes.COLOURS if colour != scene[0].colour)
        for colour in (scene[0].colour, wrong):
            answer = f"The {scene[0].kind} is {colour}."
            pair = QAPair(f"What color is the {scene[0].kind}?", answer)
            question, said = check.style(PromptInput((), 1, "", "", {}, pair=pair)).messages
            content = [{"type": "image_url", "image_url": url}, question["content"][1]]
            requests.append(ChatRequest([{**question, "content": content}, said], check.sampling))
    server = model.start_serving()
    with ChatClient(VLLMEndpoint(urls=[server.url])) as client:
        outcomes = client.complete(requests)
    scores = list[float]()
    for outcome in outcomes:
        assert isinstance(outcome, Completion), outcome
        assert outcome.prompt_tokens > 9  # the image was read
        scores.append(json.loads(outcome.text)["logprob"])
    right, wrong_ones = scores[::2], scores[1::2]
    assert sum(low < high for low, high in zip(wrong_ones, right, strict=True)) >= 15


def test_the_demo_prints_correct_pairs_and_leaves_no_server(tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("prefect-imageqa")), "demo"]
    done = subprocess.run(
        [*command, "--rows", "24", "--output", str(tmp_path)],
        env={**os.environ, "PREFECT_API_URL": str(PREFECT_API_URL.value())},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "24 answered, 0 quarantined" in done.stdout
    found = re.findall(r"(\d+) of (\d+) (single|dialogue|multiple-choice)", done.stdout)
    shares = {style: int(right) / int(count) for right, count, style in found}
    assert shares["single"] >= 0.9
    assert shares["dialogue"] >= 0.8
    assert "multiple-choice" in shares
    [folder] = tmp_path.iterdir()
    assert (folder / "qa" / "qa.jsonl").exists()
    assert f"open {folder / 'qa' / 'report.html'}" in done.stdout
    left = subprocess.run(["pgrep", "-f", str(folder)], capture_output=True, check=False)
    assert left.stdout == b""


def test_a_run_survives_a_crash_of_its_server(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The engine is killed with SIGKILL in the middle of a run that has started the server."""
    rows, batch_size, output = 144, 24, tmp_path / "out"
    scenes.write_demo_dataset(tmp_path / "data", rows, seed=15)
    before = psutil.Process().children(recursive=True)

    def kill_engine() -> list[psutil.Process]:
        deadline = time.monotonic() + 300
        while len(list(output.glob("pairs/completions/[!.]*"))) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        started = [child for child in psutil.Process().children(True) if child not in before]
        [engine] = [process for process in started if "EngineCore" in process.name()]
        engine.kill()
        return started

    with ThreadPoolExecutor(1) as pool:
        killing = pool.submit(kill_engine)
        summary = image_qa(
            str(tmp_path / "data" / "dataset.json"),
            str(output),
            model=str(CHECKPOINT),
            limits=Limits(batch_size=batch_size, max_in_flight=batch_size),
        )
        started = killing.result()
    assert (summary.rows, summary.ok, summary.quarantined) == (rows, rows, 0)
    assert "restart 1: " in caplog.text
    assert "Traceback" not in caplog.text.partition("restart 1: ")[0]
    assert len((output / "qa.jsonl").read_text().splitlines()) == rows
    # Those that the server had, and as many that take their places, are sent again: until it exits,
    # it answers with 500. The others wait.
    at_risk = 2 * batch_size
    assert rows < summary.requests <= rows + at_risk * MAX_ATTEMPTS[FailureKind.SERVER_ERROR]
    assert not [process for process in started if process.is_running()]
