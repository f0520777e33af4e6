"""Opens datasets: from the hub, files, folders of files or of images, and datasets saved to disk."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, load_dataset

from disttrain.errors import UserError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
# The suffix of a data file -> the loader of `datasets` and its options. No word stands for a missing value by default:
# "null" and "NA" are ordinary texts.
_CSV = {"keep_default_na": False}
_LOADERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".csv": ("csv", _CSV),
    ".tsv": ("csv", {**_CSV, "sep": "\t", "quoting": 3}),  # csv.QUOTE_NONE
    ".parquet": ("parquet", {}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
}
_ACCEPTED = (
    "a hub id, a csv, tsv, parquet or json file, a folder of these files or of images, or a dataset saved to disk"
)
_SHARD = re.compile(r"-\d+-of-\d+$")
_HUB_ID = re.compile(r"^[\w.-]+(/[\w.-]+)?$")


def open_source(dataset: str, dataset_config: str | None) -> Mapping[str, Dataset]:
    """All splits of a dataset, by name.

    Args:
        dataset: A hub id or a path.
        dataset_config: The name of a configuration, for a dataset of the hub.

    Raises:
        UserError: The dataset does not exist, or cannot be read.
    """
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    path = Path(dataset).expanduser()
    if path.exists() and dataset_config is not None:
        raise UserError(
            f"dataset_config is {dataset_config!r}, but {dataset!r} is a local path", hint="drop dataset_config"
        )
    if not path.exists() and not _HUB_ID.match(dataset):
        raise UserError(f"dataset {dataset!r} does not exist", hint=f"give {_ACCEPTED}")
    try:
        if path.is_file():
            return _load_files({"train": [path]})
        if path.is_dir():
            return _open_folder(path)
        return dict(load_dataset(dataset, dataset_config))
    except UserError:
        raise
    except Exception as error:
        # `datasets` passes on the errors of its parsers, of file systems and of the hub's client; all concern the data.
        reason = next(iter(str(error).splitlines()), "")
        hint = "is the name correct, and can this host reach the hub or its cache?"
        if path.exists():
            hint = "check the file"
        raise UserError(f"dataset {dataset!r} cannot be read: {type(error).__name__}: {reason}", hint=hint) from error


def _open_folder(path: Path) -> Mapping[str, Dataset]:
    if (path / "dataset_dict.json").exists():
        return dict(DatasetDict.load_from_disk(str(path)))
    if (path / "state.json").exists():
        return {"train": Dataset.load_from_disk(str(path))}
    for folder in (path, path / "data"):
        files = sorted(file for file in folder.glob("*") if file.suffix in _LOADERS)
        if files:
            return _load_files(split_files(files))
    images = _image_folders(path)
    if images:
        return {name: _load_images(folder) for name, folder in images.items()}
    raise UserError(f"dataset {str(path)!r} has no files of a known type", hint=f"give {_ACCEPTED}")


def split_files(files: Sequence[Path]) -> dict[str, list[Path]]:
    """The files of a folder by the split in their names.

    Example:
        >>> list(split_files([Path("dev.tsv"), Path("train-0-of-2.tsv"), Path("train-1-of-2.tsv")]))
        ['dev', 'train']
    """
    splits: dict[str, list[Path]] = {}
    for file in files:
        splits.setdefault(_SHARD.sub("", file.stem), []).append(file)
    return splits


def _load_files(splits: Mapping[str, Sequence[Path]]) -> Mapping[str, Dataset]:
    suffixes = {file.suffix for files in splits.values() for file in files}
    first = next(iter(splits.values()))[0]
    if len(suffixes) > 1:
        raise UserError(f"{first.parent} has {', '.join(sorted(suffixes))} files", hint="give a folder with one type")
    if first.suffix not in _LOADERS:
        raise UserError(f"dataset {str(first)!r} is not a file of a known type", hint=f"give {_ACCEPTED}")
    loader, options = _LOADERS[first.suffix]
    # One call for each split, because their schemas may differ, for example in the names of classes.
    return {
        name: load_dataset(loader, data_files={"train": [str(file) for file in files]}, **options)["train"]
        for name, files in splits.items()
    }


def _image_folders(path: Path) -> dict[str, Path]:
    """The folder of each split's class folders: <path>/<class>/<image> or <path>/<split>/<class>/<image>."""
    if _has_images(path):
        return {"train": path}
    return {folder.name: folder for folder in sorted(path.iterdir()) if folder.is_dir() and _has_images(folder)}


def _has_images(folder: Path) -> bool:
    return any(file.suffix.lower() in IMAGE_SUFFIXES for file in folder.glob("*/*"))


def _load_images(folder: Path) -> Dataset:
    files = sorted(file for file in folder.glob("*/*") if file.suffix.lower() in IMAGE_SUFFIXES)
    names = sorted({file.parent.name for file in files})
    return Dataset.from_dict(
        {"image": [str(file) for file in files], "label": [names.index(file.parent.name) for file in files]},
        features=Features(image=Image(decode=False), label=ClassLabel(names=names)),
    )
