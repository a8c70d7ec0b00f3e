import copy
import os
import pickle
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from prefect_imageqa.tasks.prompting.keys import (
    KEY_LENGTH,
    KEY_VERSION,
    KeyList,
    RequestSpec,
    batch_key,
    problem_key,
    row_key,
)
from prefect_imageqa.tasks.prompting.style import Rendered
from prefect_imageqa.tasks.records import Asked, ReplyForm, Row

SPEC = RequestSpec(
    model="m",
    model_revision="r1",
    sampling={"temperature": 0.7, "seed": 42, "extra": {"a": [1, 2], "b": None}},
    images={"max_side": 1024, "jpeg_quality": 90},
)
IMAGES = ["sha256:aa", "etag:bb:7"]
MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "Sei knapp. ü"},
    {"role": "user", "content": [{"type": "image", "image": 0}, {"type": "text", "text": "?"}]},
]
ASKED = Asked("?", style="short@1")


def key_of(
    messages: Sequence[Any] = MESSAGES,
    *,
    images: Sequence[str] = IMAGES,
    asked: Asked = ASKED,
    options: Mapping[str, Any] = {},
    sample: int = 0,
    spec: RequestSpec = SPEC,
) -> str:
    return row_key(images, Rendered(tuple(messages), asked, options=options), sample, spec)


KEY = key_of()


def test_the_key_of_a_row_does_not_change_by_accident() -> None:
    """A change here makes every answer in every output count as missing."""
    assert (KEY_VERSION, KEY) == (5, "11113a57697841c30363b592e2ad273f")


def test_a_key_is_32_hex_digits() -> None:
    assert len(KEY) == KEY_LENGTH == 32
    assert bytes.fromhex(KEY).hex() == KEY


def test_equal_input_has_equal_keys() -> None:
    reordered = replace(
        SPEC,
        sampling={"extra": {"b": None, "a": (1, 2)}, "seed": 42, "temperature": 0.7},
        images={name: SPEC.images[name] for name in reversed(list(SPEC.images))},
    )
    messages = tuple(dict(reversed(message.items())) for message in copy.deepcopy(MESSAGES))
    assert key_of(messages, images=tuple(IMAGES), spec=reordered) == KEY
    assert key_of(spec=pickle.loads(pickle.dumps(SPEC))) == KEY  # noqa: S301


