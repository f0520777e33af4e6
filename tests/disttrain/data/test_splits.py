"""Datasets of every kind are read from disk, and every mistake in them is reported in one line."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from disttrain.config.train_config import TrainConfig
from disttrain.data import array_cache, sources
from disttrain.data import splits as data
from disttrain.data.files.columns import dataset_table
from disttrain.data.pixels import decode_image
from disttrain.data.sources import Source
from disttrain.data.splits import Splits, choose_splits, load_splits
from disttrain.errors import UserError
from tests.disks import mounted

TEXTS = [f"text {number}" for number in range(20)]
LABELS = [number % 2 for number in range(20)]
ROWS = {"text": TEXTS, "label": LABELS}


def load(dataset: Path | str, **fields: Any) -> Splits:
    return load_splits(TrainConfig(model="bert", dataset=str(dataset), **fields).resolved(), "text")


def texts_of(splits: Splits, name: str = "train") -> list[str]:
    values: list[str] = getattr(splits, name).rows[splits.input_column][:]
    return values


def save_csv(path: Path, header: str, *rows: str) -> Path:
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


WRITERS: dict[str, Callable[[datasets.Dataset, str], Any]] = {
    "csv": datasets.Dataset.to_csv,
    "tsv": lambda rows, path: rows.to_csv(path, sep="\t"),
    "parquet": datasets.Dataset.to_parquet,
    "jsonl": datasets.Dataset.to_json,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_folder_of_files_named_after_splits(kind: str, tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict(ROWS)
    for part in range(2):
        WRITERS[kind](rows.select(range(part * 8, part * 8 + 8)), str(tmp_path / f"train-0000{part}-of-00002.{kind}"))
    WRITERS[kind](rows.select(range(16, 20)), str(tmp_path / f"dev.{kind}"))
    splits = load(tmp_path)
    assert texts_of(splits) == TEXTS[:16]
    assert texts_of(splits, "eval") == TEXTS[16:]
    assert splits.train.labels.tolist() == LABELS[:16]
    assert (splits.input_column, splits.label_names, splits.notices) == ("text", ("0", "1"), ())


@pytest.mark.parametrize("kind", WRITERS)
def test_one_file_holds_out_a_seeded_tenth(kind: str, tmp_path: Path) -> None:
    file = tmp_path / f"reviews.{kind}"
    WRITERS[kind](datasets.Dataset.from_dict(ROWS), str(file))
    splits = load(file, split_seed=5)
    assert splits.notices == (f"{file} has no evaluation split: held out 2 examples of 'train'",)
    assert sorted(texts_of(splits) + texts_of(splits, "eval")) == sorted(TEXTS)
    held_out = texts_of(splits, "eval")
    assert held_out == texts_of(load(file, split_seed=5), "eval") != texts_of(load(file, split_seed=6), "eval")
    assert held_out == texts_of(load(file, split_seed=5, seed=1), "eval"), "runs of other seeds have the same examples"
    complete = load(file, max_eval_examples=0)
    assert (complete.eval, complete.notices, len(complete.train)) == (None, (), 20)


def test_datasets_saved_to_disk(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict(ROWS)
    rows.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": rows, "validation": rows.select([3])}).save_to_disk(str(tmp_path / "several"))
    assert len(load(tmp_path / "one").train) == 18
    several = load(tmp_path / "several")
    assert several.eval is not None
    assert (len(several.train), len(several.eval)) == (20, 1)


def test_quotes_and_null_words_are_text(tmp_path: Path) -> None:
    file = save_csv(tmp_path / "a.tsv", "sentence\tlabel", '" said\t0', "null\t1", "it's \"so\t0", "NA\t1")
    assert texts_of(load(file, max_eval_examples=0)) == ['" said', "null", "it's \"so", "NA"]


@pytest.mark.parametrize("nested", [True, False])
def test_image_folders_with_and_without_splits(nested: bool, images: Path) -> None:
    folder = images if nested else images / "train"
    splits = load_splits(TrainConfig(model="vit", dataset=str(folder)).resolved(), "image")
    assert splits.label_names == ("cat", "dog")
    assert splits.eval is not None
    assert (len(splits.train), len(splits.eval)) == ((30, 11) if nested else (27, 3))
    assert bool(splits.notices) != nested


def test_the_images_of_the_repository(repository: Path) -> None:
    config = TrainConfig(model="vit", dataset=str(repository / "sweeps" / "data" / "cifar10"), max_eval_examples=3)
    splits = load_splits(config.resolved(), "image")
    assert splits.label_names[:2] == ("airplane", "automobile")
    assert splits.eval is not None
    assert [decode_image(value).size for value in splits.eval.rows["image"][:]] == [(32, 32)] * 3


def test_a_seeded_subset_has_all_classes(tmp_path: Path) -> None:
    file = save_csv(tmp_path / "a.csv", "text,label", *(f"text {number},{'abc'[number % 3]}" for number in range(40)))
    splits = load(file, max_train_examples=2, max_eval_examples=1, split_seed=1)
    assert splits.label_names == ("a", "b", "c")
    assert (len(splits.train), len(splits.eval or ())) == (2, 1)
    assert texts_of(splits) == texts_of(load(file, max_train_examples=2, split_seed=1))
    assert texts_of(splits) != texts_of(load(file, max_train_examples=2, split_seed=2))
    assert texts_of(splits) == texts_of(load(file, max_train_examples=5, split_seed=1))[:2]


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["10", "9", "2"], ("2", "9", "10")),
        (["pos", "neg", "neg"], ("neg", "pos")),
        (["-1", "1", "1"], ("-1", "1")),
        (["True", "False", "True"], ("False", "True")),
    ],
)
def test_class_names_are_sorted(labels: list[str], names: tuple[str, ...], tmp_path: Path) -> None:
    file = save_csv(tmp_path / "a.csv", "text,label", *(f"words,{label}" for label in labels))
    splits = load(file, max_eval_examples=0)
    assert splits.label_names == names
    assert [names[index] for index in splits.train.labels] == labels


def test_columns_are_found_by_name_or_type(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"title": ["a", "b"], "text": ["c", "d"], "sort": ["x", "y"]})
    rows.cast_column("sort", datasets.ClassLabel(names=["x", "y"])).save_to_disk(str(tmp_path / "d"))
    splits = load(tmp_path / "d", max_eval_examples=0)
    assert texts_of(splits) == ["c", "d"]
    assert splits.label_names == ("x", "y")
    assert texts_of(load(tmp_path / "d", text_column="title", max_eval_examples=0)) == ["a", "b"]


def test_the_split_to_evaluate_on() -> None:
    config = TrainConfig(model="bert", dataset="d")
    assert choose_splits(["train", "test", "unsupervised"], config) == ("train", ("test",))
    assert choose_splits(["train", "test", "validation"], config) == ("train", ("validation", "test"))
    assert choose_splits(["reviews"], config) == ("reviews", ())
    assert choose_splits(["train", "x"], dataclasses.replace(config, eval_split="x")) == ("train", ("x",))
    with pytest.raises(UserError, match=r"eval_split: split 'y' is not in d \(it has: 'train', 'x'\)"):
        choose_splits(["train", "x"], dataclasses.replace(config, eval_split="y"))


# The rows of a file, the fields of the config, and a part of the message.
MISTAKES: dict[str, tuple[list[str], dict[str, Any], str]] = {
    "no such column": (
        ["text,label", "a,0"],
        {"text_column": "body"},
        "text_column: column 'body' is not in the dataset (it has: 'text', 'label')",
    ),
    "no label column": (
        ["text,stars", "a,0"],
        {},
        "label_column: the dataset has no column for it (set label_column to one of: 'text', 'stars')",
    ),
    "two text columns": (
        ["a,b,label", "x,y,0"],
        {},
        "text_column: the dataset has 'a', 'b' (set text_column to one of: 'a', 'b', 'label')",
    ),
    "no rows": (["text,label"], {}, "split 'train' of the dataset is empty"),
    "missing labels": (["text,label", "a,x", "b,", "c,"], {}, "2 of 3 rows of split 'train' have no label in column"),
    "no labels": (
        ["text,label", "a,", "b,"],
        {},
        "label_column: no row of split 'train' has a label in column 'label'",
    ),
    "lists of texts": (
        ["text,label", "a,0"],
        {"text_pair_column": "body"},
        "text_pair_column: column 'body' is not in",
    ),
    "one class": (["text,label", "a,x", "b,x"], {}, "column 'label' of split 'train' has only one class, 'x'"),
    "no classes": (["text,label", "a,0.5", "b,0.7"], {}, "column 'label' of split 'train' has no classes"),
    "nothing to hold out": (["text,label", "a,0"], {}, "only one class"),
    "the label as text": (
        ["text,label", "a,x"],
        {"text_column": "label"},
        "text_column: 'label' is also the label_column (name another column)",
    ),
    "a configuration": (["text,label", "a,0"], {"dataset_config": "plain"}, "is a local path (drop dataset_config)"),
    "no such split": (["text,label", "a,0"], {"train_split": "fit"}, "train_split: split 'fit' is not in"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_file_mistakes_are_one_line(mistake: str, tmp_path: Path) -> None:
    lines, fields, message = MISTAKES[mistake]
    file = save_csv(tmp_path / "a.csv", *lines)
    with pytest.raises(UserError) as caught:
        load(file, **fields)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


IMAGES = {"path": ["a.png", "b.png"], "width": [3, 4], "label": [0, 1], "parts": [[0], [1]]}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_column": "width"}, "image_column: column 'width' contains numbers, not images or their paths"),
        ({"image_column": "parts"}, "image_column: column 'parts' contains lists, not images or their paths"),
        ({"image_column": "label"}, "image_column: 'label' is also the label_column (name another column)"),
        (
            {"image_column": "img"},
            "image_column: column 'img' is not in the dataset (it has: 'path', 'width', 'label', 'parts')",
        ),
        (
            {},
            "image_column: no column of the dataset holds images: 'path' holds text, 'width' holds numbers, 'label'"
            " holds numbers, 'parts' holds lists (set image_column to one of: 'path', 'width', 'label', 'parts')",
        ),
        (
            {"image_column": "path", "label_column": "parts"},
            "column 'parts' of split 'train' has no classes, but lists (use integers or words)",
        ),
    ],
)
def test_image_column_mistakes_are_one_line(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    datasets.Dataset.from_dict(IMAGES).save_to_disk(str(tmp_path))
    with pytest.raises(UserError) as caught:
        load_splits(TrainConfig(model="vit", dataset=str(tmp_path), **fields).resolved(), "image")
    assert str(caught.value) == message


def test_images_as_paths_bytes_and_both(tmp_path: Path) -> None:
    Image.new("RGB", (5, 4), (7, 7, 7)).save(tmp_path / "a.png")
    file = (tmp_path / "a.png").read_bytes()
    for name, value in (
        ("path", str(tmp_path / "a.png")),
        ("bytes", file),
        ("both", {"bytes": file, "path": None}),
    ):
        folder = tmp_path / name
        datasets.Dataset.from_dict({"picture": [value] * 2, "label": [0, 1]}).save_to_disk(str(folder))
        config = TrainConfig(model="vit", dataset=str(folder), image_column="picture", max_eval_examples=0)
        splits = load_splits(config.resolved(), "image")
        assert decode_image(splits.train.rows["picture"][[0]][0]).size == (5, 4)
        if name != "path":
            by_type = load_splits(dataclasses.replace(config, image_column=None).resolved(), "image")
            assert by_type.input_column == "picture"


def test_an_empty_split(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = dataset_table(datasets.Dataset.from_dict(ROWS))
    source = Source({"train": rows, "test": rows.select(np.array([], dtype=np.int64))})
    monkeypatch.setattr(data, "open_source", lambda *_: source)
    with pytest.raises(UserError, match="split 'test' of the dataset is empty"):
        load("someone/something")


def test_a_class_not_in_training_is_refused(tmp_path: Path) -> None:
    save_csv(tmp_path / "train.csv", "text,label", "a,0", "b,1")
    save_csv(tmp_path / "test.csv", "text,label", "a,0", "b,2")
    message = "label '2' in row 1 of split 'test' is out of range: the training split does not have it"
    with pytest.raises(UserError, match=message):
        load(tmp_path)


def test_a_split_with_withheld_labels_is_not_used(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]})
    rows = rows.cast_column("label", datasets.ClassLabel(names=["x", "y"]))
    hidden = datasets.Dataset.from_dict({"text": ["a"], "label": [-1]}, features=rows.features)
    datasets.DatasetDict({"train": rows, "test": hidden}).save_to_disk(str(tmp_path / "d"))
    splits = load(tmp_path / "d")
    assert splits.notices == (
        "split 'test' has no labels in column 'label': it is not used",
        f"{tmp_path / 'd'} has no evaluation split: held out 1 examples of 'train'",
    )
    assert splits.eval is not None
    assert (len(splits.train), len(splits.eval)) == (1, 1)
    with pytest.raises(UserError, match=r"^eval_split: split 'test' has no labels in column 'label' \(name another"):
        load(tmp_path / "d", eval_split="test")


def test_rows_without_a_label_are_left_out(tmp_path: Path) -> None:
    file = save_csv(tmp_path / "a.csv", "text,label", "a,0", "b,-1", "c,1", "d,")
    splits = load(file, max_eval_examples=0)
    assert (texts_of(splits), splits.train.labels.tolist()) == (["a", "c"], [0, 1])
    assert splits.train.numbers.tolist() == [0, 2]
    assert splits.notices == (
        "left out 2 of 4 rows of 'train' without a label in column 'label'; -1 counts as no label: if it is a class,"
        " write a word for it",
    )


@pytest.mark.parametrize(
    ("values", "kind"), [([["a"], ["b"]], "lists"), ([b"a", b"b"], "bytes"), ([{"a": 1}, {"a": 2}], "mappings")]
)
def test_what_a_column_holds_is_named(values: list[Any], kind: str, tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": values, "label": [0, 1]}).save_to_disk(str(tmp_path / "d"))
    message = f"^text_column: no column of the dataset holds text: 'text' holds {kind}, 'label' holds numbers "
    with pytest.raises(UserError, match=message):
        load(tmp_path / "d")
    with pytest.raises(UserError, match=f"^text_column: column 'text' contains {kind}, not text$"):
        load(tmp_path / "d", text_column="text")


@pytest.mark.process
def test_a_read_only_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HF_HOME is a site's shared cache: what this run makes is kept in a folder of the user's own."""
    (tmp_path / "own").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "own"))
    with mounted(tmp_path / "shared", "ro") as shared:
        monkeypatch.setenv("HF_DATASETS_CACHE", str(shared / "datasets"))
        datasets.Dataset.from_dict(ROWS).to_parquet(str(tmp_path / "train.parquet"))
        splits = load(tmp_path / "train.parquet", max_eval_examples=0)
    assert texts_of(splits) == TEXTS
    notice = f"{shared}/datasets cannot be written: what is made of the data is kept in {tmp_path}"
    assert splits.notices[0].startswith(notice)


