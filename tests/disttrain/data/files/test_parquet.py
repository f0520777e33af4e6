"""Parquet files of texts, whole numbers and classes are read as `datasets` reads them, and once for all processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from disttrain.data.files import parquet
from disttrain.data.files.columns import CLASSES, NUMBERS, TEXT
from disttrain.data.files.tables import read_tables
from disttrain.data.labels import read_labels

datasets = pytest.importorskip("datasets")
pyarrow = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

PLAIN: dict[str, Any] = {
    "texts": {"text": (["a", "", "ü\n", None], "string")},
    "long texts": {"text": (["a", "b", None], "large_string")},
    "text views": {"text": (["a", "a text of more than twelve bytes", None], "string_view")},
    "small numbers": {"n": ([1, -128, None], "int8")},
    "large numbers": {"n": ([0, 2**64 - 1], "uint64")},
    "blanks in a name": {" text ": (["a"], "string"), "label": ([1], "int64")},
    "many rows": {"text": ([f"text {row}" for row in range(25_000)], "string")},
}
OTHERS: dict[str, Any] = {
    "floats": {"x": ([1.0, None], "float64")},
    "booleans": {"x": ([True, None], "bool")},
    "bytes": {"x": ([b"a"], "binary")},
    "lists": {"x": ([["a"]], None)},
    "mappings": {"x": ([{"from": 1}], None)},
    "words by number": {"x": (pyarrow.array(["a", "b", "a"]).dictionary_encode(), None)},
}


def written(path: Path, columns: dict[str, Any]) -> Path:
    types = {"string": pyarrow.string(), "large_string": pyarrow.large_string(), "binary": pyarrow.binary(),
             "string_view": pyarrow.string_view(), "bool": pyarrow.bool_()}  # fmt: skip
    arrays = {
        name: values if kind is None else pyarrow.array(values, types.get(kind) or getattr(pyarrow, kind)())
        for name, (values, kind) in columns.items()
    }
    pq.write_table(pyarrow.table(arrays), path)
    return path


def values(table: Any) -> dict[str, list[Any]]:
    return {name: [None if v is None else str(v) for v in column[:]] for name, column in table.columns.items()}


@pytest.mark.parametrize("case", PLAIN)
def test_plain_columns_are_read_as_datasets_reads_them(
    case: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "a.parquet", PLAIN[case])
    theirs = parquet._read_with_datasets([path], "theirs")
    with monkeypatch.context() as patched:
        patched.setattr(parquet, "_read_with_datasets", None)
        ours = read_tables([path])
        again = read_tables([path])
    assert values(ours) == values(theirs) == values(again)
    assert {name: column.kind for name, column in ours.columns.items()} == {
        name: column.kind for name, column in theirs.columns.items()
    }
    assert all(column.kind in (TEXT, NUMBERS) for column in ours.columns.values())


@pytest.mark.parametrize("case", OTHERS)
def test_other_columns_are_read_by_datasets(case: str, tmp_path: Path, cache: Path) -> None:
    path = written(tmp_path / "a.parquet", {**OTHERS[case], "text": (["a"] * len(OTHERS[case]["x"][0]), "string")})
    assert parquet._plain_header([path]) is None
    assert read_tables([path])["text"][:] == ["a"] * len(OTHERS[case]["x"][0])


def test_classes_keep_their_names_and_order(tmp_path: Path, cache: Path) -> None:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["good", "bad"])}
    )
    rows = datasets.Dataset.from_dict({"text": list("abcd"), "label": [1, 0, -1, None]}, features=features)
    rows.to_parquet(str(tmp_path / "a.parquet"))
    column = read_tables([tmp_path / "a.parquet"])["label"]
    assert (column.kind, column.class_names) == (CLASSES, ("good", "bad"))
    assert column[:] == [1, 0, -1, None]
    labels = read_labels(column, "label", "train")
    assert (labels.names, labels.indices.tolist(), labels.rows.tolist()) == (("good", "bad"), [1, 0], [0, 1])


def test_files_of_different_columns_are_refused_by_datasets(tmp_path: Path, cache: Path) -> None:
    first = written(tmp_path / "a.parquet", PLAIN["texts"])
    second = written(tmp_path / "b.parquet", PLAIN["small numbers"])
    assert parquet._plain_header([first, second]) is None


WARM = """
import json, sys
from pathlib import Path
from disttrain.data.files.tables import read_tables
table = read_tables([Path(sys.argv[1])])
libraries = sorted({"datasets", "pandas", "pyarrow"} & set(sys.modules))
print(json.dumps({"text": table["text"][:], "libraries": libraries}))
"""


@pytest.mark.process
def test_a_file_that_was_read_before_needs_no_library(tmp_path: Path, cache: Path, repository: Path) -> None:
    path = written(tmp_path / "a.parquet", PLAIN["texts"])
    read = [
        json.loads(
            subprocess.run(
                [sys.executable, "-c", WARM, path], cwd=repository, capture_output=True, text=True, check=True
            ).stdout
        )
        for _ in range(2)
    ]
    assert read[0]["text"] == read[1]["text"] == ["a", "", "ü\n", None]
    assert "datasets" not in read[0]["libraries"]
    assert read[1]["libraries"] == []


@pytest.mark.parametrize(
    "described",
    [
        {"info": {"features": {"spans": [{"from": {"dtype": "int64", "_type": "Value"}}]}}},  # of a former release
        {"info": None},
        {"info": {"features": None}},
        [],
    ],
)
def test_any_description_of_a_file(described: Any, tmp_path: Path, cache: Path) -> None:
    table = pyarrow.table({"text": ["a"], "spans": [[{"from": 1}]]})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(described)}), tmp_path / "a.parquet")
    assert parquet._plain_header([tmp_path / "a.parquet"]) is None
    pq.write_table(table.select(["text"]).replace_schema_metadata({"huggingface": "{"}), tmp_path / "b.parquet")
    assert parquet._plain_header([tmp_path / "b.parquet"]) is None


def test_a_label_of_another_type_is_a_number(tmp_path: Path, cache: Path) -> None:
    """`datasets` trusts the description of a file only if its types are still those that were described."""
    described = {"info": {"features": {"label": {"names": ["good", "bad"], "_type": "ClassLabel"}}}}
    table = pyarrow.table({"label": pyarrow.array([0, 2], pyarrow.int8())})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(described)}), tmp_path / "a.parquet")
    assert read_tables([tmp_path / "a.parquet"])["label"].kind == NUMBERS


def test_a_file_without_rows(tmp_path: Path, cache: Path) -> None:
    table = pyarrow.table({"text": pyarrow.array([], pyarrow.string())})
    pq.write_table(table, tmp_path / "a.parquet")
    assert read_tables([tmp_path / "a.parquet"])["text"][:] == []
