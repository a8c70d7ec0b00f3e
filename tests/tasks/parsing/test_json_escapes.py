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
        (r"$$ a \ne b $$ and $E(\nu)$", r"$$ a \ne b $$ and $E(\nu)$"),
        (r"\(a \nless b\), \[\{p\} \to q\]", r"\(a \nless b\), \[\{p\} \to q\]"),
        (r"x \leq 3 \ne y, h\nu = \pi, \tan x", r"x \leq 3 \ne y, h\nu = \pi, \tan x"),
        (r"\langle x \rangle \lfloor y \rfloor", r"\langle x \rangle \lfloor y \rfloor"),
        (r"\frac12 \\\\ \not= \neg p", r"\frac12 \\ \not= \neg p"),
        (r"5 \text{cm} \tag{1} \norm{x}", r"5 \text{cm} \tag{1} \norm{x}"),
        (r"\(x\) \[y\] 5\% \$3 a\_b \{c\}", r"\(x\) \[y\] 5\% \$3 a\_b \{c\}"),
        (r"\\frac{1}{2} \\nu \\theta", r"\frac{1}{2} \nu \theta"),
        (r"\\\frac", "\\\\frac"),
        (r"It\'s", "It's"),
        # what JSON means stays
        (r"one\ntwo\r\nthree\tfour", "one\ntwo\r\nthree\tfour"),
        (r"a\nb) tan\nne\nnumber\nothing", "a\nb) tan\nne\nnumber\nothing"),
        (r"$1\na) x\ne) y\nu. z", "$1\na) x\ne) y\nu. z"),
        (r"linha\ne mais", "linha\ne mais"),
        (r"It is\nless than five", "It is\nless than five"),
        (r"are they\nparallel?\nexists\nmid", "are they\nparallel?\nexists\nmid"),
        (r"?\nsim\norm\neg\not", "?\nsim\norm\neg\not"),
        (r"1.\tan apple\to\top hat\text. 4", "1.\tan apple\to\top hat\text. 4"),
        (r"Costa $5\ne poi $6", "Costa $5\ne poi $6"),
        (r"Costa $5\ne poi $6 o $x$\nu", "Costa $5\ne poi $6 o $x$\nu"),
        (r"5$\ne poi 6$ o $5-$6\nu", "5$\ne poi 6$ o $5-$6\nu"),
        (r"Calcola \(x\)\ne spiega $y$\ne z", "Calcola \\(x\\)\ne spiega $y$\ne z"),
        (r"Solve \sqrt{2}.\nless is more", "Solve \\sqrt{2}.\nless is more"),
        (r"$\\frac12\ne^{x}$", "$\\frac12\ne^{x}$"),
        (r"\u00e9 \" \/ \\ \ud83d\ude00", 'é " / \\ 😀'),
        (r"\u12 \u", r"\u12 \u"),
    ],
)
def test_a_string_means_what_the_model_meant(written: str, meant: str) -> None:
    assert json.loads(repair_escapes(f'"{written}"')) == meant


def test_latex_counts_only_in_its_own_string() -> None:
    text = r'{"a": "\sqrt{2} \ne 1", "b": "rosso\ne blu"}'
    assert json.loads(repair_escapes(text)) == {"a": r"\sqrt{2} \ne 1", "b": "rosso\ne blu"}


def test_sound_json_is_not_changed() -> None:
    text = json.dumps({"a": 'x\ny\t"z" \\frac \\nu \u0001 é', "b": ["\r\n", "/"]})
    assert repair_escapes(text) == text
    assert repair_escapes("no backslash") == "no backslash"
