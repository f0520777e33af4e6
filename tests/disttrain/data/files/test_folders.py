"""What in a folder is data: images by class, tables by split, and nothing that desktops and tools leave there."""

from __future__ import annotations

import contextlib
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from disttrain.config.train_config import TrainConfig
from disttrain.data.files.folders import find_images, find_tables, image_suffixes
from disttrain.data.pixels import decode_image
from disttrain.data.splits import Splits, load_splits
from disttrain.errors import UserError
from tests.proofs.random_inputs import RANDOM_EXAMPLES


def make(folder: Path, *names: str) -> Path:
    """A folder with these files, which are empty."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def found_images(folder: Path, *split_names: str) -> tuple[dict[str, list[str]], tuple[str, ...]]:
    """The images of each split, as class: path, and the notices without the folder."""
    found = find_images(folder, split_names)
    assert found is not None
    splits = {
        name: [f"{class_name}: {path.relative_to(folder)}" for path, class_name in images]
        for name, images in found.splits.items()
    }
    return splits, tuple(text.removeprefix(f"{folder}: left out ") for text in found.left_out.notices(folder))


def load_images(folder: Path, **fields: Any) -> Splits:
    return load_splits(TrainConfig(model="vit", dataset=str(folder), **fields).resolved(), "image")


# Some files, what is found, and the notices.
FOUND: dict[str, tuple[list[str], Mapping[str, Sequence[str]], tuple[str, ...]]] = {
    "what tools leave": (
        ["cat/a.png", "dog/b.png", ".ipynb_checkpoints/a-checkpoint.png", "__MACOSX/cat/._a.png", "cat/.DS_Store",
         "cat/Thumbs.db", "dog/.ipynb_checkpoints/b-checkpoint.png", "@eaDir/x.png"],
        {"train": ["cat: cat/a.png", "dog: dog/b.png"]},
        ("6 hidden or system files (.ipynb_checkpoints, @eaDir, __MACOSX, ...)",),
    ),
    "hidden folders next to splits": (
        ["train/cat/a.png", "val/cat/b.png", ".trash/cat/c.png", "train/.cache/d.png", "README.md"],
        {"train": ["cat: train/cat/a.png"], "val": ["cat: val/cat/b.png"]},
        ("1 files next to the splits (README.md)", "2 hidden or system files (.cache, .trash)"),
    ),
    "subfolders of a class": (
        ["cat/a.png", "dog/b.png", "bird/2021/05/c.png", "bird/d.png"],
        {"train": ["bird: bird/d.png", "bird: bird/2021/05/c.png", "cat: cat/a.png", "dog: dog/b.png"]},
        (),
    ),
    "every class in subfolders": (
        ["cat/2020/a.png", "dog/2021/b.png"], {"train": ["cat: cat/2020/a.png", "dog: dog/2021/b.png"]}, ()
    ),
    "any suffix of Pillow": (
        ["cat/a.JPG", "cat/b.ppm", "cat/c.tga", "cat/d.jp2", "cat/e.txt", "dog/f.JPeG"],
        {"train": ["cat: cat/a.JPG", "cat: cat/b.ppm", "cat: cat/c.tga", "cat: cat/d.jp2", "dog: dog/f.JPeG"]},
        ("1 other files (e.txt)",),
    ),
    "images next to classes": (
        ["train/cat/a.png", "train/x.png", "train/y.png", "val/cat/b.png", "val/z.png"],
        {"train": ["cat: train/cat/a.png"], "val": ["cat: val/cat/b.png"]},
        ("3 images that are in no class folder (x.png, y.png, z.png)",),
    ),
    "tables next to classes": (
        ["cat/a.png", "dog/b.png", "labels.csv"],
        {"train": ["cat: cat/a.png", "dog: dog/b.png"]},
        ("1 other files (labels.csv)",),
    ),
    "an empty class": (
        ["cat/a.png", "dog/notes.txt"],
        {"train": ["cat: cat/a.png"]},
        ("1 folders without images (dog)", "1 other files (notes.txt)"),
    ),
    "splits in upper case": (
        ["Train/cat/a.png", "TEST/cat/b.png"],
        {"train": ["cat: Train/cat/a.png"], "test": ["cat: TEST/cat/b.png"]}, ()
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FOUND)
def test_images_that_are_found(case: str, tmp_path: Path) -> None:
    names, splits, notices = FOUND[case]
    found, left_out = found_images(make(tmp_path, *names))
    assert {name: sorted(images) for name, images in found.items()} == {
        name: sorted(images) for name, images in splits.items()
    }
    assert left_out == notices


def test_a_split_that_the_config_names(tmp_path: Path) -> None:
    make(tmp_path, "fit/cat/a.png", "holdout/cat/b.png")
    assert list(found_images(tmp_path)[0]) == ["train"], "two classes"
    assert list(found_images(tmp_path, "fit", "holdout")[0]) == ["fit", "holdout"]


def test_splits_are_no_classes(tmp_path: Path) -> None:
    make(tmp_path, "train/a.png", "val/b.png")
    with pytest.raises(
        UserError, match=r"train' has images, but none in the folder of a class \(move them to train/CLASS"
    ):
        find_images(tmp_path)


def test_a_folder_without_images(tmp_path: Path) -> None:
    assert find_images(make(tmp_path, "a/notes.txt", ".b/c.png")) is None


def test_composed_and_decomposed_names_are_one_class(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
    make(tmp_path, f"{composed}/a.png", f"{decomposed} /b.png", "dog/c.png")
    found, _ = found_images(tmp_path)
    assert {image.split(":")[0] for image in found["train"]} == {composed, "dog"}


def test_a_loop_of_links_ends(tmp_path: Path) -> None:
    make(tmp_path, "cat/a.png", "dog/b.png")
    (tmp_path / "cat" / "again").symlink_to(tmp_path / "cat")
    (tmp_path / "bird").symlink_to(tmp_path / "dog")
    found, _ = found_images(tmp_path)
    assert found == {"train": ["bird: bird/b.png", "cat: cat/a.png", "dog: dog/b.png"]}


def test_only_what_pillow_decodes_is_an_image() -> None:
    suffixes = image_suffixes()
    assert {".png", ".jpeg", ".tif", ".webp", ".pgm", ".ico"} <= suffixes
    assert not {".h5", ".pdf", ".mpg", ".txt", ".csv"} & suffixes


@pytest.mark.parametrize("split", ["", "train/"])
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_metadata_that_list_images(split: str, suffix: str, tmp_path: Path) -> None:
    """The Hub's ImageFolder: file_name is the path of an image, relative to the file."""
    names = ["a.png", "b.png", "more/c.png"]
    make(tmp_path, *(f"{split}{name}" for name in names))
    for name in names:
        Image.new("RGB", (3, 2), (7, 7, 7)).save(tmp_path / split / name)
    rows = [(name, label) for name, label in zip(names, ["x", "y", "x"], strict=True)]
    lines = ["file_name,label", *(f"{name},{label}" for name, label in rows)]
    if suffix == "jsonl":
        lines = [f'{{"file_name": "{name}", "label": "{label}"}}' for name, label in rows]
    (tmp_path / split / f"metadata.{suffix}").write_text("\n".join(lines) + "\n")
    splits = load_images(tmp_path, max_eval_examples=0)
    assert (splits.input_column, splits.label_names, splits.train.labels.tolist()) == ("image", ("x", "y"), [0, 1, 0])
    assert [decode_image(value).size for value in splits.train.rows["image"][:]] == [(3, 2)] * 3


