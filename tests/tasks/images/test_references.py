import base64
import io
import unicodedata
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
import pytest
from PIL import Image
from prefect_imageqa.tasks.images import references
from prefect_imageqa.tasks.images.reader import ImageReader
from prefect_imageqa.tasks.images.references import ImageBase, image_refs
from prefect_imageqa.tasks.records import ImageRef, Kind, RowError

BYTES = b"not decoded here"
JPEG = b"\xff\xd8\xff\xfe\xff\xfb" + bytes(range(250))
TEXT = base64.b64encode(JPEG).decode()
URI = f"data:image/png;base64,{base64.b64encode(BYTES).decode()}"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset's folder with a.png and sub/b.png; the working directory is another, with c.png."""
    (tmp_path / "data" / "sub").mkdir(parents=True)
    (tmp_path / "cwd").mkdir()
    (tmp_path / "data" / "a.png").write_bytes(b"a")
    (tmp_path / "data" / "sub" / "b.png").write_bytes(b"b")
    (tmp_path / "cwd" / "c.png").write_bytes(b"c")
    (tmp_path / "cwd" / "a.png").write_bytes(b"a of cwd")
    monkeypatch.chdir(tmp_path / "cwd")
    return tmp_path / "data"


def read_all(value: Any, base: ImageBase) -> list[bytes]:
    with ImageReader(1000) as reader:
        return [reader.read(ref) for ref in image_refs(value, base)]


def problem_of(value: Any, base: ImageBase) -> RowError:
    with pytest.raises(RowError) as caught:
        image_refs(value, base)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("value", [None, "", "  ", [], {"bytes": None, "path": None}, b"", [None]])
def test_a_missing_value_gives_no_images(value: Any) -> None:
    assert image_refs(value, ImageBase()) == ()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a.png", [b"a"]),
        (" sub/b.png\n", [b"b"]),
        ("c.png", [b"c"]),
        (["sub/b.png", "a.png", "a.png"], [b"b", b"a", b"a"]),
        (("a.png", ["c.png"]), [b"a", b"c"]),
        (URI, [BYTES]),
        (URI.replace("data:image/png", "DATA:"), [BYTES]),
        (["a.png", URI], [b"a", BYTES]),
        ({"bytes": BYTES, "path": "missing.png"}, [BYTES]),
        ({"bytes": None, "path": "a.png"}, [b"a"]),
        ({"path": "a.png"}, [b"a"]),
        ([{"bytes": BYTES, "path": None}], [BYTES]),
        (BYTES, [BYTES]),
        (bytearray(BYTES), [BYTES]),
        ({"url": "a.png"}, [b"a"]),
        ({"type": "image", "image": "a.png"}, [b"a"]),
        ({"type": "image_url", "image_url": {"url": URI, "detail": "low"}}, [BYTES]),
        ([{"type": "image_url", "image_url": "a.png"}, {"image": BYTES}], [b"a", BYTES]),
        (TEXT, [JPEG]),
        ("\n".join(TEXT[i : i + 76] for i in range(0, len(TEXT), 76)), [JPEG]),
        (base64.urlsafe_b64encode(JPEG).decode().rstrip("="), [JPEG]),
        (f"data:image/jpeg;base64, {TEXT[:40]} {TEXT[40:]}", [JPEG]),
        (f"DATA: image/jpeg ; charset=utf-8 ; base64 ,{TEXT}", [JPEG]),
        (f"data:;base64,{TEXT.rstrip('=')}", [JPEG]),
        (f"data:image/jpeg,{TEXT}", [JPEG]),
        (f"data:image/jpeg;base64,{quote(TEXT, safe='')}", [JPEG]),
        (f"data:image/jpeg;base64,{base64.urlsafe_b64encode(JPEG).decode()}", [JPEG]),
        (r"sub\b.png", [b"b"]),
        (r"C:\sub\b.png", [b"b"]),
        ("D:/sub/b.png", [b"b"]),
        ("sub%2Fb.png", [b"b"]),
    ],
)
def test_every_form_of_an_image_column(folder: Path, value: Any, expected: list[bytes]) -> None:
    assert read_all(value, ImageBase(str(folder))) == expected


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("http://host/a.png", "http://host/a.png"),
        (" HTTPS://Host:443/a b.png?key=1#top\n", "https://host/a%20b.png?key=1"),
        ("http://127.0.0.1:8080/a.png", "http://127.0.0.1:8080/a.png"),
    ],
)
def test_a_web_url(url: str, path: str) -> None:
    for folder in (None, "/data", "s3://b/data"):
        assert image_refs([url], ImageBase(folder)) == (ImageRef(path=path),)


