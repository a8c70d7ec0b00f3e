import csv
import io
import random
from pathlib import Path
from typing import Any

import pytest
from prefect_imageqa.tasks.errors import DatasetError
from prefect_imageqa.tasks.loading import csv_format, long_records
from prefect_imageqa.tasks.loading.files import find_files
from prefect_imageqa.tasks.loading.tables import read_table
from prefect_imageqa.tasks.records import Problem

WESTERN = "image,question\na.png,Welche Größe hat\u2019s? \u2013 5 €\nb.png,où?\n"


def read(folder: Path, data: str | bytes, name: str = "d.csv") -> list[Any]:
    """The records as dicts, and the messages of problems."""
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    file_format = find_files(str(path)).format
    records = [record for _, record in read_table(str(path), name, file_format, None)]
    return [record.message if isinstance(record, Problem) else record for record in records]


def notes(folder: Path, name: str = "d.csv") -> tuple[str, ...]:
    return find_files(str(folder / name)).notes


def test_any_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    chance = random.Random(1)
    rows = [
        ["x", "y\r\n", 'quote"s', ""],
        *(
            ["".join(chance.choices('ab,;"\n\r\tü ', k=chance.randrange(9))) for _ in range(4)]
            for _ in range(300)
        ),
    ]
    rows = [row for row in rows if any(row)]
    text = io.StringIO(newline="")
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows(rows)
    expected = [{n: v or None for n, v in zip("wxyz", row, strict=True)} for row in rows]
    assert read(tmp_path, "w,x,y,z\r\n" + text.getvalue()) == expected


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("a.png,1,2", "has 3 cells, and the header names 2 columns; put a cell"),
        ("a.png", "has 1 cells, and the header names 2 columns; is it cut off?"),
        ('a.png,"never closed', "a quote is not closed"),
        ('a.png,"a" b', "a quote is not closed, or not written twice"),
        ("," * 1_000_001, "has more than 1,000,000 cells"),
        (b"a.png,caf\xe9", "is not utf-8 text; save the file as UTF-8"),
    ],
    ids=["too-many", "too-few", "unclosed-quote", "quote-in-cell", "commas", "encoding"],
)
def test_a_broken_line_costs_its_row(tmp_path: Path, line: str | bytes, reason: str) -> None:
    """Also far into the file, where no sample of its start can show it."""
    count = 140_000  # more than the sample of its start
    broken = line if isinstance(line, bytes) else line.encode()
    good = 'é.png,"two\nlines"\n'.encode()
    data = b"image,q\n" + b"a.png,1\n" * count + good + broken + b"\n" + good + b"z.png,9\n"
    *rows, before, problem, after, last = read(tmp_path, data)
    assert len(rows) == count
    assert before == after == {"image": "é.png", "q": "two\nlines"}
    assert problem.startswith(f"line {count + 4}")
    assert reason in problem
    assert last == {"image": "z.png", "q": "9"}


def test_an_unclosed_quote_takes_no_row_up_to_the_next_quote(tmp_path: Path) -> None:
    text = 'image,q\na.png,"open\nb.png,"closed"\nc.png,"x\ny"\n'
    problem, *rows = read(tmp_path, text)
    assert problem.startswith("line 2: a quote is not closed")
    assert rows == [{"image": "b.png", "q": "closed"}, {"image": "c.png", "q": "x\ny"}]


def test_an_unclosed_quote_is_noticed_after_so_many_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_format, "_MAX_LINES", 50)
    problem, *rows = read(tmp_path, 'image,q\na.png,"open\n' + "b.png,1\n" * 300 + 'c.png,"x"\n')
    assert problem.startswith("line 2: a quote is not closed")
    assert rows == [{"image": "b.png", "q": "1"}] * 300 + [{"image": "c.png", "q": "x"}]


@pytest.mark.parametrize("quote", ["", '"'], ids=["plain", "quoted"])
def test_a_record_that_is_too_long_costs_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quote: str
) -> None:
    monkeypatch.setattr(csv_format, "MAX_RECORD_BYTES", 1 << 21)
    monkeypatch.setattr(long_records, "MAX_RECORD_BYTES", 1 << 21)
    long = f"a.png,{quote}{'x' * (5 << 20)}{quote}\n"
    text = "image,q\n" + "b.png,1\n" * 200_000 + long + 'c.png,2\nd.png,"\n' + long + "e.png,3\n"
    *_, before, problem, after, unclosed, again, last = read(tmp_path, text)
    assert before == {"image": "b.png", "q": "1"}
    assert problem.startswith("line 200002 has 5 MB, and a record may have 2 MB; keep large images")
    assert after == {"image": "c.png", "q": "2"}
    assert unclosed.startswith("line 200004: a quote is not closed")
    assert again.startswith("line 200005 has 5 MB")
    assert last == {"image": "e.png", "q": "3"}


