"""What in a folder is data: images by class, tables by split, and nothing that desktops and tools leave there."""

from __future__ import annotations

import contextlib
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
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
    "a split in a folder": (["train.csv", "dev/part.csv"], None, {"train": ["train.csv"], "dev": ["dev/part.csv"]}),
    "a split in data": (["train.csv", "data/dev.csv"], None, {"train": ["train.csv"], "dev": ["data/dev.csv"]}),
    "folders in a split": (
        ["train/a.csv", "train/more/b.csv"], None, {"train": ["train/a.csv", "train/more/b.csv"]}
    ),
    "older names of the hub": (
        ["data/train-00000-of-00001-a09b74b3ef9c3b56.parquet"], None,
        {"train": ["data/train-00000-of-00001-a09b74b3ef9c3b56.parquet"]},
    ),
    "configurations in data": (
        ["data/en/train.csv", "data/de/train.csv"], "de", {"train": ["data/de/train.csv"]}
    ),
    "other files": (["train.csv", "notes.txt", ".~lock.train.csv#", ".train.csv.swp"], None, {"train": ["train.csv"]}),
}  # fmt: skip


@pytest.mark.parametrize("case", TABLES)
def test_tables_that_are_found(case: str, tmp_path: Path) -> None:
    names, config, splits = TABLES[case]
    found = find_tables(make(tmp_path, *names), config)
    assert found is not None
    assert {name: [str(path.relative_to(tmp_path)) for path in files] for name, files in found.splits.items()} == splits


def test_other_configurations_are_counted(tmp_path: Path) -> None:
    found = find_tables(make(tmp_path, "train.csv", "extra/a.csv", "extra/b.csv"), None)
    assert found is not None
    assert found.left_out.notices(tmp_path) == (
        f"{tmp_path}: left out 2 tables of other configurations (a.csv, b.csv)",
    )


def test_a_link_to_nothing_is_refused(tmp_path: Path) -> None:
    make(tmp_path, "train.csv")
    (tmp_path / "dev.csv").symlink_to(tmp_path / "gone.csv")
    with pytest.raises(UserError, match=r"dev\.csv: it is a link to a file that does not exist \(remove or repair it"):
        find_tables(tmp_path, None)


def test_pictures_next_to_tables(tmp_path: Path) -> None:
    """A cloned repository has pictures of its own; a folder of pictures may be named after a split."""
    Image.new("RGB", (3, 2)).save(tmp_path / "x.png")
    picture = (tmp_path / "x.png").read_bytes()
    rows = datasets.Dataset.from_dict({"image": [{"bytes": picture, "path": None}] * 2, "label": ["a", "b"]})
    clone = make(tmp_path / "clone", "assets/logo.png", "figures/f.png")
    (clone / "data").mkdir()
    rows.to_parquet(str(clone / "data" / "train-00000-of-00001.parquet"))
    assert load_images(clone, max_eval_examples=0).label_names == ("a", "b")
    kaggle = make(tmp_path / "kaggle", "train_images/1.png", "test_images/2.png")
    with pytest.raises(
        UserError, match=r"has images in 'test_images', which is a split and not a class|'train_images'"
    ):
        load_images(kaggle)
    (kaggle / "train.csv").write_text("file,label\ntrain_images/1.png,x\ntest_images/2.png,y\n")
    splits = load_images(kaggle, image_column="file", max_eval_examples=0)
    assert splits.label_names == ("x", "y")


def test_numbered_classes_are_in_numeric_order(tmp_path: Path) -> None:
    splits = load_images(make(tmp_path, *(f"{number}/a.png" for number in (0, 1, 2, 10, 11))), max_eval_examples=0)
    assert splits.label_names == ("0", "1", "2", "10", "11")


def test_a_split_without_classes_is_left_out(tmp_path: Path) -> None:
    found, notices = found_images(make(tmp_path, "train/a/1.png", "train/b/2.png", "test/3.png", "docs/fig.png"))
    assert list(found) == ["train"]
    assert "2 folders with images of no class (docs, test)" in notices
    make(tmp_path, "Train/a/1.png")
    with pytest.raises(UserError, match="split 'train' is in Train and train"):
        found_images(tmp_path)


def test_images_that_a_list_lacks_are_counted(tmp_path: Path) -> None:
    make(tmp_path, "a.png", "b.png", "sub/c.png", "sub/d.png", "metadata.jsonl")
    (tmp_path / "metadata.csv").write_text("file_name,label\na.png,x\nsub/c.png,y\n")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "b.png", "label": "x"}\n')
    notices = load_images(tmp_path, max_eval_examples=0).notices
    assert f"{tmp_path}: left out 2 images that metadata.csv does not list (b.png, d.png)" in notices
    assert f"{tmp_path}: left out 1 further lists of images (metadata.jsonl)" in notices


def test_images_of_each_split_are_found_next_to_their_table(tmp_path: Path) -> None:
    for number, split in enumerate(("train", "val")):
        make(tmp_path, f"v1/{split}/1.png")
        Image.new("RGB", (3 + number, 2)).save(tmp_path / "v1" / split / "1.png")
        (tmp_path / "v1" / split / "t.csv").write_text("image,label\n1.png,x\n1.png,y\n")
    splits = load_images(tmp_path, dataset_config="v1", image_column="image")
    assert splits.eval is not None
    widths = [decode_image(split.rows["image"][:1][0]).size[0] for split in (splits.train, splits.eval)]
    assert widths == [3, 4]


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
        (["a/x.csv", "b/x.csv"], None, r"has 2 configurations \(set dataset_config to one of: a, b\)"),
        (
            ["data/en/x.csv", "data/de/train/x.csv"],
            None,
            r"has 2 configurations \(set dataset_config to one of: de, en",
        ),
        (["a/x.csv"], "c", r"^dataset_config: .* has no tables of a configuration 'c' \(it has: a\)"),
        (["train.csv", "train.tsv"], None, r"split 'train' has \.csv, \.tsv files \(keep one of them"),
        (["train.csv", "train.csv.gz"], None, r"split 'train' is in train\.csv and train\.csv\.gz \(keep one of them"),
        (["TRAIN.csv", "train.csv"], None, r"split 'train' is in TRAIN\.csv and train\.csv \(keep one of them"),
        (["Train/a.csv", "train/b.csv"], None, r"split 'train' is in 2 places: Train, train \(keep one of them"),
        (["train.csv", "data/train.csv"], None, r"split 'train' is in 2 places: \., data \(keep one of them"),
        (
            ["train.csv", "train-00000-of-00001.csv"],
            None,
            r"split 'train' is in one file and in parts, or in parts of s",
        ),
        (
            ["train-0-of-1.csv", "train-0-of-2.csv", "train-1-of-2.csv"],
            None,
            r"or in parts of several numbers \(keep one",
        ),
        (["train-00001-of-00002.csv", "train-00003-of-00002.csv"], None, r"split 'train' has 1 of 2 files \(copy or"),
        (["train-00000-of-00003.csv", "train-00002-of-00003.csv"], None, r"split 'train' has 2 of 3 files \(copy or"),
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
