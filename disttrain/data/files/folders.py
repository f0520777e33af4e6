"""Finds the data in a folder: table files by split, or images by split and class. What is left out is counted."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from disttrain.data.files.table_files import RowFile, table_format, table_stem
from disttrain.errors import UserError

SPLIT_NAMES = frozenset({"train", "training", "validation", "valid", "val", "dev", "eval", "test"})
# What desktops, file systems and tools make next to the data; also every name that begins with a dot.
_JUNK = frozenset(
    {"__macosx", "@eadir", "thumbs.db", "desktop.ini", "$recycle.bin", "system volume information", "lost+found",
     "__pycache__", "ehthumbs.db", "icon\r"}
)  # fmt: skip
# Files about the data, in cloned hub repositories and the like.
_ABOUT = frozenset(
    {"dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json", "config.json", "croissant.json"}
)
_METADATA = re.compile(r"metadata\.(csv|tsv|jsonl|json|ndjson)", re.IGNORECASE)
FILE_NAME = "file_name"  # its column with the paths of the images
# Formats that Pillow recognises and leaves to another program to decode.
_NOT_DECODED = frozenset({"BUFR", "GRIB", "HDF5", "MPEG", "WMF"})
_SHARD = re.compile(r"-\d+-of-\d+$")
_NAMED = 3


@dataclass
class LeftOut:
    """What is in a folder and is no data: numbers by kind, with some names."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, path: Path) -> None:
        self.counts[kind] += 1
        names = self.examples.setdefault(kind, [])
        if len(names) < _NAMED:
            names.append(path.name)

    def notices(self, folder: Path) -> tuple[str, ...]:
        """A notice for each kind, in a fixed order."""
        texts = []
        for kind, count in sorted(self.counts.items()):
            names = ", ".join(sorted(self.examples[kind]))
            if count > _NAMED:
                names += ", ..."
            texts.append(f"{folder}: left out {count} {kind} ({names})")
        return tuple(texts)


@dataclass(frozen=True)
class FoundTables:
    """The table files of each split."""

    splits: Mapping[str, Sequence[Path]]
    left_out: LeftOut


@dataclass(frozen=True)
class FoundImages:
    """The image files of each split, with their classes; or the metadata file that lists them."""

    splits: Mapping[str, Sequence[tuple[Path, str]]]
    metadata: Mapping[str, Path]
    left_out: LeftOut


