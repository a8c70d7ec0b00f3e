"""Measure what `duplicates` and `contamination` find, miss and take, and write it into the docs.

    python benchmarks/duplicates.py [--quick]

Copies of drawn scenes are planted in a dataset whose originals are also in two benchmark sets, a
folder and a Parquet table. False alarms, time and memory are those of five questions about each of
20,000 random scenes. It takes about five minutes of CPU.
"""

import argparse
import random
import tempfile
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path

from check_figures import markdown_table, with_interval
from performance import ROOT, machine, write
from planted_copies import COPIES, LIGHTS, QUESTIONS, WORDINGS, Sets, draw, encoded, png
from prefect_imageqa.serving.demo_model.scenes import Scene
from prefect_imageqa.tasks.reporting.detection import Share

PAGE = ROOT / "docs" / "checks_measured.md"
BEGIN, END = "<!-- duplicates: begin -->\n", "<!-- duplicates: end -->\n"
CHECKS = {"duplicates": "near_duplicate_image", "contamination": "contamination"}
PLANTED, RANDOM = 600, 20_000
SIDE, SMALL_SIDE = 192, 128
"""Pixels of planted images, and of random ones."""
PER_IMAGE = 5


def planted_tables(folder: Path, count: int) -> str:
    """What is found of planted copies of `count` images, and of their questions."""
    sets, originals, places = Sets(folder), [], []
    for number in range(count):
        rng = random.Random(f"held out: duplicates {number}")
        question = rng.choice([each for each in QUESTIONS if len(each.phrasings()) > 1])
        asked, (_, image) = rng.choice(question.phrasings()), draw(number, SIDE, rng)
        sets.add(png(image), asked)
        places.append(sets.add_to_benchmark(number, png(image), asked))
        originals.append((image, question, asked, rng))
    for image, question, asked, rng in originals:
        for copy in COPIES.values():
            sets.add(copy(image), asked)
        for worded in WORDINGS.values():
            sets.add(png(image), worded(question, asked, rng))
    sets.finish()
    kinds = [(number, kind) for number in range(count) for kind in (*COPIES, *WORDINGS)]
    tables = {name: sets.judge(name).slice(count).to_pylist() for name in CHECKS}
    found = defaultdict[tuple[str, ...], list[bool]](list)
    for (number, kind), repeated, taken in zip(kinds, *tables.values(), strict=True):
        light = LIGHTS[number % 2]
        if kind in COPIES:
            is_named = repeated["near_duplicate_image"] == f"row {number}"
            found[kind, light, "duplicates"].append(is_named)
            found[kind, light, "contamination"].append(taken["contamination"] == places[number])
            found["others",].append(taken["contamination"] not in ("", places[number]))
        else:
            is_named = repeated["duplicate_question"] == f"row {number}, pair 0"
            found[kind, "duplicates"].append(is_named)
            if places[number].startswith("bench.parquet"):
                found[kind, "contamination"].append(bool(taken["contamination_question"]))
    share = {key: with_interval(Share(sum(each), len(each))) for key, each in found.items()}
    columns = [(light, name) for light in LIGHTS for name in CHECKS]
    copies = [(kind, *(share[kind, *column] for column in columns)) for kind in COPIES]
    questions = [(kind, *(share[kind, name] for name in CHECKS)) for kind in WORDINGS]
    headings = ("copy", *(f"{name}, {light}" for light, name in columns))
    return (
        f"Found of the copies of {count:,} images, half of them flat; `contamination` named "
        f"another image {sum(found['others',])} times:\n\n{markdown_table(headings, copies)}\n"
        "Questions about a copy of the file that are found to be the same:\n\n"
        + markdown_table(("question", *CHECKS), questions)
    )


def random_tables(folder: Path, count: int) -> str:
    """How many of `count` random images are taken for copies, and what it takes to judge them."""
    sets, scenes = Sets(folder), dict[str, Scene]()
    for number in range(count + count // 10):
        rng = random.Random(f"held out: random {number}")
        scene, image = draw(number, SMALL_SIDE, rng)
        asked = [rng.choice(each.phrasings()) for each in rng.sample(QUESTIONS, PER_IMAGE)]
        data, place = encoded(image, "JPEG", quality=90), f"row {number}"
        if number < count:
            sets.add(data, *asked)
        else:
            place = sets.add_to_benchmark(number, data, asked[0])
        scenes[place] = scene
    sets.finish()
    alarms, costs = [], []
    for name, column in CHECKS.items():
        for path in (folder / "digests.sqlite", *folder.glob("output/checks/*/hashes.parquet")):
            path.unlink(missing_ok=True)
        for state in ("unknown", "known"):
            table = sets.judge(name)
            costs.append((name, state, *(text.decode() for text in table.schema.metadata.values())))
        said = table.column(column).to_pylist()[::PER_IMAGE]
        for half, light in enumerate(LIGHTS):
            joined = [(f"row {row}", said[row]) for row in range(half, count, 2) if said[row]]
            others = [each for each in joined if len({_words(scenes[one]) for one in each}) > 1]
            cells = (with_interval(Share(len(each), count // 2), 2) for each in (joined, others))
            alarms.append((name, light, *cells))
    return (
        f"False alarms among {count:,} random images, compared with one another and with "
        f"{count // 10:,} of benchmark sets. Some of these scenes are the same in words: their "
        "shapes, colors, sizes and cells.\n\n"
        + markdown_table(("check", "images", "joined", "joined, but other words"), alarms)
        + f"\nWhat it takes to judge {PER_IMAGE * count:,} pairs about them:\n\n"
        + markdown_table(("check", "hashes", "seconds", "CPU seconds", "peak memory"), costs)
    )


def _words(scene: Scene) -> frozenset[tuple[str, ...]]:
    return frozenset((shape.kind, shape.colour, shape.size, shape.place) for shape in scene)


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few images; the docs are left alone")
    is_quick = parser.parse_args().quick
    with tempfile.TemporaryDirectory() as name:
        planted = planted_tables(Path(name) / "planted", 20 if is_quick else PLANTED)
        scattered = random_tables(Path(name) / "random", 200 if is_quick else RANDOM)
    today = datetime.now(UTC).date().isoformat()
    text = (
        f"Measured on {today}, {machine()}, with 95 % confidence intervals in brackets.\n\n"
        f"{planted}\n{scattered}"
    )
    print(text)
    if not is_quick:
        write(PAGE, text, BEGIN, END)


if __name__ == "__main__":
    main()
