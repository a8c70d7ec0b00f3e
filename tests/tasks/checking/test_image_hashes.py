"""Hashes of images, and which images are alike by them."""

import io
import random
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance
from prefect_imageqa.serving.demo_model.scenes import draw_scene, random_scene
from prefect_imageqa.tasks.checking import image_hashes
from prefect_imageqa.tasks.checking.image_hashes import (
    HASH,
    MAX_BITS,
    AlikeImages,
    Array,
    first_alike,
    hash_image,
)
from prefect_imageqa.tasks.images.prepare import ImageSettings
from prefect_imageqa.tasks.records import Kind, RowError

LIMITS = ImageSettings()


def encoded(image: Image.Image, kind: str = "PNG", **options: int) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def hashes_of(*images: bytes) -> Array:
    return np.frombuffer(b"".join(hash_image(image, LIMITS) for image in images), HASH)


def photo(seed: int) -> Image.Image:
    """A scene with soft light and grain, as a photograph has them."""
    rng, noise = random.Random(seed), np.random.default_rng(seed)
    scene = draw_scene(random_scene(rng), 400, 300, rng)
    light = Image.fromarray(noise.integers(0, 255, (5, 7, 3), np.uint8)).resize(scene.size)
    return Image.blend(scene, light, 0.5)


def circle(colour: str) -> Image.Image:
    image = Image.new("RGB", (192, 192), "white")
    ImageDraw.Draw(image).ellipse((50, 50, 140, 140), fill=colour)
    return image


def halved(image: Image.Image) -> bytes:
    return encoded(image.resize((image.width // 2, image.height // 2)))


@pytest.mark.parametrize(
    "copied",
    [
        halved,
        lambda image: encoded(image, "JPEG", quality=40),
        lambda image: encoded(image, "WEBP", quality=60),
        lambda image: encoded(image, "BMP"),
    ],
)
@pytest.mark.parametrize("seed", range(5))
def test_copies_are_alike(copied: Callable[[Image.Image], bytes], seed: int) -> None:
    image = photo(seed)
    first, differences = first_alike(hashes_of(encoded(image), copied(image)), [0, 1])
    assert first.tolist() == [0, 0]
    assert 0 <= differences[1] <= 4


@pytest.mark.parametrize(
    "other",
    [
        encoded(circle("red")),
        encoded(ImageEnhance.Brightness(circle("green")).enhance(0.7)),
        encoded(
            circle("green")
            .rotate(90)
            .transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            .crop((0, 40, 192, 192))
        ),
    ],
)
def test_other_colours_or_places_are_not_alike(other: bytes) -> None:
    first, _ = first_alike(hashes_of(encoded(circle("green")), other), [0, 1])
    assert first.tolist() == [0, 1]


def test_an_image_of_one_colour_has_one_hash_in_any_size() -> None:
    sizes = [(8, 8), (33, 47), (640, 480)]
    images = [encoded(Image.new("RGB", size, (200, 180, 33))) for size in sizes]
    assert first_alike(hashes_of(*images), range(3))[0].tolist() == [0, 0, 0]


def random_hashes(rng: np.random.Generator, count: int) -> Array:
    """Random hashes, of which every other one is like the one before it in shape and colours."""
    hashes = np.zeros(count, HASH)
    content = rng.integers(0, 256, (count, 16), np.uint8)
    hashes["content"] = content.view("V16").reshape(-1)
    hashes["shape"] = rng.integers(0, 1 << 64, count, np.uint64)
    hashes["colours"] = rng.integers(20, 230, (count, 768), np.uint8)
    for image in range(1, count, 2):
        flipped = rng.choice(64, int(rng.integers(0, MAX_BITS + 4)), replace=False)
        mask = sum(1 << int(bit) for bit in flipped)
        hashes["shape"][image] = hashes["shape"][image - 1] ^ np.uint64(mask)
        step = int(rng.integers(0, 7))
        hashes["colours"][image] = hashes["colours"][image - 1] + np.uint8(step)
    return hashes


def alike_by_definition(one: Array, other: Array) -> bool:
    bits = (int(one["shape"]) ^ int(other["shape"])).bit_count()
    gaps = np.abs(one["colours"].astype(int) - other["colours"].astype(int))
    return bits <= 6 and bool(gaps.mean() <= 4 and gaps.max() <= 48)


def test_the_index_finds_what_a_comparison_with_all_finds() -> None:
    hashes = random_hashes(np.random.default_rng(1), 600)
    known = AlikeImages(hashes)
    for image in range(0, 600, 2):
        known.add(image)
    found_by_any = 0
    for image in range(1, 600, 2):
        found, differences = known.find(hashes[image])
        expected = [n for n in range(0, 600, 2) if alike_by_definition(hashes[image], hashes[n])]
        assert found.tolist() == expected
        assert all(differences <= 4)
        found_by_any += bool(expected)
    assert 50 < found_by_any < 290  # both cases are there


def test_each_image_is_joined_to_the_first_in_the_given_order() -> None:
    hashes = np.zeros(4, HASH)
    hashes["content"] = np.arange(64, dtype=np.uint8).view("V16")
    hashes["colours"] = np.array([[100], [103], [106], [100]], np.uint8)
    first, differences = first_alike(hashes, [0, 1, 2, 3])
    assert first.tolist() == [0, 0, 2, 0]  # the third is only alike a copy
    assert differences.tolist() == [0, 3, 0, 0]
    assert first_alike(hashes, [2, 1, 3])[0].tolist() == [0, 2, 2, 3]


def test_one_small_object_makes_another_image() -> None:
    images = [Image.new("RGB", (160, 160), "white") for _ in range(3)]
    for image, colour in zip(images, ("red", "red", "pink"), strict=True):
        ImageDraw.Draw(image).ellipse((60, 60, 84, 84), fill=colour)
    hashes = hashes_of(*map(encoded, images))
    assert np.abs(hashes["colours"][0].astype(int) - hashes["colours"][2]).mean() < 4
    assert first_alike(hashes, range(3))[0].tolist() == [0, 0, 2]


def test_the_same_content_is_found_also_if_too_many_are_alike(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(image_hashes, "MAX_BUCKET", 0)
    hashes = np.zeros(3, HASH)
    hashes["content"] = np.array([1, 2, 1]).astype("V16")
    assert first_alike(hashes, [2, 1, 0])[0].tolist() == [2, 1, 2]


def test_work_is_bounded_for_images_of_one_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_hashes, "MAX_BUCKET", 10)
    hashes = random_hashes(np.random.default_rng(2), 200)
    hashes["shape"] = 7
    known = AlikeImages(hashes)
    for image in range(200):
        known.add(image)
    assert all(len(bucket) <= 10 for buckets in known._buckets for bucket in buckets.values())
    assert (
        known.find(hashes[3])[0].tolist()
        == [3, *([2] if alike_by_definition(hashes[2], hashes[3]) else [])][::-1]
    )


@pytest.mark.parametrize(
    ("data", "limits", "kind"),
    [
        (b"no image", LIMITS, Kind.NOT_AN_IMAGE),
        (encoded(circle("red"))[:200], LIMITS, Kind.IMAGE_BROKEN),
        (
            encoded(circle("red")),
            LIMITS.model_copy(update={"max_pixels": 100}),
            Kind.IMAGE_TOO_LARGE,
        ),
    ],
)
def test_hostile_files_are_refused(data: bytes, limits: ImageSettings, kind: Kind) -> None:
    with pytest.raises(RowError) as caught:
        hash_image(data, limits)
    assert caught.value.problem.kind is kind