def visible(folder: Path, left_out: LeftOut) -> list[Path]:
    """The files and folders in a folder that may be data, by name."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name.lower() in _JUNK:
            left_out.add("hidden or system files", path)
        else:
            found.append(path)
    return found


def split_files(files: Sequence[Path]) -> dict[str, list[Path]]:
    """The files of a folder by the split in their names.

    Example:
        >>> list(split_files([Path("dev.tsv"), Path("train-0-of-2.tsv"), Path("TRAIN-1-of-2.TSV.gz")]))
        ['dev', 'train']
    """
    splits: dict[str, list[Path]] = {}
    for file in files:
        name = _SHARD.sub("", table_stem(file))
        if name.lower() in SPLIT_NAMES:
            name = name.lower()
        splits.setdefault(name, []).append(file)
    return splits


def find_tables(folder: Path, config: str | None) -> FoundTables | None:
    """The table files of a folder: in it, in its data/, in a folder for each split, or in that of a configuration.

    Args:
        folder: The folder.
        config: The name of a configuration, which is a subfolder; None for none.

    Returns:
        The files; None if there are none.

    Raises:
        UserError: Several subfolders have tables, and none is named; or one split has files of several formats.
    """
    left_out = LeftOut()
    if config is not None:
        if not (folder / config).is_dir():
            names = [path.name for path in visible(folder, LeftOut()) if path.is_dir()]
            hint = f"its folders: {', '.join(names)}" if names else "drop dataset_config"
            message = f"{str(folder)!r} has no folder {config!r}"
            raise UserError(message, where="dataset_config", hint=hint)
        folder = folder / config
    for place in (folder, folder / "data"):
        if place.is_dir() and (files := _tables_in(place, left_out)):
            return FoundTables(_of_one_format(split_files(files)), left_out)
    subfolders = {path.name: files for path in _folders(folder, LeftOut()) if (files := _tables_in(path, left_out))}
    if not subfolders:
        return None
    if any(name.lower() in SPLIT_NAMES for name in subfolders):
        return FoundTables(_of_one_format({_split_name(name): files for name, files in subfolders.items()}), left_out)
    if len(subfolders) > 1:
        hint = f"set dataset_config to one of: {', '.join(subfolders)}"
        raise UserError(f"{str(folder)!r} has tables in {len(subfolders)} folders", where="dataset", hint=hint)
    (files,) = subfolders.values()
    return FoundTables(_of_one_format(split_files(files)), left_out)


def _split_name(name: str) -> str:
    return name.lower() if name.lower() in SPLIT_NAMES else name


def _folders(folder: Path, left_out: LeftOut) -> list[Path]:
    return [path for path in visible(folder, left_out) if path.is_dir()]


def _tables_in(folder: Path, left_out: LeftOut) -> list[Path]:
    files = []
    for path in visible(folder, left_out):
        if not path.is_file():
            continue
        if table_format(path) is None:
            left_out.add("other files", path)
        elif path.name.lower() in _ABOUT:
            left_out.add("files about the data", path)
        else:
            files.append(path)
    return files


def _of_one_format(splits: Mapping[str, Sequence[Path]]) -> Mapping[str, Sequence[Path]]:
    for files in splits.values():
        formats = sorted({str(table_format(file)) for file in files})
        if len(formats) > 1:
            message = f"{files[0].parent} has {', '.join(formats)} files of one split"
            raise UserError(message, hint="give a folder with one format")
    return splits


def find_images(folder: Path, split_names: Collection[str] = ()) -> FoundImages | None:
    """The images of a folder: <class>/.../<image>, or the same in a folder for each split.

    The class is the first folder; images in its subfolders belong to it, as in torchvision's ImageFolder. A file is an
    image if Pillow knows its suffix. A metadata file with a column file_name, as on the Hub, lists the images instead.

    Args:
        folder: The folder.
        split_names: Further names of splits, which the config gives.

    Returns:
        The images; None if there are none.

    Raises:
        UserError: The folders of the splits have no class folders.
    """
    left_out = LeftOut()
    suffixes = image_suffixes()
    names = SPLIT_NAMES | {name.lower() for name in split_names}
    folders = _folders(folder, LeftOut())
    roots = {"train": folder}
    if any(path.name.lower() in names and _has_image(path, suffixes) for path in folders):
        roots = {_split_name(path.name): path for path in folders if _has_image(path, suffixes)}
        for path in visible(folder, left_out):
            if path.is_file():
                left_out.add("files next to the splits", path)
    splits: dict[str, list[tuple[Path, str]]] = {}
    metadata: dict[str, Path] = {}
    for name, root in roots.items():
        listed = [path for path in visible(root, LeftOut()) if _lists_images(path)]
        if listed and _has_image(root, suffixes):
            metadata[name] = listed[0]
            continue
        images = list(_class_images(root, suffixes, left_out))
        if images:
            splits[name] = images
        elif root is not folder:
            raise UserError(
                f"{str(root)!r} has images, but none in the folder of a class",
                where="dataset",
                hint=f"move them to {root.name}/CLASS/, or add a metadata.csv with the columns file_name and label",
            )
    if not splits and not metadata:
        return None
    return FoundImages(splits, metadata, left_out)


def _lists_images(path: Path) -> bool:
    return _METADATA.fullmatch(path.name) is not None and FILE_NAME in RowFile(path).names


def _class_images(root: Path, suffixes: Collection[str], left_out: LeftOut) -> Iterator[tuple[Path, str]]:
    """Each image below a folder with its class, in the order of their paths."""
    for path in visible(root, left_out):
        if path.is_file():
            kind = "images that are in no class folder" if path.suffix.lower() in suffixes else "other files"
            left_out.add(kind, path)
            continue
        name = unicodedata.normalize("NFC", path.name).strip()
        count = 0
        for file in _files_below(path, left_out):
            if file.suffix.lower() in suffixes:
                count += 1
                yield file, name
            else:
                left_out.add("other files", file)
        if count == 0:
            left_out.add("folders without images", path)


def _files_below(folder: Path, left_out: LeftOut) -> Iterator[Path]:
    """The files in a folder and its subfolders. Links to folders are followed, each folder once."""
    seen: set[str] = set()
    waiting = [folder]
    while waiting:
        current = waiting.pop()
        real = os.path.realpath(current)
        if real in seen:
            continue
        seen.add(real)
        subfolders = []
        for path in visible(current, left_out):
            if path.is_dir():
                subfolders.append(path)
            else:
                yield path
        waiting += reversed(subfolders)


def _has_image(folder: Path, suffixes: Collection[str]) -> bool:
    return any(file.suffix.lower() in suffixes for file in _files_below(folder, LeftOut()))


def image_suffixes() -> frozenset[str]:
    """The suffixes of all formats that Pillow opens, in lower case."""
    from PIL import Image

    known = Image.registered_extensions()
    return frozenset(suffix for suffix, kind in known.items() if kind in Image.OPEN and kind not in _NOT_DECODED)
