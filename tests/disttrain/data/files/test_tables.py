"""Table files lose nothing: every row is read as it is written, or refused with its file and line."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from disttrain.data.files import tables
from disttrain.data.files.columns import NUMBERS, TEXT, Table
from disttrain.data.files.table_files import table_format
from disttrain.data.files.tables import read_tables
from disttrain.errors import UserError
from tests.proofs.random_inputs import RANDOM_EXAMPLES


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def columns(table: Table) -> dict[str, list[Any]]:
    return {name: column[:] for name, column in table.columns.items()}


# The name of a file, its content, and its columns.
READ: dict[str, tuple[str, str | bytes, dict[str, list[Any]]]] = {
    "quotes": ("a.csv", 'text,label\n"a, ""b""\nc",1\nd,2\n', {"text": ['a, "b"\nc', "d"], "label": ["1", "2"]}),
    "a comma at the end of rows": ("a.csv", "text,label\na,1,\nb,2,\n", {"text": ["a", "b"], "label": ["1", "2"]}),
    "a comma at the end of all lines": (
        "a.csv",
        "text,label,\na,1,\nb,2,\n",
        {"text": ["a", "b"], "label": ["1", "2"]},
    ),
    "a comma at the end of the header": ("a.csv", "text,label,\na,1\n", {"text": ["a"], "label": ["1"]}),
    "codes": (
        "a.csv",
        "text,label\na,01\nb,A1\nc,1.0\nd,True\n",
        {"text": list("abcd"), "label": ["01", "A1", "1.0", "True"]},
    ),
    "words for nothing": (
        "a.csv",
        "text,label\nNA,1\nnull,2\n,3\n",
        {"text": ["NA", "null", ""], "label": ["1", "2", "3"]},
    ),
    "blank lines": ("a.csv", "\ntext,label\n\na,1\n\n", {"text": ["a"], "label": ["1"]}),
    "blanks in the header": ("a.csv", "text, label\na,1\n", {"text": ["a"], "label": ["1"]}),
    "a byte order mark": ("a.csv", b"\xef\xbb\xbftext,label\r\na,1\r\n", {"text": ["a"], "label": ["1"]}),
    "the index of pandas": ("a.csv", ",text\n0,a\n", {"": ["0"], "text": ["a"]}),
    "upper case": ("A.CSV", "text\na\n", {"text": ["a"]}),
    "plain tabs": ("a.tsv", '"so\t1\nit\'s "b"\t2\n', {'"so': ['it\'s "b"'], "1": ["2"]}),
    "quoted tabs": (
        "a.tsv",
        'text\tlabel\n"a\tb"\t1\n"say ""x"""\t2\n',
        {"text": ["a\tb", 'say "x"'], "label": ["1", "2"]},
    ),
    "a tab and a line end in quotes": (
        "a.tsv",
        'text\tlabel\n"a"\tx\n"c\td\ne"\ty\n',
        {"text": ["a", "c\td\ne"], "label": ["x", "y"]},
    ),
    "numbers of pandas": ("a.jsonl", '{"label": 1.0}\n{"label": null}\n', {"label": ["1", None]}),
    "a list in the only record": (
        "a.json",
        '{"text": "a", "label": 1, "spans": [{"from": 1}]}',
        {"text": ["a"], "label": ["1"], "spans": [""]},
    ),
    "quotes over two rows": ("a.tsv", 'text\tl\n"a\t1\nb"\t2\n', {"text": ['"a', 'b"'], "l": ["1", "2"]}),
    "json lines": (
        "a.jsonl",
        '{"text": "a", "label": 1}\n\n{"label": true, "text": null}\n{"text": "c"}\n',
        {"text": ["a", None, "c"], "label": ["1", "True", None]},
    ),
    "json lines in .json": ("a.json", '{"text": "a"}\n{"text": "b"}\n', {"text": ["a", "b"]}),
    "a json list": ("a.json", '[{"text": "a"},\n {"text": "b"}]', {"text": ["a", "b"]}),
    "json with a list": ("a.json", '{"version": 1, "data": [{"text": "a"}]}', {"text": ["a"]}),
    "json of columns": ("a.json", '{"text": ["a", "b"], "label": [0, 1]}', {"text": ["a", "b"], "label": ["0", "1"]}),
    "not a number": ("a.ndjson", '{"text": "a", "label": NaN}\n', {"text": ["a"], "label": [None]}),
    "half a pair": ("a.jsonl", '{"text": "\\ud83d"}\n', {"text": ["\ud83d"]}),
}