def test_paths_in_a_table_are_relative_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "data/images/a.png", "elsewhere/x")
    Image.new("RGB", (3, 2)).save(tmp_path / "data" / "images" / "a.png")
    absolute = tmp_path / "data" / "images" / "a.png"
    (tmp_path / "data" / "t.csv").write_text(f"file,label\nimages/a.png,0\n{absolute},1\n")
    monkeypatch.chdir(tmp_path / "elsewhere")
    for dataset in (tmp_path / "data" / "t.csv", Path("../data/t.csv")):
        splits = load_images(dataset, image_column="file", max_eval_examples=0)
        assert [decode_image(value).size for value in splits.train.rows["file"][:]] == [(3, 2)] * 2


# Some files, a configuration, and the files of each split.
TABLES: dict[str, tuple[list[str], str | None, dict[str, list[str]]]] = {
    "a cloned repository": (
        ["dataset_infos.json", "README.md", ".gitattributes", "data/train-00000-of-00001.parquet", "data/test.parquet"],
        None,
        {"test": ["data/test.parquet"], "train": ["data/train-00000-of-00001.parquet"]},
    ),
    "upper case and compression": (
        ["TRAIN.CSV", "dev.csv.gz"], None, {"train": ["TRAIN.CSV"], "dev": ["dev.csv.gz"]}
    ),
    "a folder for each split": (
        ["train/a.jsonl", "train/b.jsonl", "test/a.jsonl"], None,
        {"train": ["train/a.jsonl", "train/b.jsonl"], "test": ["test/a.jsonl"]},
    ),
    "the only configuration": (["plain_text/train.csv"], None, {"train": ["plain_text/train.csv"]}),
    "one of the configurations": (
        ["a/train.csv", "b/train.csv", "b/test.csv"], "b", {"train": ["b/train.csv"], "test": ["b/test.csv"]}
    ),
    "other files": (["train.csv", "notes.txt", ".~lock.train.csv#", ".train.csv.swp"], None, {"train": ["train.csv"]}),
}  # fmt: skip


