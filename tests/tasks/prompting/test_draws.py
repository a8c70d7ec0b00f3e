import os
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
from prefect_imageqa.tasks.prompting.draws import Draws
from prefect_imageqa.tasks.prompting.style import PromptInput

USED = frozenset({"tags", "data", "size"})
"""The columns that the style uses."""


def drawn(
    record: dict[str, Any], what: str = "kind", sample: int = 0, seed: int = 0, **weights: float
) -> str:
    ids = (f"sha256:{record['image']}",)
    prompt_input = PromptInput((), 1, "", "", record, sample, ids)
    return Draws(prompt_input, seed, USED).choose(what, weights or dict.fromkeys("abcdefgh", 1))


def test_a_draw_depends_on_the_images_and_the_columns_used_only() -> None:
    record = {"image": "a.png", "tags": ["x", None], "data": b"\x00", "size": 1.5}
    assert drawn(record) == drawn({"note": "of no style", **dict(reversed(record.items()))})
    assert len({drawn({**record, "size": number}) for number in range(40)}) > 1
    program = (
        "from prefect_imageqa.tasks.prompting.draws import Draws\n"
        "from prefect_imageqa.tasks.prompting.style import PromptInput\n"
        "ids = ('sha256:a.png',)\n"
        f"row = PromptInput((), 2, 'other', 'prompts', {record!r}, 0, ids)\n"
        "draws = Draws(row, 0, ['size', 'data', 'tags'])\n"
        "print(draws.choose('kind', dict.fromkeys('abcdefgh', 1)))"
    )
    seed = "1" if os.environ.get("PYTHONHASHSEED") == "0" else "0"
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == drawn(record) == "h"


@pytest.mark.parametrize("change", [{"what": "mood"}, {"sample": 1}, {"seed": 1}], ids=str)
def test_other_samples_seeds_and_purposes_are_drawn_independently(change: dict[str, Any]) -> None:
    rows = [{"image": f"{number}.png"} for number in range(400)]
    equal = sum(drawn(row) == drawn(row, **change) for row in rows)
    assert 25 < equal < 80  # one in eight is expected


def test_each_choice_is_as_frequent_as_its_weight() -> None:
    counts = Counter(drawn({"image": number}, a=3, b=0.5, c=1.5) for number in range(2000))
    assert 1130 < counts["a"] < 1270
    assert 150 < counts["b"] < 250
    assert sum(counts.values()) == 2000