@pytest.mark.parametrize("case", READ)
@pytest.mark.parametrize("cached", [True, False])
def test_what_is_read(case: str, cached: bool, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, content, expected = READ[case]
    monkeypatch.setattr(tables, "_CACHED_FROM_BYTES", 0 if cached else 1_000_000)
    path = written(tmp_path, name, content)
    for _ in range(2):
        assert columns(read_tables([path])) == expected
    assert cache.exists() == cached


# The name of a file, its content, and the message after the path of the file.
REFUSED: dict[str, tuple[str, str | bytes, str]] = {
    "an unquoted comma": (
        "a.csv",
        "text,label\na,1\nb, c,2\n",
        "line 3 has 3 fields, but the header has 2 (quote each te",
    ),
    "a short row": ("a.csv", 'text,label\n"a\nb",1\nc\n', "line 4 has 1 field, but the header has 2"),
    "a tab": (
        "a.tsv",
        "text\tlabel\na\tb\t1\n",
        "line 2 has 3 fields, but the header has 2 (a text must not contain a tab)",
    ),
    "an open quote": (
        "a.csv",
        'text,label\na,1\n"b,2\nc,3\n',
        "the row in line 3 cannot be read: unexpected end of data (",
    ),
    "more after a quote": (
        "a.csv",
        'text,label\n"b"x,2\n',
        "the row in line 2 cannot be read: ',' expected after '\"' (",
    ),
    "Latin-1": (
        "a.csv",
        "text,label\na,1\nfa\xe7ade,2\n".encode("latin-1"),
        "line 3 is not UTF-8 text: it has the byte 0xe7 (",
    ),
    "UTF-16": ("a.csv", "text,label\na,1\n".encode("utf-16"), "the file is UTF-16 text (save it as UTF-8)"),
    "semicolons": (
        "a.csv",
        "text;label\na;1\n",
        "the only column is 'text;label': its fields seem to be separated by semicolons",
    ),
    "nothing": ("a.csv", "", "the file has no header (name the columns in its first line)"),
    "one name twice": ("a.csv", "text,text\na,b\n", "column 'text' occurs twice (give each column its own name)"),
    "several lists": (
        "a.json",
        '{"train": [{"a": 1}], "test": [{"a": 1}]}',
        "it holds several lists: 'train', 'test' (",
    ),
    "a pointer": (
        "a.csv",
        "version https://git-lfs.github.com/spec/v1\n",
        "it is a pointer of Git LFS, not the data (git l",
    ),
    "a column for each row": (
        "a.json",
        json.dumps({str(n): {"a": 1} for n in range(2000)}),
        "it has 2000 columns (each row",
    ),
    "a cut line": ("a.jsonl", '{"text": "a"}\n{"text": "b', "line 2 is not JSON: Unterminated string starting at ("),
    "a list in a line": ("a.jsonl", "[1]\n", "line 1 is [1], not an object"),
    "no rows": ("a.json", "[1, 2]", "it holds no rows (write a list of objects, or one object in each line)"),
    "no JSON": ("a.json", "hello", "line 1 is not JSON: Expecting value ("),
    "columns of other lengths": ("a.json", '{"a": [1], "b": []}', "its columns differ in length"),
    "deep": ("a.jsonl", '{"a": ' + "[" * 100_000, "line 1 is nested too deeply"),
    "no gzip": ("a.csv.gz", "text,label\n", "the file cannot be read: Not a gzipped file"),
    "half a gzip": (
        "a.csv.gz",
        gzip.compress(b"text,label\n" + bytes(range(32, 127)) * 99)[:60],
        "the file cannot be read: Com",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str, tmp_path: Path) -> None:
    name, content, message = REFUSED[case]
    path = written(tmp_path, name, content)
    with pytest.raises(UserError) as caught:
        read_tables([path])
    assert str(caught.value).startswith(f"{path}: {message}")


@pytest.mark.parametrize(("suffix", "compress"), [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)])
def test_compressed_files_are_read(suffix: str, compress: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = written(tmp_path, f"train.csv.{suffix}", compress(b"text,label\na,1\n"))
    assert columns(read_tables([path])) == {"text": ["a"], "label": ["1"]}


def test_the_format_is_that_of_the_suffix() -> None:
    names = ["a.csv", "A.TSV", "a.jsonl.XZ", "a.parquet", "a.parquet.gz", "a.csv.zip", "a", "csv", "a.gz"]
    formats = [".csv", ".tsv", ".jsonl", ".parquet", None, None, None, None, None]
    assert [table_format(Path(name)) for name in names] == formats


def test_a_column_of_numbers_is_known(tmp_path: Path) -> None:
    """The text column is then found next to numbers; a late word makes a column text."""
    rows = "".join(f"{number},{number / 4},{'x' if number == 10_500 else number},\n" for number in range(11_000))
    table = read_tables([written(tmp_path, "a.csv", f"id,score,code,empty\n{rows}")])
    assert {name: column.kind for name, column in table.columns.items()} == {
        "id": NUMBERS, "score": NUMBERS, "code": TEXT, "empty": TEXT,
    }  # fmt: skip
    assert table["code"][10_499:10_502] == ["10499", "x", "10501"]
    mixed = read_tables([written(tmp_path, "a.jsonl", '{"a": [1], "b": {"c": 1}}\n{"a": "x", "b": null}\n')])
    assert [column.kind for column in mixed.columns.values()] == ["lists", "mappings"]


def test_rows_of_several_files(tmp_path: Path) -> None:
    first = written(tmp_path, "train-0-of-2.csv", "text,label\na,1\n")
    second = written(tmp_path, "train-1-of-2.csv", "label,text\n2,b\n")
    table = read_tables([first, second])
    assert columns(table) == {"text": ["a", "b"], "label": ["1", "2"]}
    second.write_text("text\nb\n")
    with pytest.raises(UserError, match="it has no column 'label', which other files have"):
        read_tables([first, second])
    shards = [written(tmp_path, f"{name}.jsonl", text) for name, text in (("a", '{"x": 1}\n'), ("b", '{"y": 2}\n'))]
    assert columns(read_tables(shards)) == {"x": ["1", None], "y": [None, "2"]}


def test_rows_are_chosen(tmp_path: Path) -> None:
    table = read_tables([written(tmp_path, "a.csv", "text,n\na,0\nb,1\nc,2\nd,3\n")])
    chosen = table.select(np.array([3, 1, 2])).select(np.array([2, 0]))
    assert columns(chosen) == {"text": ["c", "d"], "n": ["2", "3"]}
    assert (len(chosen), chosen["text"][[1]], table["n"][1:3]) == (2, ["d"], ["1", "2"])
    assert columns(table.only(["n"])) == {"n": ["0", "1", "2", "3"]}


def test_a_long_text_is_read_alike_each_time(tmp_path: Path) -> None:
    """Python's reader refuses texts of 128 kB until it is told otherwise."""
    content = 'text\tlabel\n"' + 'x ""y"" ' * 30_000 + '"\t1\n'
    table = read_tables([written(tmp_path, "a.tsv", content)])
    assert table["text"][:][0].startswith('x "y" x')


def test_blanks_around_columns_of_parquet(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text ": ["a"]}).to_parquet(str(tmp_path / "a.parquet"))
    assert list(read_tables([tmp_path / "a.parquet"]).columns) == ["text"]


def test_a_replaced_file_is_read_again(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one of the same size and modification time, which rsync and cp -p keep."""
    monkeypatch.setattr(tables, "_CACHED_FROM_BYTES", 0)
    path = written(tmp_path, "a.csv", "text\na\n")
    os.utime(path, ns=(10**18, 10**18))
    assert columns(read_tables([path])) == {"text": ["a"]}
    other = written(tmp_path, "b.csv", "text\nb\n")
    os.utime(other, ns=(10**18, 10**18))
    other.replace(path)
    assert columns(read_tables([path])) == {"text": ["b"]}
    path.write_text("text\nc\n")
    os.utime(path, ns=(10**18, 10**18))
    assert columns(read_tables([path])) == {"text": ["c"]}


def test_a_replaced_parquet_file_is_read_again(tmp_path: Path, cache: Path) -> None:
    datasets = pytest.importorskip("datasets")
    for text in ("a", "b"):
        datasets.Dataset.from_dict({"text": [text]}).to_parquet(str(tmp_path / f"{text}.parquet"))
        os.utime(tmp_path / f"{text}.parquet", ns=(10**18, 10**18))
    assert columns(read_tables([tmp_path / "a.parquet"])) == {"text": ["a"]}
    (tmp_path / "b.parquet").replace(tmp_path / "a.parquet")
    assert columns(read_tables([tmp_path / "a.parquet"])) == {"text": ["b"]}


cells = st.text(st.characters(codec="utf-8"), max_size=6) | st.sampled_from(
    ['"', ",", "\t", "\n", "\r", "01", "-1", ""]
)
bits = st.sampled_from(
    [b"text", b"label", b",", b"\t", b'"', b"\n", b"\r\n", b"a", b"1", b"{", b"}", b"[", b"]", b":", b"\xff", b"\0"]
)


@settings(max_examples=RANDOM_EXAMPLES)
@given(
    name=st.sampled_from(["a.csv", "a.tsv", "a.json", "a.jsonl", "a.csv.gz"]),
    parts=st.lists(bits | st.binary(max_size=3), max_size=30),
)
def test_any_bytes_are_read_or_refused(name: str, parts: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = written(tmp_path_factory.getbasetemp(), name, b"".join(parts))
    lengths: set[int] = set()
    with contextlib.suppress(UserError):  # which is always one line
        lengths = {len(column[:]) for column in read_tables([path]).columns.values()}
    assert len(lengths) <= 1


@settings(max_examples=RANDOM_EXAMPLES)
@given(rows=st.lists(st.tuples(cells, cells), min_size=1, max_size=5), name=st.sampled_from(["a.csv", "a.jsonl"]))
def test_what_others_write_is_read(
    rows: list[tuple[str, str]], name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    import csv

    path = tmp_path_factory.getbasetemp() / name
    with path.open("w", newline="", encoding="utf-8") as file:
        if name == "a.csv":
            writer = csv.writer(file)
            writer.writerows([("text", "label"), *rows])
        else:
            file.writelines(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows)
    table = columns(read_tables([path]))
    assert [table.get(column, []) for column in ("text", "label")] == [
        [row[0] for row in rows],
        [row[1] for row in rows],
    ]