@pytest.mark.parametrize("case", TABLES)
def test_tables_that_are_found(case: str, tmp_path: Path) -> None:
    names, config, splits = TABLES[case]
    found = find_tables(make(tmp_path, *names), config)
    assert found is not None
    assert {name: [str(path.relative_to(tmp_path)) for path in files] for name, files in found.splits.items()} == splits


def test_what_is_left_out_is_named(tmp_path: Path) -> None:
    names = ["train.csv", "notes.txt", ".DS_Store", "dataset_infos.json"]
    found = find_tables(make(tmp_path, *names), None)
    assert found is not None
    assert found.left_out.notices(tmp_path) == (
        f"{tmp_path}: left out 1 files about the data (dataset_infos.json)",
        f"{tmp_path}: left out 1 hidden or system files (.DS_Store)",
        f"{tmp_path}: left out 1 other files (notes.txt)",
    )


@pytest.mark.parametrize(
    ("names", "config", "message"),
    [
        (["a/x.csv", "b/x.csv"], None, r"has tables in 2 folders \(set dataset_config to one of: a, b\)"),
        (["a/x.csv"], "c", r"^dataset_config: .* has no folder 'c' \(its folders: a\)"),
        (["train.csv", "train.tsv"], None, r"has \.csv, \.tsv files of one split \(give a folder with one format\)"),
    ],
)
def test_tables_that_are_refused(names: list[str], config: str | None, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        find_tables(make(tmp_path, *names), config)


parts = st.sampled_from(
    ["train", "val", "cat", "dog", ".git", "__MACOSX", "a.png", "b.JPG", "c.txt", "metadata.csv", "t.csv", "é", "x y"]
)


@settings(max_examples=RANDOM_EXAMPLES)
@given(paths=st.lists(st.lists(parts, min_size=1, max_size=4), max_size=8))
def test_any_folder_is_read_or_refused(paths: list[list[str]], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("any")
    for path in paths:
        target = folder.joinpath(*path)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.touch()
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            continue
    for kind in ("image", "text"):
        config = TrainConfig(model="vit" if kind == "image" else "bert", dataset=str(folder), max_eval_examples=0)
        with contextlib.suppress(UserError):  # which is always one line
            load_splits(config.resolved(), "image" if kind == "image" else "text")
