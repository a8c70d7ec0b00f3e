"""Rubric files."""

from pathlib import Path

import pytest
from prefect_imageqa.tasks.checking.rubric import BUILT_IN, Axis, Rubric, parse_rubric, read_rubric
from prefect_imageqa.tasks.errors import ImageQAError

TEXT = """\
Be strict.

# Factual accuracy
Is it true?

```
# no axis
```

# tone
Is it polite?
"""


def test_each_section_is_an_axis(tmp_path: Path) -> None:
    path = tmp_path / "rubric.md"
    path.write_bytes(b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n").encode())
    assert read_rubric(str(path)) == Rubric(
        (
            Axis("factual_accuracy", "Is it true?\n\n```\n# no axis\n```"),
            Axis("tone", "Is it polite?"),
        ),
        "Be strict.",
    )


def test_the_built_in_rubric_has_four_axes() -> None:
    names = [axis.name for axis in BUILT_IN.axes]
    assert names == ["formatting", "relevance", "visual", "correspondence"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no axes"),
        ("Rate it.\n\n## relevance\nHow good?\n", "has no axes"),
        ("# relevance\n\n# tone\nPolite?", "line 1: axis `# relevance` does not say"),
        ("# a\nx\n\n# A\ny", "line 4: axis `# A` is there twice"),
        ("# reason\nx", "name of the judge's reasons"),
        ("# 1st\nx", "cannot name a column"),
        ("# \x1b[31mred\nx", "cannot name a column"),
        ("# " + "a" * 50 + "\nx", "cannot name a column"),
        ("".join(f"# a{n}\nx\n\n" for n in range(11)), "has 11 axes, over the 10"),
    ],
)
def test_what_is_no_rubric_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(ImageQAError, match=message) as error:
        parse_rubric(text, "r.md")
    assert str(error.value).startswith("r.md")
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 250


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "there is no rubric"),
        (b"\xff\xfe", "not UTF-8"),
        (b"# a\n" + b"x" * (16 << 10), "larger than the 16 KiB"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(
    tmp_path: Path, data: bytes | None, message: str
) -> None:
    path = tmp_path / "rubric.md"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ImageQAError, match=message):
        read_rubric(str(path))
