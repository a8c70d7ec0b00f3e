import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from prefect_imageqa.serving.printable import printable
from prefect_imageqa.tasks.errors import ImageQAError
from prefect_imageqa.tasks.object_store import ObjectStore
from prefect_imageqa.tasks.prompting.style_files import (
    built_in_names,
    read_built_in,
    read_style,
)
from prefect_imageqa.tasks.records import ReplyForm

HEAD = "name: mine\nversion: 2\ndescription: My own.\nreply: pairs\n"
USER = "# user\nAsk about {{ caption }}.\n"
EXAMPLES = """# examples
## user
![one](a.png) ![](<sub/b c.png>) Which is red?
## assistant
The first.

## user
Another?

## assistant
Yes.
"""

Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a style file and two images beside it; gives its path."""
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    (tmp_path / "sub").mkdir()
    Image.new("RGB", (8, 8), "blue").save(tmp_path / "sub" / "b c.png")

    def write(body: str = USER, head: str = HEAD) -> str:
        (tmp_path / "mine.md").write_text(f"---\n{head}---\n{body}")
        return str(tmp_path / "mine.md")

    return write


def test_a_style_file_is_read(write: Write) -> None:
    file = read_style(
        write(
            f"\n# system\nBe {{{{ mood }}}}.\n\n{USER}\n## Rules\n```\n# comment\n```\n"
            f"<rules>\n# questions\nAsk.\n# answer\n{{{{ question }}}}!\n{EXAMPLES}",
            HEAD + 'type: "{{ mood }}"\ndraw:\n  mood: [sad, gay]\n  kind:\n    a: an A\n',
        )
    )
    assert (file.head.name, file.head.version, file.head.reply) == ("mine", 2, ReplyForm.PAIRS)
    assert file.head.draw == {"mood": {"sad": "sad", "gay": "gay"}, "kind": {"a": "an A"}}
    assert sorted(file.sections) == ["answer", "questions", "system", "user"]
    assert file.sections["user"].render({"caption": "it"}) == (
        "Ask about it.\n\n## Rules\n```\n# comment\n```\n<rules>"
    )
    assert file.type.render({"mood": "sad"}) == "sad"
    assert [turn.role for turn in file.examples] == ["user", "assistant"] * 2
    assert [turn.template.render({}) for turn in file.examples][:2] == [
        "Which is red?",
        "The first.",
    ]
    beside = [Path(file.where).parent / name for name in ("a.png", "sub/b c.png")]
    assert [image.data for image in file.images] == [path.read_bytes() for path in beside]


def test_windows_line_ends_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.md"
    path.write_bytes(b"\xef\xbb\xbf" + f"---\n{HEAD}---\n{USER}".replace("\n", "\r\n").encode())
    assert read_style(str(path)).sections["user"].render({"caption": "it"}) == "Ask about it."


def test_the_digest_depends_on_the_text_and_the_images(write: Write, tmp_path: Path) -> None:
    path = write(USER + EXAMPLES)
    before = read_style(path).digest
    assert read_style(path).digest == before
    Image.new("RGB", (8, 8), "green").save(tmp_path / "a.png")
    changed = read_style(path).digest
    assert len({before, changed, read_style(write(USER)).digest}) == 3


BROKEN = {
    "no head": ("", "x", "it must begin with a head"),
    "open head": ("", "---\nname: x\n", "it must begin with a head"),
    "empty head": ("", USER, "its head has no name"),
    "list": ("- a\n", USER, "its head has no name"),
    "keys that are no text": ("1: a\n", USER, "its head has no name"),
    "YAML": ("name: [\n", USER, "line 2: the head is not valid YAML"),
    "tag": ("name: !!python/object:os.system x\n", USER, "line 2: the head is not valid YAML"),
    "alias": (HEAD + "draw: &a\n  k: *a\n", USER, "line 7: the head has an alias (*), which a"),
    "merged alias": (
        HEAD + "x: &s3cr3t {}\ny:\n  <<: [*s3cr3t]\n",
        USER,
        "line 8: the head has an",
    ),
    "deep YAML": ("name: " + "[" * 2000 + "\n", USER, "the head is not valid YAML"),
    "missing": ("name: mine\nsecret: s3cr3t\n", USER, "the head has no description, reply, versi"),
    "unknown key": (HEAD + "seed: s3cr3t\n", USER, "head's seed is no key of a style; there are"),
    "name": (HEAD.replace("mine", "My s3cr3t"), USER, "head's name must be words of a-z"),
    "version": (HEAD.replace("2", "0"), USER, "head's version: input should be greater"),
    "version text": (HEAD.replace("2", "s3cr3t"), USER, "head's version: input should be a valid"),
    "two lines": (HEAD.replace("My own.", '"a\\nb"'), USER, "head's description"),
    "form": (HEAD.replace("pairs", "s3cr3t"), USER, "is none of pairs, dialogue, multiple_choice"),
    "questions": (HEAD.replace("pairs", "questions"), USER, "reply is that of a section"),
    "pairs": (HEAD + "pairs: 21\n", USER, "head's pairs: input should be less than"),
    "pairs of one": (HEAD.replace("pairs", "answer") + "pairs: 2\n", USER, "form answer is one"),
    "yes": (HEAD + "draw:\n  a: [yes, no]\n", USER, 'must be text: write it in quotes, such as "'),
    "no values": (HEAD + "draw:\n  a: []\n", USER, "draw: a has no values"),
    "slash": (HEAD + "draw:\n  a: [b/c]\n", USER, "draw: a value of a is empty, or has a /"),
    "variable": (HEAD + "draw:\n  A b: [c]\n", USER, "head's draw.A b"),
    "taken": (HEAD + "draw:\n  pairs: [c]\n", USER, "draw: pairs is a variable already"),
    "type": (HEAD + 'type: "{{ a() }}"\n', USER, "type, line 1: not allowed in a template: calls"),
    "no user": (HEAD, "# system\nBe.\n", "has no section `# user`"),
    "no section": (HEAD, "", "has no section `# user`"),
    "text before": (HEAD, f"Hello.\n{USER}", "line 7: text before the first section"),
    "unknown section": (HEAD, f"{USER}# usr\nx\n", "line 9: section `# usr` is none of system,"),
    "twice": (HEAD, f"{USER}{USER}", "line 9: section `# user` is there twice"),
    "empty": (HEAD, "# user\n\n# system\nx\n", "line 7: section `# user` is empty"),
    "template": (HEAD, "# user\nOne\n{{ range(9) }}\n", "line 9: not allowed in a template: calls"),
    "no answer": (HEAD, f"{USER}# examples\n## user\nx\n", "the last example has no `## assist"),
    "order": (HEAD, f"{USER}# examples\n## assistant\nx\n", "line 10: `## assistant` where an exa"),
    "no turn": (HEAD, f"{USER}# examples\nx\n", "line 10: text without a heading where an example"),
    "empty turn": (
        HEAD,
        f"{USER}# examples\n## user\n\n## assistant\nx\n",
        "line 10: `## user` of",
    ),
    "image of an answer": (
        HEAD,
        f"{USER}# examples\n## user\nx\n## assistant\n![](a.png)\n",
        "line 13: an image in an answer",
    ),
    "17 images": (
        HEAD,
        f"{USER}# examples\n## user\n" + "![](a.png)" * 17 + "\n## assistant\nx\n",
        "over 16 images",
    ),
}


@pytest.mark.parametrize(("head", "body", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_described_in_one_line(
    head: str, body: str, reason: str, write: Write, tmp_path: Path
) -> None:
    path = write(body, head)
    if "must begin" in reason:
        (tmp_path / "mine.md").write_text(body)
    with pytest.raises(ImageQAError) as caught:
        read_style(path)
    assert str(caught.value).startswith(path)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ("none.png", "none.png: not found"),
        ("mine.md", "(it is text)"),
        ("../mine.md", "give a path relative to the style file"),
        ("/etc/passwd", "give a path relative to the style file"),
        ("s3://bucket/a.png", "give a path relative to the style file"),
        ("http://127.0.0.1/a.png", "give a path relative to the style file"),
        ("link.png", "it is a link that leaves the folder"),
        ("large.png", "is larger than 2 MiB"),
        ("pipe.png", "pipe.png"),
        ("a\0.png", "it is no path that can be followed"),
        ("loop.png", "loop.png"),
    ],
)
def test_an_image_of_an_example_must_be_usable(
    image: str, reason: str, write: Write, tmp_path: Path
) -> None:
    path = write(f"{USER}# examples\n## user\n![]({image})\n## assistant\nx\n")
    (tmp_path / "link.png").symlink_to("/etc/hostname")
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "large.png").write_bytes(bytes(3 << 20))
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageQAError) as caught:
        read_style(path)
    assert str(caught.value).startswith(
        f"{path}, line 11: image {printable(image, 99)!r} of an example: "
    )
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("image", ["![" * 30_000, "![](" * 15_000, f"![]({' ' * 2_500}x"])
def test_broken_images_do_not_hold_up_a_run(image: str, write: Write) -> None:
    path = write(f"{USER}# examples\n## user\n{image}\n## assistant\nx\n")
    start = time.thread_time()
    with contextlib.suppress(ImageQAError):
        read_style(path)
    assert time.thread_time() - start < 2


def test_what_is_no_style_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.md")
    (tmp_path / "folder.md").mkdir()
    (tmp_path / "large.md").write_bytes(b"---\n" + b"x" * (65 << 10))
    (tmp_path / "binary.md").write_bytes(b"---\n\xff")
    for name, reason in {
        "none": "not found",
        "pipe": "not a regular file",
        "folder": "it is a folder",
        "large": "larger than 64 KiB",
        "binary": "not UTF-8 text",
    }.items():
        with pytest.raises(ImageQAError, match=reason) as caught:
            read_style(str(tmp_path / f"{name}.md"))
        assert "\n" not in str(caught.value)
    with pytest.raises(ImageQAError, match="ftp:// is not supported"):
        read_style("ftp://host/mine.md")


def test_a_style_on_s3_is_read_with_its_images(s3: str, write: Write, tmp_path: Path) -> None:
    write(USER + EXAMPLES)
    store = ObjectStore(uri=f"{s3}/styles")
    for name in ("mine.md", "a.png", "sub/b c.png"):
        store.write(name, (tmp_path / name).read_bytes())
    file = read_style(f"{s3}/styles/mine.md")
    assert file.digest == read_style(str(tmp_path / "mine.md")).digest
    store.remove("a.png")
    with pytest.raises(ImageQAError, match=r"'a\.png' of an example: s3://"):
        read_style(f"{s3}/styles/mine.md")
    with pytest.raises(ImageQAError, match=r"none\.md: not found"):
        read_style(f"{s3}/styles/none.md")


@pytest.mark.parametrize("name", built_in_names())
def test_each_built_in_style_is_valid(name: str) -> None:
    file = read_built_in(name)
    assert file.head.name == name
    assert file.head.example
