"""The flow of `docs/compose.md`, exactly as it is printed there."""

import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "compose.md"


def test_the_composed_flow_of_the_docs_sends_each_row_once(
    stub: Any, drawn: Path, tmp_path: Path
) -> None:
    code = re.findall(r"```python\n(.+?)```", PAGE.read_text("utf-8"), re.DOTALL)[0]
    assert len(code.splitlines()) <= 25
    names: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), names)  # noqa: S102
    arguments = (str(drawn / "dataset.json"), str(tmp_path / "out"), stub.url)
    before = stub.stats()["requests"]
    assert names["describe"](*arguments) == 12
    requests = stub.stats()["requests"]
    assert requests - before == 12
    assert names["describe"](*arguments) == 12
    assert stub.stats()["requests"] == requests
    assert list((tmp_path / "out" / "pairs" / "parts").rglob("*.parquet"))
