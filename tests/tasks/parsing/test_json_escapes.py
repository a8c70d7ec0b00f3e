r"""Backslashes in the JSON of models: LaTeX survives, and so do line breaks."""

import json

import pytest
from prefect_imageqa.tasks.parsing.json_escapes import repair_escapes


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (
            r"\frac{1}{2} \beta \forall \bar{x} \begin{a}",
            r"\frac{1}{2} \beta \forall \bar{x} \begin{a}",
        ),
        (
            r"\alpha \gamma \sqrt{2} \pi \unit \upsilon",
            r"\alpha \gamma \sqrt{2} \pi \unit \upsilon",
        ),
        (r"\theta \times \text{cm} \tan x \tau", r"\theta \times \text{cm} \tan x \tau"),
        (r"\rho \right) \rangle \rightarrow", r"\rho \right) \rangle \rightarrow"),
        (r"\nabla \neq \not\in \notin", r"\nabla \neq \not\in \notin"),
        (r"$a \ne b$, $\nu$", r"$a \ne b$, $\nu$"),
        (r"\(x\) \[y\] 5\% \$3 a\_b \{c\}", r"\(x\) \[y\] 5\% \$3 a\_b \{c\}"),
        (r"\\frac{1}{2} \\nu \\theta", r"\frac{1}{2} \nu \theta"),
        (r"\\\frac", "\\\\frac"),
        (r"It\'s", "It's"),
        # what JSON means stays
        (r"one\ntwo\r\nthree\tfour", "one\ntwo\r\nthree\tfour"),
        (r"a\nb) tan\nne\nnumber\nothing", "a\nb) tan\nne\nnumber\nothing"),
        (r"$1\na) x\ne) y\nu. z", "$1\na) x\ne) y\nu. z"),
        (r"linha\ne mais", "linha\ne mais"),
        (r"\u00e9 \" \/ \\ \ud83d\ude00", 'é " / \\ 😀'),
        (r"\u12 \u", r"\u12 \u"),
    ],
)
def test_a_string_means_what_the_model_meant(written: str, meant: str) -> None:
    assert json.loads(repair_escapes(f'"{written}"')) == meant


def test_sound_json_is_not_changed() -> None:
    text = json.dumps({"a": 'x\ny\t"z" \\frac \\nu \u0001 é', "b": ["\r\n", "/"]})
    assert repair_escapes(text) == text
    assert repair_escapes("no backslash") == "no backslash"
