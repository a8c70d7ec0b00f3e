"""A preview of plain data."""

import io

import pytest
from PIL import Image
from prefect_imageqa.flows.preview.cells import Preview, PreviewReply, PreviewRow, Said
from prefect_imageqa.tasks.images.prepare import ImageSettings
from prefect_imageqa.tasks.images.thumbnails import thumbnail
from prefect_imageqa.tasks.records import QAPair
from prefect_imageqa.tasks.reporting.row_images import SampledImage


@pytest.fixture
def compared() -> Preview:
    """Two styles on two rows: pairs, a choice, a dialogue, and a reply that cannot be used."""
    file = io.BytesIO()
    Image.new("RGB", (64, 48), "red").save(file, "PNG")
    image = SampledImage("a.png", thumbnail(file.getvalue(), ImageSettings()))
    asked = (Said("system", "Be brief."), Said("user", "[image 1]\nAsk."))
    short = PreviewReply(
        "short@1",
        "a" * 32,
        asked,
        (QAPair("What is it?", "A heron.", type="objects"),),
        "raw short",
        tokens=12,
        latency=0.5,
    )
    choice = QAPair("Which colour?", "blue", options=("red", "blue"), correct="B")
    turns = (
        QAPair("Is it day?", "Yes.", turn=1),
        QAPair("Why?", "It is bright.", turn=2, reasoning="The sun shines."),
    )
    unusable = PreviewReply(
        "short@1", "d" * 32, asked, text="I cannot.", kind="unparsed", reason="found nothing"
    )
    rows = (
        PreviewRow(
            "d.json[0]",
            (image,),
            ((short,), (PreviewReply("multiple-choice@2", "b" * 32, asked, (choice,), "raw B"),)),
        ),
        PreviewRow(
            "d.json[1]",
            (),
            (
                (unusable,),
                (
                    PreviewReply("dialogue@1", "c" * 32, asked, turns, "raw turns"),
                    PreviewReply("dialogue@1", "e" * 32, asked, turns, unanswered=("Who? (no)",)),
                ),
            ),
        ),
    )
    return Preview("d.json", "demo", ("short", "mine.md"), rows)
