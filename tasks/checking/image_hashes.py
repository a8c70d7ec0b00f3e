"""Hashes of images by which copies are known again: scaled, encoded again, or slightly cropped.

A perceptual hash alone takes a red and a green circle for the same, and joins different scenes of
few shapes. So two images are alike only if their coarse colours are too.
"""

import hashlib
from collections.abc import Iterable
from functools import cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..images.prepare import ImageSettings, decode_image

Array: TypeAlias = npt.NDArray[Any]

HASH = np.dtype([("content", "V16"), ("shape", "<u8"), ("colours", "u1", (768,))])
"""Hash of an image: the first 128 bits of the SHA-256 of its file, its perceptual hash, and the
mean colours of 16 x 16 fields, in RGB."""

HASH_VERSION = 1
"""Increased when `hash_image` gives another hash."""

MAX_BITS = 6
"""Images alike differ in at most so many of the 64 bits of their perceptual hashes."""

MAX_DIFFERENCE = 4.0
"""The mean absolute difference of their colours is at most this, of 255."""

MAX_FIELD_DIFFERENCE = 48
"""None of their fields differs by more: the mean alone overlooks one small object. Copies that are
scaled or encoded again stay below 20, most crops of photographs of 5 % below this."""

_DECODED_SIDE = 128
"""Pixels of the longer side that an image is decoded to: a JPEG at a fraction of the work."""

_SIDE, _FREQUENCIES, _FIELDS = 32, 8, 16

_CHUNKS, _CHUNK_BITS = 4, 16
_NEIGHBOURS = (0, *(1 << bit for bit in range(_CHUNK_BITS)))
"""Of four parts of a hash, at least one differs in no more than one bit if all differ in six."""

MAX_BUCKET = 4096
"""Images with the same part of a hash that are compared: bounds the work for any set of images."""


def hash_image(data: bytes, limits: ImageSettings) -> bytes:
    """Hash an encoded image.

    Args:
        data: the file; untrusted.
        limits: on what is decoded.

    Returns:
        One `HASH`.

    Raises:
        RowError: it is no image, corrupted, or over the limits.
    """
    limits = limits.model_copy(update={"max_side": _DECODED_SIDE, "min_side": 1})
    pixels = decode_image(data, limits).convert("RGB")
    record = np.zeros(1, HASH)
    record["content"] = np.void(hashlib.sha256(data).digest()[:16])
    record["shape"] = _perceptual_hash(pixels)
    fields = pixels.resize((_FIELDS, _FIELDS), Image.Resampling.BOX)
    record["colours"] = np.asarray(fields, np.uint8).reshape(-1)
    return record.tobytes()


def _perceptual_hash(pixels: Image.Image) -> int:
    """Which of the 64 lowest frequencies are above their median, as 64 bits ("pHash")."""
    grey = pixels.convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    cosines = _cosines()
    frequencies = cosines @ np.asarray(grey, np.float64) @ cosines.T
    # Rounded: those of an image of one colour would be above or below zero by chance.
    frequencies = np.round(frequencies, 3)
    bits = frequencies > np.median(frequencies)
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


@cache
def _cosines() -> Array:
    """The lowest frequencies of the orthonormal cosine transform (DCT-II), 8 x 32."""
    steps = np.arange(_SIDE) + 0.5
    waves = np.cos(np.pi / _SIDE * np.outer(np.arange(_FREQUENCIES), steps))
    waves *= np.sqrt(2 / _SIDE)
    waves[0] *= np.sqrt(0.5)
    return waves


class AlikeImages:
    """Finds which of a set of images are alike another one, without comparing it with them all.

    Args:
        hashes: an array of `HASH`; images are numbers of its elements.
    """

    def __init__(self, hashes: Array) -> None:
        self._shapes: Array = np.ascontiguousarray(hashes["shape"])
        self._colours: Array = hashes["colours"]
        self._contents: Array = hashes["content"]
        self._first: dict[bytes, int] = {}
        self._buckets: list[dict[int, list[int]]] = [{} for _ in range(_CHUNKS)]

    def add(self, image: int) -> None:
        """Add an image to the set."""
        self._first.setdefault(self._contents[image].tobytes(), image)
        for buckets, part in zip(self._buckets, _parts(int(self._shapes[image])), strict=True):
            bucket = buckets.setdefault(part, [])
            if len(bucket) < MAX_BUCKET:
                bucket.append(image)

    def find(self, image: Any) -> tuple[Array, Array]:
        """The images of the set that are alike another one, and how much their colours differ.

        Args:
            image: one `HASH`.
        """
        shape, found = int(image["shape"]), list[int]()
        if (same := self._first.get(image["content"].tobytes())) is not None:
            found.append(same)  # also if its buckets are full
        for buckets, part in zip(self._buckets, _parts(shape), strict=True):
            for flipped in _NEIGHBOURS:
                if bucket := buckets.get(part ^ flipped):
                    found += bucket
        near = np.array(found, np.intp)
        near = near[_count_bits(self._shapes[near] ^ np.uint64(shape)) <= MAX_BITS]
        if not len(near):
            return near, np.empty(0)
        near = np.unique(near)
        others, own = self._colours[near], image["colours"]
        gaps = np.maximum(others, own) - np.minimum(others, own)
        differences: Array = gaps.sum(axis=1, dtype=np.uint32) / own.size
        alike = (differences <= MAX_DIFFERENCE) & (gaps.max(axis=1) <= MAX_FIELD_DIFFERENCE)
        return near[alike], differences[alike]


def first_alike(hashes: Array, images: Iterable[int]) -> tuple[Array, Array]:
    """For each image the first one that it is alike.

    An image is compared with those that are alike none before: what is alike a copy, but not the
    image that this is a copy of, counts as another image.

    Args:
        hashes: an array of `HASH`.
        images: numbers of its elements, without repetitions, in order.

    Returns:
        For each element the number of the first image that it is alike, which is its own if there
        is none; and how much their colours differ, from 0 to `MAX_DIFFERENCE`.
    """
    first = np.arange(len(hashes))
    differences = np.zeros(len(hashes), np.float32)
    places: dict[int, int] = {}
    known = AlikeImages(hashes)
    for place, image in enumerate(images):
        found, difference = known.find(hashes[image])
        if len(found):
            earliest = min(range(len(found)), key=lambda number: places[int(found[number])])
            first[image], differences[image] = found[earliest], difference[earliest]
        else:
            known.add(image)
            places[image] = place
    return first, differences


def _parts(shape: int) -> list[int]:
    return [shape >> _CHUNK_BITS * part & (1 << _CHUNK_BITS) - 1 for part in range(_CHUNKS)]


def _count_bits(values: Array) -> Array:
    """The number of bits that are set in each element of 64 bits."""
    halves = values.view(np.uint16).reshape(-1, 4)
    counts: Array = _bits_of_16()[halves].sum(axis=1, dtype=np.uint8)
    return counts


@cache
def _bits_of_16() -> Array:
    numbers = np.arange(1 << 16, dtype=np.uint16).view(np.uint8).reshape(-1, 2)
    counts: Array = np.unpackbits(numbers, axis=1).sum(axis=1, dtype=np.uint8)
    return counts