def test_a_file_name_may_contain_a_colon(folder: Path) -> None:
    (folder / "a:b.png").write_bytes(b"colon")
    assert read_all("a:b.png", ImageBase(str(folder))) == [b"colon"]


def test_absolute_paths_need_no_base(folder: Path) -> None:
    assert read_all(f"{folder}/a.png", ImageBase()) == [b"a"]
    assert read_all("a.png", ImageBase()) == [b"a of cwd"]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "CMYK", "F"])
def test_a_pil_image_is_encoded_as_png(mode: str) -> None:
    (ref,) = image_refs(Image.new(mode, (4, 3)), ImageBase())
    assert ref.data is not None
    again = Image.open(io.BytesIO(ref.data))
    assert (again.format, again.size) == ("PNG", (4, 3))


@pytest.mark.parametrize("mode", ["I", "F", "I;16B"])
def test_depths_in_a_pil_image_are_scaled_to_what_it_holds(mode: str) -> None:
    depths = Image.frombytes("I;16", (4, 1), b"\1\0\2\0\3\0\4\0")
    image = depths.convert("I") if mode == "I" else depths.convert("I").convert(mode)
    (ref,) = image_refs(image, ImageBase())
    with Image.open(io.BytesIO(ref.data or b"")) as again:
        assert again.convert("L").getextrema() == (0, 255)


def test_a_pil_image_is_stored_upright() -> None:
    image = Image.new("RGB", (4, 3))
    image.getexif()[0x0112] = 6
    (ref,) = image_refs(image, ImageBase())
    assert Image.open(io.BytesIO(ref.data or b"")).size == (3, 4)


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (
            "https://user:pw@host/a.png?sig=SECRET",
            Kind.IMAGE_REFUSED,
            "host/a.png has a user",
        ),
        ("http:///a.png?sig=SECRET", Kind.BAD_ROW, "not a complete http:// or https:// URL"),
        ("http:a.png", Kind.BAD_ROW, "not a complete http:// or https:// URL"),
        ("file:///etc/passwd", Kind.IMAGE_REFUSED, "file:// images are not fetched"),
        ("FILE:///etc/passwd", Kind.IMAGE_REFUSED, "file:// images are not fetched"),
        ("file://localhost/etc/passwd", Kind.IMAGE_REFUSED, "file:// images are not fetched"),
        ("file:/etc/passwd", Kind.IMAGE_REFUSED, "file:// images are not fetched"),
        ("File:etc/passwd", Kind.IMAGE_REFUSED, "file:// images are not fetched"),
        ("gs://bucket/a.png", Kind.IMAGE_REFUSED, "gs:// images are not fetched"),
        ("simplecache::file:///etc/passwd", Kind.IMAGE_MISSING, "no file 'simplecache::file"),
        ("a\0.png", Kind.BAD_ROW, "is not a path"),
        ("data:image/png;base64,AA$A", Kind.BAD_ROW, "invalid base64"),
        ("data:image/png;base64,AAAAA", Kind.BAD_ROW, "invalid base64"),
        ("data:image/png;base64,\xe9", Kind.BAD_ROW, "invalid base64"),
        ("data:image/png;base64,", Kind.BAD_ROW, "without data"),
        ("data:text/plain,hello", Kind.BAD_ROW, "must have the form data:image"),
        (17, Kind.BAD_ROW, "holds a int"),
        ([True], Kind.BAD_ROW, "holds a bool"),
        ({"type": "text", "text": "a.png"}, Kind.BAD_ROW, "holds a dict"),
        ({"url": "file:///etc/passwd"}, Kind.IMAGE_REFUSED, "file:// images are not fetched"),
        ([[[[[[[[[["a.png"]]]]]]]]]], Kind.BAD_ROW, "holds a list"),
        ("missing.png", Kind.IMAGE_MISSING, "no file 'missing.png' in "),
        (["a.png", "missing.png"], Kind.IMAGE_MISSING, "missing.png"),
        ("sub", Kind.IMAGE_MISSING, "no file 'sub'"),
        ("x" * 5000, Kind.BAD_ROW, "a text of 5,000 characters is no path, and no image in base64"),
        (f"{'x' * 300}.png", Kind.BAD_ROW, "a text of 304 characters is no path"),
        (f"{base64.b64encode(JPEG).decode()}x===", Kind.BAD_ROW, "in base64 with invalid base64"),
        (r"C:\data\none.png", Kind.IMAGE_MISSING, "it is a path of a Windows machine"),
        (r"\\server\none.png", Kind.IMAGE_MISSING, "it is a path of a Windows machine"),
        ("ü.png", Kind.IMAGE_MISSING, "(Unicode NFC and NFD)"),
        ("\ud800", Kind.BAD_ROW, r"'\ud800' is not a path"),
        ("s3://b/\ud800.png", Kind.BAD_ROW, r"'s3://b/\ud800.png' is not a path"),
        ("S3://b/\udcff.png", Kind.BAD_ROW, r"\udcff.png' is not a path"),
        ("\udcff.png", Kind.IMAGE_MISSING, r"\udcff.png"),
        ("a\nb", Kind.IMAGE_MISSING, r"'a\nb'"),
    ],
)
def test_an_unusable_value_is_reported_with_the_reason(
    folder: Path, value: Any, kind: Kind, text: str
) -> None:
    error = problem_of(value, ImageBase(str(folder)))
    assert error.problem.kind == kind
    assert text in str(error)
    assert len(str(error)) < 400
    assert "SECRET" not in str(error)
    assert "pw" not in str(error)