@pytest.mark.parametrize(
    ("encoding", "note"),
    [
        ("utf-8", ()),
        ("utf-8-sig", ()),
        ("cp1252", ("d.csv: read with encoding cp1252",)),
        ("utf-16", ("d.csv: read with encoding utf-16",)),
    ],
)
def test_encodings_are_recognised(tmp_path: Path, encoding: str, note: tuple[str, ...]) -> None:
    expected = [
        {"image": "a.png", "question": "Welche Größe hat\u2019s? \u2013 5 €"},
        {"image": "b.png", "question": "où?"},
    ]
    assert read(tmp_path, "image,q\na.png,Größe\n".encode(encoding))[0]["q"] == "Größe"
    assert read(tmp_path, WESTERN.encode(encoding)) == expected
    assert notes(tmp_path) == note


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("image,q\na.png,这是什么东西呢\nb.png,图片\n", "gbk"),
        ("image,q\na.png,Что это?\n", "cp1251"),
        ("image,q\na.png,Co było żółte i długie?\n", "cp1250"),
        ("image,q\na.png,これは何ですか\n", "shift-jis"),
        ("image,q\na.png,what?\n", "utf-16-le"),
    ],
    ids=["gbk", "cp1251", "cp1250", "shift-jis", "utf-16-without-mark"],
)
def test_other_encodings_are_refused(tmp_path: Path, text: str, encoding: str) -> None:
    """Read as cp1252, they would be nonsense that the model is asked."""
    with pytest.raises(DatasetError, match=r"d\.csv: cannot be read: it is no"):
        read(tmp_path, text.encode(encoding))


@pytest.mark.parametrize(
    ("name", "text", "note"),
    [
        ("d.csv", "image;q\na;What, where?\n", ("d.csv: read with delimiter semicolon",)),
        ("d.csv", "sep=;\nimage;q\na;What, where?\n", ("d.csv: read with delimiter semicolon",)),
        ("d.csv", "image\tq\na\tWhat, where?\n", ("d.csv: read with delimiter tab",)),
        ("d.csv", "image|q\r\na|What, where?\r\n", ("d.csv: read with delimiter pipe",)),
        ("d.tsv", "image\tq\na\tWhat, where?\n", ()),
        ("d.tsv", 'image,q\na,"What, where?"\n', ("d.tsv: read with delimiter comma",)),
        ("d.csv", 'image,q\na,"What, where?",\n', ()),
        ("d.csv", 'image,q\na,"What, where?"', ()),
    ],
    ids=["semicolon", "excel", "tab", "pipe", "tsv", "comma-in-tsv", "comma-at-end", "no-newline"],
)
def test_delimiters_are_recognised(
    tmp_path: Path, name: str, text: str, note: tuple[str, ...]
) -> None:
    assert read(tmp_path, text, name) == [{"image": "a", "q": "What, where?"}]
    assert notes(tmp_path, name) == note


def test_a_column_may_be_the_only_one_or_have_no_name(tmp_path: Path) -> None:
    """The usual delimiter is kept where no other fits better; pandas writes its index unnamed."""
    assert read(tmp_path, "image\na;b.png\n\nc.png\n") == [{"image": "a;b.png"}, {"image": "c.png"}]
    assert read(tmp_path, ",image\n0,a.png\n") == [{"Unnamed: 0": "0", "image": "a.png"}]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("image,q,q\na,1,2\n", "two columns are named 'q'; rename one"),
        ("image,q\na,1,2\nb,1,2\n", "the first line names fewer columns (2) than the next lines"),
        ('image,"q\na,1\n', "the header is broken: line 1: a quote is not closed"),
    ],
    ids=["duplicate", "narrow", "quote"],
)
def test_a_header_that_does_not_fit_is_an_error(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(DatasetError) as caught:
        read(tmp_path, text)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("header", "row", "question"),
    [
        (
            "index,image,question,A,B,C,D,hint,answer",
            "7,a.png,Which?,cat,dog,nan,,It barks.,B",
            "Hint: It barks.\nQuestion: Which?\nOptions:\nA. cat\nB. dog\n"
            "Please select the correct answer from the options above.",
        ),
        (
            "index,question,hint,A,B,C,D,E",
            "7,Which?,nan,1,2,3,,5",
            "Question: Which?\nOptions:\nA. 1\nB. 2\nC. 3\nE. 5\n"
            "Please select the correct answer from the options above.",
        ),
        ("index,question,A,B", "7,Which?,1,", "Which?"),
        ("index,question,B,C", "7,Which?,1,2", "Which?"),
        ("id,question,A,B", "7,Which?,1,2", "Which?"),
        ("index,question,A,B", "7,,1,2", None),
    ],
    ids=["hint", "gap", "one-option", "no-a", "no-index", "no-question"],
)
def test_options_of_a_multiple_choice_question_are_asked(
    tmp_path: Path, header: str, row: str, question: str | None
) -> None:
    """The prompt of VLMEvalKit; the columns stay."""
    (record,) = read(tmp_path, f"{header}\n{row}\n", "d.csv")
    cells = [cell or None for cell in row.split(",")]
    expected = dict(zip(header.split(","), cells, strict=True))
    assert record == {**expected, "question": question}


def test_an_index_in_place_of_an_image_is_that_row_s_image(tmp_path: Path) -> None:
    """The TSV files of VLMEvalKit, with cells of megabytes."""
    image = "A" * 2_000_000
    text = f"index\timage\tq\n0\t{image}\tx\n1\t0\ty\n2\t7\tz\n3\tb.png\tz\n"
    first, second, third, last = read(tmp_path, text, "d.tsv")
    assert first == {"index": "0", "image": image, "q": "x"}
    assert second == {"index": "1", "image": image, "q": "y"}
    assert "row with index 7" in third
    assert last["image"] == "b.png"
    assert read(tmp_path, "index\timage\n1\t2\n", "d.tsv") == [{"index": "1", "image": "2"}]
