"""Before many rows are asked: proof that the servers see the images, the pilot, its approval."""

import json
import os
import pty
import select
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState
from prefect.client.schemas.filters import FlowRunFilterStateName as StateName
from prefect.flow_runs import resume_flow_run
from prefect_imageqa import EndpointError, Pilot, PilotError, image_qa
from prefect_imageqa.flows import image_proof
from prefect_imageqa.flows.approval import ask_at_terminal
from prefect_imageqa.flows.cli.terminal import _is_shown
from prefect_imageqa.flows.progress import RunProgress, use_progress
from prefect_imageqa.tasks.object_store.store import ObjectStore
from prefect_imageqa.tasks.runs.run_record import read_runs
from pydantic import ValidationError

GOOD = "STUB text **Question:** What is it?\n**Answer:** Row"
PROSE = "STUB text I like this image."


@pytest.fixture(autouse=True)
def _many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the datasets small."""
    monkeypatch.setattr(image_proof, "MANY_ROWS", 20)


@pytest.fixture
def served(start_stub: Any, tmp_path: Path) -> Any:
    """A stub that counts the texts it is asked."""
    return start_stub(f"--count-texts={tmp_path / 'texts'}")


@pytest.fixture(scope="module")
def blind(start_stub: Any) -> Any:
    return start_stub("--blind")


def good_rows(count: int) -> list[str]:
    return [f"{GOOD} {number}." for number in range(count)]


def asked(stub: Any) -> list[int]:
    """How often each row was asked, in order of their texts."""
    return sorted(stub.stats()["texts"].values())


@pytest.mark.parametrize("others", [0, 1], ids=["alone", "among two servers"])
def test_a_blind_server_gets_no_rows(
    blind: Any, stub: Any, drawn: Path, tmp_path: Path, others: int
) -> None:
    rows = json.loads((drawn / "dataset.json").read_text()) * 2
    (drawn / "rows.json").write_text(json.dumps(rows))
    before = blind.stats()["requests"]
    endpoint = [stub.url] * others + [blind.url]
    with pytest.raises(EndpointError, match="add no tokens to its prompts") as caught:
        image_qa(str(drawn / "rows.json"), str(tmp_path / "out"), endpoint, pilot=Pilot(rows=4))
    assert str(caught.value).startswith(blind.url)
    assert "model stub" in str(caught.value)
    pairs = 3
    assert blind.stats()["requests"] - before == 2 * pairs
    assert not list((tmp_path / "out").glob("pairs/parts/**/*.parquet"))


def test_rows_above_the_limit_are_proven_without_a_pilot(
    blind: Any, served: Any, write_rows: Any, tmp_path: Path
) -> None:
    output = str(tmp_path / "out")
    few, many = good_rows(20), good_rows(21)
    image_qa(write_rows(few), str(tmp_path / "few"), blind.url)
    with pytest.raises(EndpointError, match="add no tokens"):
        image_qa(write_rows(many), output, blind.url)
    summary = image_qa(write_rows(many), output, served.url)
    assert (summary.ok, summary.requests, summary.prompt_tokens) == (21, 21, 21 * 164)
    assert asked(served) == [1] * 20 + [3]  # all rows have the same image: one row is asked
    # More rows than the limit, of which few are pending.
    assert image_qa(write_rows(good_rows(25)), output, blind.url).requests == 4


def test_the_proof_can_be_left_out(blind: Any, write_rows: Any, tmp_path: Path) -> None:
    pilot = Pilot(rows=2, image_proof=False)
    summary = image_qa(write_rows(good_rows(21)), str(tmp_path / "out"), blind.url, pilot=pilot)
    assert (summary.ok, summary.requests) == (21, 21)


def test_a_server_that_counts_no_tokens_is_used_with_a_warning(
    stub: Any, write_rows: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    message = {"role": "assistant", "content": "**Question:** A?\n**Answer:** B."}
    reply = {"model": "stub", "choices": [{"message": message, "finish_reason": "stop"}]}
    rows = [f"STUB raw {json.dumps({**reply, 'id': str(number)})}" for number in range(21)]
    assert image_qa(write_rows(rows), str(tmp_path / "out"), stub.url).ok == 21
    (warning,) = [line for line in caplog.messages if "cannot be told" in line]
    assert warning.startswith(stub.url)


def test_rows_whose_images_cannot_be_used_are_passed_over(
    blind: Any, drawn: Path, tmp_path: Path
) -> None:
    rows = json.loads((drawn / "dataset.json").read_text())
    rows[0]["image"] = None
    rows[1]["image"] = "images/none.png"
    (drawn / "images" / "002.png").write_bytes(b"no image")
    (drawn / "rows.json").write_text(json.dumps(rows[:4]))
    before = blind.stats()["requests"]
    with pytest.raises(EndpointError, match="without seeing"):
        image_qa(str(drawn / "rows.json"), str(tmp_path / "out"), blind.url, pilot=Pilot(rows=4))
    assert blind.stats()["requests"] - before == 2


@pytest.mark.usefixtures("with_report")
def test_the_rows_of_a_pilot_are_part_of_the_result(
    served: Any, write_rows: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, runs_of: Any
) -> None:
    dataset, output = write_rows([PROSE, *good_rows(9)]), str(tmp_path / "out")
    summary = image_qa(dataset, output, served.url, pilot=Pilot(rows=4))
    assert (summary.rows, summary.ok, summary.quarantined) == (10, 9, 1)
    assert summary.requests == 10 + summary.corrections == 11
    assert sum(asked(served)) == summary.requests + 2
    (record,) = [line for line in caplog.records if line.getMessage().startswith("pilot:")]
    assert _is_shown(record)
    said = record.getMessage()
    assert "3 of 4 rows have usable pairs (75%); an image adds 64 tokens to the prompt" in said
    assert "the other 6 rows take" in said
    assert "GPU-hours if its server has one GPU" in said
    artifact = pilot_artifact(runs_of(output)[0].id)
    assert "3 of 4 rows have usable pairs" in artifact.replace("\\", "")
    assert artifact.count("data:image/jpeg") == 4
    assert "unparsed" in artifact


def pilot_artifact(run_id: Any) -> str:
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

    chosen = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]))
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=chosen)
    (text,) = [each.data for each in found if str(each.key).endswith("-pilot")]
    return str(text)


def test_too_few_usable_rows_stop_the_run_which_resumes(
    served: Any, write_rows: Any, tmp_path: Path
) -> None:
    dataset = write_rows([*[f"{PROSE} {number}" for number in range(3)], *good_rows(7)])
    output, pilot = str(tmp_path / "out"), Pilot(rows=4, min_parsed=0.3)
    with pytest.raises(PilotError, match=r"1 of its 4 rows .* 0\.3 demands \(3 unparsed\)"):
        image_qa(dataset, output, served.url, pilot=pilot)
    assert len(asked(served)) == 4
    summary = image_qa(dataset, output, served.url, pilot=pilot)  # of the next rows
    assert (summary.ok, summary.quarantined, summary.reused) == (7, 3, 1)
    assert summary.requests == 6
    assert len(asked(served)) == 10


def test_a_pilot_of_all_rows_stops_nothing(
    served: Any, write_rows: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset, output = write_rows([PROSE, PROSE + ".", *good_rows(1)]), str(tmp_path / "out")
    summary = image_qa(dataset, output, served.url, pilot=Pilot(rows=3, min_parsed=1))
    assert (summary.ok, summary.quarantined) == (1, 2)
    caplog.clear()
    assert image_qa(dataset, output, served.url, pilot=Pilot(rows=3)).requests == 0
    assert not [line for line in caplog.messages if line.startswith("pilot:")]


@pytest.mark.usefixtures("quick_retries")
def test_a_row_that_crashes_the_server_does_not_spoil_the_pilot(
    start_stub: Any, write_rows: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mark = "a-mark-that-crashes"
    stub = start_stub("--respawn=0.2", f"--poison={mark}", latency=0.02)
    dataset = Path(write_rows(good_rows(12)))
    chunk = PngInfo()
    chunk.add_text("note", mark)
    Image.new("RGB", (32, 32), "blue").save(dataset.with_name("poison.png"), pnginfo=chunk)
    rows = json.loads(dataset.read_text())
    rows[5]["image"] = "poison.png"
    dataset.write_text(json.dumps(rows))
    pilot = Pilot(rows=8, min_parsed=0.8)  # whose image proof crashes the server, too
    summary = image_qa(str(dataset), str(tmp_path / "out"), stub.url, pilot=pilot)
    assert (summary.ok, summary.reasons) == (11, {"crash": 1})
    assert any("7 of 8 rows have usable pairs" in line for line in caplog.messages)


def test_an_approval_needs_a_pilot() -> None:
    with pytest.raises(ValidationError, match="give its number of rows"):
        Pilot(approval=True)


def test_an_answer_typed_before_the_question_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    person, terminal = pty.openpty()
    with os.fdopen(terminal) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        os.write(person, b"y\n")
        assert select.select([stdin], [], [], 10)[0]
        assert not ask_at_terminal("Ask the other rows?", 0.1)
        answered = threading.Event()

        def type_until_read() -> None:
            while not answered.wait(0.1):
                os.write(person, b"yes\n")

        typing = threading.Thread(target=type_until_read)
        typing.start()
        try:
            assert ask_at_terminal("Ask the other rows?", 60)
        finally:
            answered.set()
            typing.join()
    os.close(person)


def test_without_anybody_to_ask_nothing_is_asked(
    served: Any, write_rows: Any, tmp_path: Path
) -> None:
    dataset, output = write_rows(good_rows(6)), str(tmp_path / "out")
    with pytest.raises(PilotError, match="run a deployment"):
        image_qa(dataset, output, served.url, pilot=Pilot(rows=2, approval=True))
    assert asked(served) == []


@pytest.fixture
def answering() -> Iterator[Callable[[bool], list[str]]]:
    """Gives the next run a terminal whose user answers; returns the questions."""

    uses = ExitStack()

    def answer(reply: bool) -> list[str]:
        questions: list[str] = []

        def ask(question: str, seconds: float) -> bool:
            questions.append(f"{question} {seconds:g}")
            return reply

        uses.enter_context(use_progress(RunProgress(ask=ask)))
        return questions

    with uses:
        yield answer


def test_a_person_at_the_terminal_is_asked(
    served: Any, write_rows: Any, tmp_path: Path, answering: Callable[[bool], list[str]]
) -> None:
    arguments = write_rows(good_rows(6)), str(tmp_path / "out"), served.url
    pilot = Pilot(rows=2, approval=True, wait=60)
    questions = answering(False)
    with pytest.raises(PilotError, match="nobody approved it"):
        image_qa(*arguments, pilot=pilot)
    assert len(asked(served)) == 2
    (question,) = questions
    assert question.startswith("Pilot: 2 of 2 rows have usable pairs (100%)")
    assert question.endswith("Ask the other rows? 60")
    answering(True)
    assert image_qa(*arguments, pilot=pilot).ok == 6


@pytest.fixture
def _deployed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "d" * 32)


@pytest.mark.usefixtures("_deployed")
def test_a_paused_run_keeps_its_output_and_sends_nothing(
    served: Any, write_rows: Any, tmp_path: Path
) -> None:
    arguments = write_rows(good_rows(6)), str(tmp_path / "out"), served.url
    seen: list[Any] = []

    def resume() -> None:
        with get_client(sync_client=True) as client:
            paused = FlowRunFilter(state=FlowRunFilterState(name=StateName(any_=["Paused"])))
            while not (runs := client.read_flow_runs(flow_run_filter=paused)):
                time.sleep(0.1)
            before = asked(served)
            (record,) = read_runs(ObjectStore(uri=str(tmp_path / "out")), lambda _: None, set())
            time.sleep(1.5)
            seen.extend([before, asked(served), record.is_live])
            resume_flow_run(runs[0].id, run_input={})

    thread = threading.Thread(target=resume)
    thread.start()
    summary = image_qa(*arguments, pilot=Pilot(rows=2, approval=True, wait=120))
    thread.join()
    before, after, is_live = seen
    assert before == after == [1, 3]
    assert is_live
    assert (summary.ok, summary.requests) == (6, 6)


@pytest.mark.usefixtures("_deployed")
def test_a_run_that_nobody_resumes_stops(served: Any, write_rows: Any, tmp_path: Path) -> None:
    arguments = write_rows(good_rows(6)), str(tmp_path / "out"), served.url
    with pytest.raises(PilotError, match="nobody approved it"):
        image_qa(*arguments, pilot=Pilot(rows=2, approval=True, wait=1))
    assert len(asked(served)) == 2
    assert image_qa(*arguments).requests == 4