def test_a_missing_file_is_reported_with_all_folders_searched(folder: Path) -> None:
    error = problem_of("missing.png", ImageBase(str(folder)))
    assert str(error) == f"there is no file 'missing.png' in {folder} or {folder.parent}/cwd"


def test_only_the_image_root_is_searched(folder: Path) -> None:
    base = ImageBase(str(folder.parent / "cwd"), image_root=str(folder))
    assert read_all(["a.png", f"{folder}/sub/b.png", "sub/../a.png"], base) == [b"a", b"b", b"a"]
    assert problem_of("c.png", base).problem.kind == Kind.IMAGE_MISSING


def test_nothing_outside_the_image_root_is_read(folder: Path) -> None:
    (folder / "link.png").symlink_to(folder.parent / "cwd" / "c.png")
    (folder / "out").symlink_to(folder.parent / "cwd")
    (folder / "loop").symlink_to(folder / "loop")
    (folder.parent / "data-of-others").mkdir()
    (folder.parent / "data-of-others" / "d.png").write_bytes(b"d")
    base = ImageBase(str(folder), image_root=str(folder))
    for path in (
        "../cwd/c.png",
        "link.png",
        "out/c.png",
        f"{folder.parent}/cwd/c.png",
        f"{folder}-of-others/d.png",
        "s3://bucket/a.png",
        "/etc/passwd",
        "file:///etc/passwd",
        "FILE:///etc/passwd",
        "file:/etc/passwd",
        f"file://{folder}/a.png",
        "http://host/a.png",
        "HTTPS://host/a.png",
        f"http:{folder}/a.png",
    ):
        assert problem_of(path, base).problem.kind == Kind.IMAGE_REFUSED, path
    assert problem_of("loop", base).problem.kind in {Kind.BAD_ROW, Kind.IMAGE_MISSING}
    assert problem_of("x" * 5000, base).problem.kind in {Kind.BAD_ROW, Kind.IMAGE_MISSING}
    assert read_all(URI, base) == [BYTES]


@pytest.mark.parametrize(
    ("path", "root", "expected"),
    [
        ("a.png", None, "s3://b/data/a.png"),
        ("../images/a.png", None, "s3://b/images/a.png"),
        ("S3://other/a.png", None, "s3://other/a.png"),
        ("a.png", "s3://b/images", "s3://b/images/a.png"),
        ("s3://b/images/a.png", "s3://b/images", "s3://b/images/a.png"),
    ],
)
def test_paths_of_a_dataset_on_s3(path: str, root: str | None, expected: str) -> None:
    assert image_refs(path, ImageBase("s3://b/data", root)) == (ImageRef(path=expected),)


@pytest.mark.parametrize(
    ("path", "root"),
    [
        ("../../other/a.png", None),
        ("../a.png", "s3://b/images"),
        ("/etc/passwd", "s3://b/images"),
        ("s3://b/images/../a.png", "s3://b/images"),
        ("s3://b/images-of-others/a.png", "s3://b/images"),
        ("http://b/images/a.png", "s3://b/images"),
        ("file:///images/a.png", "s3://b/images"),
    ],
)
def test_no_path_leads_out_of_the_bucket_or_the_root_on_s3(path: str, root: str | None) -> None:
    assert problem_of(path, ImageBase("s3://b/data", root)).problem.kind == Kind.IMAGE_REFUSED


@pytest.mark.parametrize("root", [None, "s3://b/images"])
def test_a_name_that_s3_cannot_represent_is_no_path(root: str | None) -> None:
    base = ImageBase("s3://b/data", root)
    assert problem_of("\udcff.png", base).problem.kind == Kind.BAD_ROW


def test_a_missing_value_of_a_dataframe_gives_no_images() -> None:
    from prefect_imageqa.tasks.loading.table_formats import to_python

    for value in (pd.NA, pd.NaT, float("nan")):
        assert image_refs(to_python(value), ImageBase()) == ()


