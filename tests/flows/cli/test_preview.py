"""`preview`: it asks what a run asks, shows it, and stores nothing."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from cyclopts import App
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect_imageqa import Columns, Images, Sampling, image_qa
from prefect_imageqa.flows.cli.main import main
from prefect_imageqa.flows.cli.preview import preview
from prefect_imageqa.flows.cli.run import run
from prefect_imageqa.flows.preview import show
from prefect_imageqa.tasks.runs.parameters import Asking

Call = Callable[..., tuple[int, str, str]]

# `main` is what is tested, and it reads sys.argv.
pytestmark = pytest.mark.filterwarnings("ignore:Cyclopts application invoked without tokens")

STYLE = """---
name: mine
version: 1
description: Asks about the tag.
reply: pairs
---
# user
Write one question about {{ tag }}. {{ reply_format }}
"""


@pytest.fixture
def without_prefect() -> Iterator[None]:
    """No Prefect server answers."""
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        yield


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Call:
    """Calls `prefect-imageqa preview` in a folder of its own; gives exit code, stdout, stderr."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def run_main(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["prefect-imageqa", "preview", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            main()
        captured = capsys.readouterr()
        return int(exit_info.value.code or 0), captured.out, captured.err

    return run_main


@pytest.fixture
def tagged(drawn: Path) -> str:
    """A dataset of three images with tags; the second image is missing."""
    rows = [{"image": f"images/00{n}.png", "tag": f"tag-{n}"} for n in range(3)]
    rows[1]["image"] = "images/missing.png"
    path = drawn / "tagged.json"
    path.write_text(json.dumps(rows))
    return str(path)


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.md"
    path.write_text(STYLE)
    return path


def documents(text: str) -> list[dict[str, Any]]:
    """The JSON documents of a text, one after the other."""
    found, decoder = [], json.JSONDecoder()
    while text := text.lstrip():
        document, end = decoder.raw_decode(text)
        found.append(document)
        text = text[end:]
    return found


def texts_of(body: dict[str, Any]) -> str:
    """A request without the URLs of its images."""
    messages = json.loads(json.dumps(body["messages"]))
    for message in messages:
        for part in message["content"] if isinstance(message["content"], list) else []:
            part.pop("image_url", None)
    return json.dumps({**body, "messages": messages}, sort_keys=True)


def test_it_asks_what_a_run_asks(call: Call, start_stub: Any, drawn: Path, tmp_path: Path) -> None:
    stub, dataset, output = start_stub(), str(drawn / "dataset.json"), tmp_path / "out"
    image_qa(
        dataset,
        str(output),
        endpoint=stub.url,
        style="knowledge=2, single=1",
        max_rows=3,
        asking=Asking(samples=2, language="Chinese", format="json", answer="separately"),
        sampling=Sampling(temperature=0.4, seed=9),
        columns=Columns(image="image"),
        images=Images(max_side=64),
    )
    stored = pq.read_table(output / "rows.parquet", columns=["row", "key"]).to_pylist()
    of_run = stub.stats()["bodies"]
    flags = (
        *(dataset, "--style", "knowledge=2, single=1", "--rows=3", "--samples=2", "--format=json"),
        *("--language=Chinese", "--answer=separately", "--temperature=0.4", "--seed=9"),
        *("--image-key=image", "--max-side=64"),
    )

    code, out, err = call(*flags, "--dry-run", "--model=stub")
    assert (code, err) == (0, "")
    shown = documents(out)
    assert [(each["row"], each["key"]) for each in shown] == [
        (row["row"], row["key"]) for row in stored
    ]
    url = shown[0]["request"]["messages"][-1]["content"][0]["image_url"]["url"]
    assert re.fullmatch(r"data:image/png;base64,... \(\S+ kB, 64x64, sha256 \w{12}\)", url)
    assert {texts_of(each["request"]) for each in shown} <= set(map(texts_of, of_run))
    assert stub.stats()["bodies"] == of_run

    code, _, err = call(*flags, "--endpoint", stub.url)
    assert code == 0, err
    of_preview = stub.stats()["bodies"][len(of_run) :]
    assert len(of_preview) >= 6 + 3  # questions; answers: both samples got the same question
    assert sorted(map(texts_of, of_preview)) == sorted(map(texts_of, of_run))


def test_replies_are_shown_and_nothing_is_stored(
    without_prefect: None, call: Call, start_stub: Any, tagged: str, mine: Path
) -> None:
    stub = start_stub()
    code, out, err = call(tagged, "--endpoint", stub.url, "--style", "chat", "--style", str(mine))
    assert code == 0, err
    assert out.count("What is in the image?") == 4
    assert out.count("image_missing: ") == 2
    assert "2 of 3" in out
    assert stub.stats()["requests"] == 4
    page = Path("preview.html")
    assert [*Path().iterdir()] == [page]
    assert err == "page: preview.html\n"
    html = page.read_text()
    assert html.count("data:image/jpeg;base64,") == 2
    assert "Write one question about tag-0" in html
    assert html.count("image_missing") == 2


