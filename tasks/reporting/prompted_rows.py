"""Rows of a run in progress for a gallery: what was asked is at hand, the dataset is not read."""

from collections.abc import Sequence
from concurrent.futures import wait
from dataclasses import replace

from ..images.prepare import ImageSettings
from ..images.reader import ImageReader
from ..images.references import ImageBase
from ..records import Answered, FinishedRow, ImageRef, Prompt, QAPair
from .row_images import IMAGES_SECONDS, SampledImage, sampled_images
from .samples import SampledRow, with_images


def prompted_rows(
    prompts: Sequence[Prompt],
    outcomes: Sequence[FinishedRow | None],
    reader: ImageReader,
    images: ImageSettings,
) -> list[SampledRow]:
    """Rows with thumbnails of their images; those without an outcome are left out.

    Args:
        prompts: the rows.
        outcomes: their stored outcomes.
        reader: reads the images.
        images: limits on what is decoded.
    """
    done = [(p, outcome) for p, outcome in zip(prompts, outcomes, strict=True) if outcome]
    refs = [_own_images(prompt) for prompt, _ in done]
    futures = [reader.executor.submit(_thumbnails, own, reader, images) for own in refs]
    ready, late = wait(futures, IMAGES_SECONDS)
    for future in late:
        future.cancel()
    return [
        _sampled(prompt, outcome, future.result() if future in ready else ())
        for (prompt, outcome), future in zip(done, futures, strict=True)
    ]


def _own_images(prompt: Prompt) -> Sequence[ImageRef]:
    """The images that the last message with any shows; earlier ones are those of examples."""
    for message in reversed(prompt.messages):
        parts = message["content"] if isinstance(message["content"], list) else []
        numbers = [part["image"] for part in parts if part["type"] == "image"]
        if numbers:
            return [prompt.images[number] for number in numbers]
    return ()


def _thumbnails(
    refs: Sequence[ImageRef], reader: ImageReader, images: ImageSettings
) -> Sequence[SampledImage]:
    # They are resolved and permitted already.
    values = [ref.data if ref.path is None else ref.path for ref in refs]
    return sampled_images(values, [_name(ref) for ref in refs], reader, images, ImageBase())


def _name(ref: ImageRef) -> str:
    """Of a file, its name only: the folders of this machine concern nobody."""
    if ref.path is None or ref.path[:8].lower().startswith(("http://", "https://")):
        return str(ref)
    return ref.path.rpartition("/")[2]


def _pairs(answer: Answered) -> tuple[QAPair, ...]:
    """Its pairs; none if a parser of the user's gives something else."""
    try:
        return answer.pairs
    except (TypeError, ValueError, AttributeError):
        return ()


def _sampled(prompt: Prompt, outcome: FinishedRow, images: Sequence[SampledImage]) -> SampledRow:
    row = SampledRow(prompt.row, prompt.where, prompt.key, (), (), outcome.text or "")
    row = with_images(row, images)
    if not isinstance(outcome, Answered):
        return replace(row, kind=outcome.kind.value, reason=outcome.message)
    return replace(
        row,
        pairs=_pairs(outcome),
        style=outcome.style,
        prompt_tokens=outcome.prompt_tokens,
        completion_tokens=outcome.completion_tokens,
        latency=outcome.latency,
    )
