"""The flow that `docs/compose.md` composes from the tasks, as it is printed there."""

import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "compose.md"


@pytest.mark.usefixtures("prefect_server")
def test_the_composed_flow_of_the_docs_asks_once_and_then_reads_its_cache(
    stub: Any, drawn: Path, tmp_path: Path
) -> None:
    code = re.findall(r"```python\n(.+?)```", PAGE.read_text("utf-8"), re.DOTALL)[0]
    assert len(code.splitlines()) <= 25
    names: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), names)  # noqa: S102
    arguments = (str(drawn / "dataset.json"), str(tmp_path / "out"), stub.url)
    before = stub.stats()["requests"]
    assert names["describe"](*arguments) == 12
    asked = stub.stats()["requests"]
    assert asked - before == 12
    assert names["describe"](*arguments) == 12
    assert stub.stats()["requests"] == asked
    assert list((tmp_path / "out" / "pairs" / "parts").rglob("*.parquet"))