def test_questions_of_a_row_stay_together(call: Call, stub: Any, drawn: Path) -> None:
    rows = [
        {"image": "images/000.png", "question": ["STUB text **Question:** one\n**Answer:** 1"] * 2},
        {"image": "images/001.png", "question": "STUB text **Question:** two\n**Answer:** 2"},
    ]
    path = drawn / "asked.json"
    path.write_text(json.dumps(rows))
    code, _, err = call(
        *(str(path), "--endpoint", stub.url, "--style", "chat", "--style", "short", "--rows=2"),
    )
    assert code == 0, err
    html = Path("preview.html").read_text()
    first, second = html.split("<tr>")[2:]
    assert (first.count(">one<"), second.count(">one<")) == (2, 0)
    assert (first.count(">two<"), second.count(">two<")) == (0, 1)
    assert first.count("<td>") == second.count("<td>") == 2


def test_questions_can_be_answered_separately(call: Call, start_stub: Any, drawn: Path) -> None:
    stub = start_stub()
    code, out, err = call(
        *(str(drawn / "dataset.json"), "--endpoint", stub.url, "--style", "single"),
        *("--answer", "separately", "--rows=2", "--temperature=0"),
    )
    assert code == 0, err
    assert stub.stats()["requests"] == 4
    assert "2 of 2" in out


def test_an_edited_style_is_asked_again_and_no_other(
    call: Call, start_stub: Any, tagged: str, mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = start_stub()
    requests = []

    def edit(_: float) -> None:
        """Instead of waiting: save the style, break it, mend it, take it back; then Ctrl-C."""
        requests.append(stub.stats()["requests"])
        assert "location.reload()" in Path("preview.html").read_text()
        changed = STYLE.replace("question", "hard question")
        contents = [STYLE, changed, "no head", changed, STYLE]
        if len(requests) > len(contents):
            raise KeyboardInterrupt
        mine.write_text(contents[len(requests) - 1])

    monkeypatch.setattr(show, "sleep", edit)
    code, out, err = call(
        *(tagged, "--endpoint", stub.url, "--style", "chat", "--style", str(mine), "--watch"),
    )
    assert code == 0
    assert requests == [4, 4, 6, 6, 6, 6]
    assert out.count("distinct") == 4  # the first, changed, mended, and taken back
    assert err.count("prefect-imageqa: ") == 1
    assert "mine.md" in err
    assert "<script" not in Path("preview.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        pytest.param(["--style=nosuch"], 1, "nosuch", id="style"),
        pytest.param(["--image-key=nosuch"], 1, "nosuch", id="column"),
        pytest.param(["--style=mine.md", "--user-prompt=x"], 1, "prompts of its own", id="prompt"),
        pytest.param(["--temperature=3"], 2, "--temperature", id="value"),
        pytest.param(["--rows=0"], 2, "--rows", id="rows"),
        pytest.param(["--dry-run", "--watch"], 2, "not both", id="both"),
        pytest.param(["--html=other.html"], 1, "not written by a preview", id="page"),
        pytest.param(["--output=x"], 2, "--output", id="unknown"),
        pytest.param(["--extra-body.min_p=1"], 2, "one JSON object", id="extra"),
    ],
)
def test_bad_input_is_one_line_before_any_request(
    call: Call, start_stub: Any, tagged: str, arguments: list[str], code: int, message: str
) -> None:
    stub = start_stub()
    Path("mine.md").write_text(STYLE)
    Path("other.html").write_text("mine")
    got, out, err = call(tagged, "--endpoint", stub.url, *arguments)
    assert (got, out) == (code, "")
    assert err.count("\n") == 1
    assert message in err
    assert stub.stats()["requests"] == 0
    assert not Path("preview.html").exists()


def test_a_server_is_needed_for_replies_only(call: Call, tagged: str) -> None:
    code, out, err = call(tagged)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "--endpoint" in err
    assert "--dry-run" in err
    code, out, err = call(tagged, "--dry-run")
    assert (code, err.count("\n")) == (0, 1)
    assert "--model" in err
    first, missing, _ = documents(out)
    assert first["request"]["model"] == "MODEL"
    assert missing["problem"].startswith("image_missing: ")
    assert call("nosuch.json", "--dry-run")[0] == 1


def test_a_column_that_is_not_there_is_named(call: Call, tagged: str, mine: Path) -> None:
    mine.write_text(STYLE.replace("{{ tag }}", "{{ nosuch }}"))
    code, out, err = call(tagged, "--dry-run", "--style", str(mine), "--model=m")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "no column 'nosuch', which the style uses" in err


def test_a_preview_has_the_flags_of_a_run() -> None:
    def flags(command: Callable[..., Any]) -> dict[str, str]:
        app = App()
        app.command(command, name="c")
        found = app["c"].assemble_argument_collection(parse_docstring=True)
        return {each.name: str(each.parameter.help) for each in found if each.name != "*"}

    own = {"DATASET", "--style", "--rows", "--html", "--dry-run", "--watch"}
    of_preview, of_run = flags(preview), flags(run)
    assert own <= of_preview.keys()
    shared = of_preview.keys() - own
    assert {name: of_preview[name] for name in shared} == {name: of_run[name] for name in shared}
    decides_nothing = {"--output", "--batch-size", "--cache", "--json", "--max-rows", "--export"}
    assert not decides_nothing & of_preview.keys()
    assert {"--endpoint", "--model", "--samples", "--language", "--format", "--seed"} <= shared