def test_an_image_with_a_corrupted_exif_block_is_usable() -> None:
    encoded = io.BytesIO()
    rotated = b"\x12\x01\x03\0\x01\0\0\0\x06\0\0\0"
    invalid = b"\x1a\x01\x01\0\x03\0\0\0\xf5O.\x22"  # a resolution that is not a number
    block = b"Exif\0\0II*\0\x08\0\0\0\x02\0" + rotated + invalid + b"\0\0\0\0"
    Image.new("RGB", (8, 4), "red").save(encoded, "JPEG", exif=block)
    with Image.open(encoded) as image, ImageReader(10_000) as reader:
        (ref,) = image_refs(image, ImageBase())
        shown = Image.open(io.BytesIO(reader.read(ref)))
    assert (shown.format, shown.size) == ("PNG", (4, 8))


def test_a_corrupted_pil_image_fails_only_its_row() -> None:
    encoded = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(encoded, "PNG")
    with Image.open(io.BytesIO(encoded.getvalue()[:-2000])) as image:
        assert problem_of(image, ImageBase()).problem.kind == Kind.IMAGE_BROKEN


@pytest.mark.parametrize("root", [False, True], ids=["folder", "root"])
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_composed_and_decomposed_names_are_the_same_file(
    folder: Path, form: Any, root: bool
) -> None:
    for name in ("학점 é.jpg", "Å\u0301 b.jpg"):
        (folder / unicodedata.normalize("NFD", name)).write_bytes(b"u")
        base = ImageBase(str(folder), str(folder) if root else None)
        assert read_all(unicodedata.normalize(form, name), base) == [b"u"]


def test_a_file_is_found_as_it_is_written_before_any_other_spelling(folder: Path) -> None:
    for name in ("a%20b.png", "a b.png", "c\\d.png", "\u00e9.png", "e\u0301.png"):
        (folder / name).write_bytes(name.encode())
        assert read_all(name, ImageBase(str(folder))) == [name.encode()]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a//b.png", "s3://b/data/a//b.png"),
        ("./a/../c//d.png", "s3://b/data/c//d.png"),
        ("..//a.png", "s3://b//a.png"),
        ("s3://b//a//b.png", "s3://b//a//b.png"),
    ],
)
def test_empty_parts_of_keys_on_s3_are_kept(path: str, expected: str) -> None:
    assert image_refs(path, ImageBase("s3://b/data")) == (ImageRef(path=expected),)


def test_a_confined_dataset_is_not_left(folder: Path) -> None:
    (folder / "link.png").symlink_to(folder.parent / "cwd" / "c.png")
    base = ImageBase(str(folder), is_confined=True)
    assert read_all(["a.png", f"{folder}/sub/b.png", URI], base) == [b"a", b"b", BYTES]
    assert image_refs("http://host/a.png", base) == (ImageRef(path="http://host/a.png"),)
    for path in ("../cwd/c.png", "link.png", f"{folder.parent}/cwd/c.png", "s3://b/a.png"):
        assert problem_of(path, base).problem.kind == Kind.IMAGE_REFUSED, path
    assert problem_of("c.png", base).problem.kind == Kind.IMAGE_MISSING


def test_a_confined_dataset_on_s3_stays_in_its_bucket(folder: Path) -> None:
    base = ImageBase("s3://b/data", is_confined=True)
    for path in ("a.png", "s3://b/data/a.png", "../data/a.png"):
        assert image_refs(path, base) == (ImageRef(path="s3://b/data/a.png"),)
    for path in (
        "s3://other/a.png",
        "s3://b2/a.png",
        "s3://b/../other/a.png",
        "S3://b//../other/a.png",
        f"{folder}/a.png",
        "../../other/a.png",
    ):
        assert problem_of(path, base).problem.kind == Kind.IMAGE_REFUSED, path


def test_too_many_images_are_refused_before_any_is_looked_up(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = ImageBase(str(folder))
    assert len(image_refs([["a.png"] * 2, {"path": "a.png"}, "", None], base, max_images=3)) == 3

    def look_up(*_: object) -> None:
        raise AssertionError("looked up")

    monkeypatch.setattr(references, "file_at", look_up)
    for value in (["a.png"] * 33, [["a.png"] * 11] * 3):
        with pytest.raises(RowError, match=r"33 images, more than max_images \(32\)") as caught:
            image_refs(value, base, max_images=32)
        assert caught.value.problem.kind is Kind.BAD_ROW
    with pytest.raises(RowError, match="the row has 1001 images"):
        image_refs(["a.png"] * 1001, base)