def test_what_a_read_only_cache_has_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A site has prepared a dataset of the hub, which is opened without the hub."""
    shared, own = tmp_path / "shared", tmp_path / "own"
    own.mkdir()
    save_csv(tmp_path / "a.csv", "text,label", "a,x", "b,y")
    datasets.load_dataset("csv", data_files={"train": str(tmp_path / "a.csv")}, cache_dir=str(shared))
    (prepared,) = (path.parent for path in shared.glob("csv/*/*/*/dataset_info.json"))
    target = shared / "me___data" / "default" / "0.0.0" / "abc"
    target.parent.mkdir(parents=True)
    prepared.rename(target)
    (target / "csv-train.arrow").rename(target / "data-train.arrow")
    info = json.loads((target / "dataset_info.json").read_text())
    (target / "dataset_info.json").write_text(json.dumps(info | {"dataset_name": "data", "config_name": "default"}))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(shared))
    monkeypatch.setattr(tempfile, "tempdir", str(own))
    for module in (sources, array_cache):
        monkeypatch.setattr(module, "may_write", lambda path: not path.is_relative_to(shared))
    before = sorted(shared.rglob("*"))
    splits = load("me/data", max_eval_examples=0)
    assert (texts_of(splits), splits.label_names) == (["a", "b"], ("x", "y"))
    assert sorted(shared.rglob("*")) == before, "nothing is written there"


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ("no-one/nothing", "dataset 'no-one/nothing' cannot be read: .*OfflineMode.*sweep prefetch FILE fetches it"),
        ("data/of/mine", "dataset 'data/of/mine' does not exist"),
        ("/no/such/file.csv", "dataset '/no/such/file.csv' does not exist"),
    ],
)
def test_a_dataset_that_does_not_exist(dataset: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(dataset)


def test_unknown_file_types_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match="has no files of a known type"):
        load(tmp_path)
    with pytest.raises(UserError, match="is not a file of a known type"):
        load(tmp_path / "notes.txt")
    broken = tmp_path / "a.parquet"
    broken.write_bytes(b"PAR1, but not really")
    with pytest.raises(UserError, match=r"cannot be read: .*\(check the file\)"):
        load(broken)


def test_another_split_may_be_damaged(tmp_path: Path) -> None:
    save_csv(tmp_path / "train.csv", "text,label", "a,0", "b,1")
    save_csv(tmp_path / "dev.csv", "text,label", "a,0")
    save_csv(tmp_path / "test.csv", "text", "a")
    save_csv(tmp_path / "notes.csv", "what,ever", "a,b,c,d")
    assert load(tmp_path).notices == ()
    (tmp_path / "dev.csv").unlink()
    splits = load(tmp_path)
    assert splits.notices[0] == "split 'test' has no column 'label': it is not used"
    assert len(splits.train) == 1


def test_a_text_column_of_numbers(tmp_path: Path) -> None:
    file = save_csv(tmp_path / "a.csv", "id,text,label", "x,12,0", "y,034,1")
    assert texts_of(load(file, max_eval_examples=0)) == ["12", "034"]
