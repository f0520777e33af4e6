"""Opens datasets: from the hub, files, folders of files or of images, and datasets saved to disk."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from disttrain.config.hub_inputs import fetch_hint
from disttrain.data.array_cache import cache_folder, datasets_cache, may_write
from disttrain.data.files.columns import Column, ImageValues, ListColumn, Table, dataset_table, silence_datasets
from disttrain.data.files.folders import (
    FILE_NAME,
    FoundImages,
    find_images,
    find_tables,
    is_named_after_split,
    unlisted_images,
)
from disttrain.data.files.table_files import table_format
from disttrain.data.files.tables import read_tables
from disttrain.data.labels import sorted_names
from disttrain.errors import UserError

InputKind = Literal["text", "image"]
_ACCEPTED = (
    "a hub id, a csv, tsv, parquet or json file, a folder of these files or of images, or a dataset saved to disk"
)
_HUB_ID = re.compile(r"^[\w.-]+(/[\w.-]+)?$")


class LazySplits(Mapping[str, Table]):
    """The splits of a dataset, each read when it is used: another one may be damaged.

    Args:
        readers: What reads each split.
        dataset: The dataset as the config names it.
    """

    def __init__(self, readers: Mapping[str, Callable[[], Table]], dataset: str) -> None:
        self._readers = readers
        self._dataset = dataset
        self._read: dict[str, Table] = {}

    def __getitem__(self, name: str) -> Table:
        if name not in self._read:
            with _one_line_errors(self._dataset):
                self._read[name] = self._readers[name]()
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)


@dataclass(frozen=True)
class Source:
    """A dataset.

    Attributes:
        splits: All splits by name.
        notices: What was left out.
    """

    splits: Mapping[str, Table]
    notices: tuple[str, ...] = ()


def open_source(
    dataset: str,
    dataset_config: str | None,
    kind: InputKind,
    split_names: Collection[str] = (),
    revision: str | None = None,
) -> Source:
    """All splits of a dataset.

    Args:
        dataset: A hub id or a path.
        dataset_config: The name of a configuration: of a dataset of the hub, or of tables in a folder.
        kind: What the examples are. A folder may have both tables and images.
        split_names: The names of the splits that the config asks for.
        revision: The revision of a dataset of the hub; None for main.

    Raises:
        UserError: The dataset does not exist, or cannot be read.
    """
    path = Path(dataset).expanduser()
    if not path.exists() and not _HUB_ID.match(dataset):
        raise UserError(f"dataset {dataset!r} does not exist", hint=f"give {_ACCEPTED}")
    with _one_line_errors(dataset):
        if path.is_file():
            return _open_file(path, dataset, dataset_config)
        if path.is_dir():
            return _open_folder(path, dataset, dataset_config, kind, split_names)
        return _open_hub(dataset, dataset_config, revision)


def import_readers(dataset: str, kind: InputKind) -> None:
    """Imports `datasets` if opening this dataset will need it: it takes a second, for which other ranks would wait.

    Parquet files of texts need it only if they hold something else too.
    """
    path = Path(dataset).expanduser()
    has_images = kind == "image" and (path.suffix.lower() == ".parquet" or _has_parquet(path))
    if not path.exists() or _is_saved(path) or has_images:
        importlib.import_module("datasets")


@contextmanager
def _one_line_errors(dataset: str) -> Iterator[None]:
    """Turns errors of `datasets`, and those that it passes on from file systems and the hub's client, into one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None and type(cause).__name__.startswith("DatasetGeneration"):
            cause = cause.__cause__  # the error that says what is wrong
        reason = next(iter(str(cause).splitlines()), "")
        hint = "is the name correct, and can this host reach the hub or its cache?"
        if Path(dataset).expanduser().exists():
            hint = "check the file"
        hint = fetch_hint(dataset, os.environ) or hint
        raise UserError(f"dataset {dataset!r} cannot be read: {type(cause).__name__}: {reason}", hint=hint) from error


def _open_file(path: Path, dataset: str, dataset_config: str | None) -> Source:
    if dataset_config is not None:
        message = f"dataset_config is {dataset_config!r}, but {dataset!r} is a local path"
        raise UserError(message, hint="drop dataset_config")
    if table_format(path) is None:
        raise UserError(f"dataset {str(path)!r} is not a file of a known type", hint=f"give {_ACCEPTED}")
    return Source(LazySplits({"train": partial(read_tables, [path])}, dataset))