def test_another_process_computes_the_same_keys() -> None:
    seed = "1" if os.environ.get("PYTHONHASHSEED") == "0" else "0"  # another one than this process
    program = (
        "from prefect_imageqa.tasks.prompting.keys import *\n"
        "from prefect_imageqa.tasks.prompting.style import Rendered\n"
        "from prefect_imageqa.tasks.records import Asked\n"
        f"spec = RequestSpec({SPEC.model!r}, {SPEC.model_revision!r}, {dict(SPEC.sampling)!r},"
        f" {dict(SPEC.images)!r})\n"
        f"rendered = Rendered(tuple({MESSAGES!r}), Asked('?', 'short@1'))\n"
        f"print(row_key({IMAGES!r}, rendered, 0, spec), batch_key(['a', 'b'], [0, 2]))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": seed, "LC_ALL": "C"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [KEY, batch_key(["a", "b"], [0, 2])]


CHANGES: dict[str, dict[str, Any]] = {
    "model": {"model": "m2"},
    "model_revision": {"model_revision": "r2"},
    "sampling value": {"sampling": {**SPEC.sampling, "temperature": 0.8}},
    "sampling option": {"sampling": {**SPEC.sampling, "min_p": 0.1}},
    "sampling list": {"sampling": {**SPEC.sampling, "extra": {"a": [2, 1], "b": None}}},
    "images": {"images": {**SPEC.images, "max_side": 512}},
}


@pytest.mark.parametrize("change", CHANGES)
def test_each_setting_changes_the_key(change: str) -> None:
    assert key_of(spec=replace(SPEC, **CHANGES[change])) != KEY


def test_every_field_of_the_spec_is_covered() -> None:
    fields = set(RequestSpec.__dataclass_fields__)
    assert fields == {name for change in CHANGES.values() for name in change}


@pytest.mark.parametrize(
    "images",
    [[], IMAGES[:1], IMAGES[::-1], [*IMAGES, IMAGES[0]], ["sha256:aaetag:bb:7"]],
    ids=["none", "one", "other-order", "one-more", "joined"],
)
def test_each_image_changes_the_key(images: list[str]) -> None:
    assert key_of(images=images) != KEY


@pytest.mark.parametrize(
    "messages",
    [
        MESSAGES[1:],
        MESSAGES[::-1],
        [{**MESSAGES[0], "content": "Sei knapp. u"}, MESSAGES[1]],
        [{**MESSAGES[0], "role": "user"}, MESSAGES[1]],
        [MESSAGES[0], {**MESSAGES[1], "content": MESSAGES[1]["content"][::-1]}],
    ],
    ids=["no-system", "other-order", "other-text", "other-role", "text-first"],
)
def test_each_message_changes_the_key(messages: list[dict[str, Any]]) -> None:
    assert key_of(messages) != KEY


@pytest.mark.parametrize(
    "change",
    [
        {"asked": replace(ASKED, question="Other?")},
        {"asked": replace(ASKED, style="short@2")},
        {"asked": replace(ASKED, form=ReplyForm.ANSWER)},
        {"asked": replace(ASKED, type="t")},
        {"asked": replace(ASKED, language="French")},
        {"options": {"response_format": {"type": "json_object"}}},
        {"sample": 1},
    ],
    ids=[*Asked.__dataclass_fields__, "options", "sample"],
)
def test_what_is_asked_changes_the_key(change: dict[str, Any]) -> None:
    assert key_of(**change) != KEY


def test_text_cannot_imitate_structure() -> None:
    def key(content: str, model: str = "m") -> str:
        messages = [{"role": "user", "content": content}]
        return key_of(messages, images=[], spec=replace(SPEC, model=model))

    assert key('a"}]') != key("a")
    assert key("\ud800") != key("?")
    assert key("b", "a") != key("", "ab")


def test_a_row_with_a_problem_is_identified_by_location_and_content() -> None:
    def key(where: str = "d:1", **record: Any) -> str:
        return problem_key(Row(0, record, where))

    assert key(a=1) == key(a=1)
    assert len({key(a=1), key(a=2), key("d:2", a=1), key(), key(a=b"1"), key(a=b"2")}) == 6
    assert len(key(a=float("nan"), b=2**70, c="\ud800", d=object)) == KEY_LENGTH


def test_a_batch_is_identified_by_its_rows_and_their_attempts() -> None:
    key = batch_key(iter(["a", "b"]), iter([0, 1]))
    assert key == batch_key(["a", "b"], (0, 1))
    others = [
        batch_key(["b", "a"], [0, 1]),
        batch_key(["a", "b"], [0, 0]),
        batch_key(["a", "b"], [0, 2]),
        batch_key(["a"], [0]),
        batch_key(["a", "b", "c"], [0, 1, 0]),
        batch_key(["a", "b"], [0, 1], "run"),
    ]
    assert len({key, *others}) == 7
    assert len(key) == KEY_LENGTH


def test_a_key_list_is_a_compact_sequence_of_keys() -> None:
    keys, packed = [f"{number:032x}" for number in range(1000)], KeyList()
    for key in keys:
        packed.append(key)
    assert list(packed) == keys
    assert (len(packed), packed[0], packed[-1]) == (1000, keys[0], keys[-1])
    assert packed[10:20:3] == keys[10:20:3]
    assert keys[7] in packed
    with pytest.raises(IndexError):
        packed[1000]
    assert len(packed._packed) == 16_000
    assert list(KeyList()) == []