def _open_hub(dataset: str, dataset_config: str | None, revision: str | None) -> Source:
    import datasets

    silence_datasets()
    shared, own = datasets_cache(), cache_folder() / "hub"
    cache_dir: Path | None = None
    if revision is not None:
        # Without the hub, `datasets` takes the newest revision in its folder. So each one has a folder of its own.
        name = revision.replace("/", "--")
        cache_dir = shared = shared / "disttrain" / "hub" / name
        own = own / name
    if not may_write(shared):
        cache_dir = own
        _link_prepared(dataset, shared, own)
    loaded = datasets.load_dataset(dataset, dataset_config, cache_dir=cache_dir and str(cache_dir), revision=revision)
    return Source({name: dataset_table(rows) for name, rows in loaded.items()})


def _link_prepared(dataset: str, shared: Path, cache_dir: Path) -> None:
    """Links what a read-only cache has of a dataset: `datasets` needs to write its locks next to it."""
    wanted = dataset.replace("/", "___").lower()
    for folder in (path for path in shared.glob("*") if path.is_dir() and path.name.lower() == wanted):
        for file in (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"):
            link = cache_dir / file.relative_to(shared)
            link.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):
                link.symlink_to(file)


def _open_folder(
    path: Path, dataset: str, dataset_config: str | None, kind: InputKind, split_names: Collection[str]
) -> Source:
    saved = _open_saved(path)
    if saved is not None:
        if dataset_config is not None:
            message = f"dataset_config is {dataset_config!r}, but {dataset!r} was written by save_to_disk"
            raise UserError(message, hint="drop dataset_config")
        return saved
    images = None
    if kind == "image" and dataset_config is None:
        images = find_images(path, split_names)
        if images is not None and _are_classes(images) and not _has_parquet(path):
            return _image_source(images, path)
    tables = find_tables(path, dataset_config, split_names)
    if tables is not None:
        readers = {name: partial(read_tables, files) for name, files in tables.splits.items()}
        return Source(LazySplits(readers, dataset), tables.left_out.notices(path))
    if images is not None:
        _check_classes(images, dataset)
        return _image_source(images, path)
    raise UserError(f"dataset {str(path)!r} has no files of a known type", hint=f"give {_ACCEPTED}")


def _has_parquet(path: Path) -> bool:
    """Whether a folder has a dataset of the hub; the pictures next to it are those of its documentation."""
    return any(path.glob("*.parquet")) or any(path.glob("data/*.parquet"))


def _are_classes(images: FoundImages) -> bool:
    """Whether the folders of the images are classes: several, and none of them is named after a split."""
    names = _class_names(images)
    return bool(images.metadata) or (len(names) > 1 and not any(map(is_named_after_split, names)))


def _check_classes(images: FoundImages, dataset: str) -> None:
    """Refuses folders of splits that have no class folders."""
    if named := [name for name in _class_names(images) if is_named_after_split(name)]:
        message = f"{dataset!r} has images in {named[0]!r}, which is a split and not a class"
        raise UserError(message, where="dataset", hint=f"move them to {named[0]}/CLASS/, or add a table of the labels")


def _class_names(images: FoundImages) -> set[str]:
    return {name for files in images.splits.values() for _, name in files}


def _open_saved(path: Path) -> Source | None:
    """A dataset that save_to_disk has written; None if the folder is not one."""
    if not _is_saved(path):
        return None
    if (path / "dataset_dict.json").exists():
        from datasets import DatasetDict

        silence_datasets()
        return Source({name: dataset_table(rows) for name, rows in DatasetDict.load_from_disk(str(path)).items()})
    from datasets import Dataset

    silence_datasets()
    return Source({"train": dataset_table(Dataset.load_from_disk(str(path)))})


def _is_saved(path: Path) -> bool:
    return (path / "dataset_dict.json").exists() or (path / "state.json").exists()


def _image_source(found: FoundImages, path: Path) -> Source:
    splits: dict[str, Table] = {}
    for name, images in found.splits.items():
        names = sorted_names({class_name for _, class_name in images})
        index = {class_name: number for number, class_name in enumerate(names)}
        files = ListColumn([str(file.absolute()) for file, _ in images], "text")
        labels = ListColumn([index[class_name] for _, class_name in images], "classes", names)
        splits[name] = Table({"image": ImageValues(files), "label": labels})
    for name, file in found.metadata.items():
        table = read_tables([file])
        unlisted_images(file, set(filter(None, table[FILE_NAME][:])), found.left_out)
        columns: dict[str, Column] = {"image": ImageValues(table[FILE_NAME], file.parent.absolute())}
        columns |= {column: values for column, values in table.columns.items() if column not in (FILE_NAME, "image")}
        splits[name] = Table(columns, table.folder)
    return Source(splits, found.left_out.notices(path))
