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

EVAL_SPLITS = ("validation", "valid", "val", "dev", "eval", "test")  # the best first
SPLIT_NAMES = frozenset({"train", "training", *EVAL_SPLITS})
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
_SHARD = re.compile(r"-(\d+)-of-(\d+)(?:-[0-9a-f]{16})?$")  # the hub has added a digest
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


@dataclass(frozen=True)
class _Entry:
    """A file or a folder. Only a link is looked up: on a shared file system a million look-ups take minutes."""

    path: Path
    is_folder: bool


def _visible(folder: Path, left_out: LeftOut) -> list[_Entry]:
    """The files and folders in a folder that may be data, by name."""
    found = []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            path = folder / entry.name
            if entry.name.startswith(".") or entry.name.lower() in _JUNK:
                left_out.add("hidden or system files", path)
            else:
                found.append(_Entry(path, entry.is_dir()))
    return found


def find_tables(folder: Path, config: str | None, split_names: Collection[str] = ()) -> FoundTables | None:
    """The table files of a folder, wherever they are in it.

    A folder named after a split has files of that split; elsewhere the names of the files say it. Other folders, except
    data/, are configurations.

    Args:
        folder: The folder.
        config: The name of the configuration to read; None for the files that belong to none, or for the only one.
        split_names: Further names of splits, which the config gives.

    Returns:
        The files; None if there are none.

    Raises:
        UserError: There are several configurations, or another one than asked for; or the files of a split are in two
            places, of several formats, there twice, or incomplete.
    """
    left_out = LeftOut()
    names = SPLIT_NAMES | {name.lower() for name in split_names}
    configs: dict[str, dict[str, list[Path]]] = {}
    for file in _tables_below(folder, left_out):
        found, split = _place_of(file.relative_to(folder), names)
        configs.setdefault(found, {}).setdefault(split, []).append(file)
    wanted = config if config is not None else _only_config(folder, configs)
    if wanted is None:
        return None
    if wanted not in configs:
        others = ", ".join(sorted(filter(None, configs)))
        hint = f"it has: {others}" if others else "drop dataset_config"
        message = f"{str(folder)!r} has no tables of a configuration {wanted!r}"
        raise UserError(message, where="dataset_config", hint=hint)
    for other, splits in configs.items():
        if other != wanted:
            for file in (file for files in splits.values() for file in files):
                left_out.add("tables of other configurations", file)
    for split, files in configs[wanted].items():
        _check_split(split, files, folder)
    return FoundTables(configs[wanted], left_out)


def _only_config(folder: Path, configs: Collection[str]) -> str | None:
    """The configuration of the files if there is only one, or the files that belong to none; None without files."""
    if not configs:
        return None
    if "" in configs:
        return ""
    if len(configs) > 1:
        hint = f"set dataset_config to one of: {', '.join(sorted(configs))}"
        raise UserError(f"{str(folder)!r} has {len(configs)} configurations", where="dataset", hint=hint)
    return next(iter(configs))


def _place_of(file: Path, names: Collection[str]) -> tuple[str, str]:
    """The configuration and the split of a file, from its path.

    Example:
        >>> [_place_of(Path(file), SPLIT_NAMES) for file in ("data/dev.tsv", "en/Train/a.csv", "t-0-of-2.csv")]
        [('', 'dev'), ('en', 'train'), ('', 't')]
    """
    folders = list(file.parent.parts)
    if folders[:1] == ["data"]:
        del folders[0]
    for position, name in enumerate(folders):
        if name.lower() in names:
            return "/".join(folders[:position]), _split_name(name)
    return "/".join(folders), _split_name(_SHARD.sub("", table_stem(file)))


def _check_split(split: str, files: Sequence[Path], folder: Path) -> None:
    """Checks that the files of a split are all there, and none twice."""
    places = sorted({str(file.parent.relative_to(folder)) for file in files})
    tops = sorted({place.partition("/")[0] for place in places})
    if len(tops) > 1:
        raise _unclear(folder, f"split {split!r} is in {len(tops)} places: {', '.join(tops)}")
    formats = sorted({str(table_format(file)) for file in files})
    if len(formats) > 1:
        raise _unclear(folder, f"split {split!r} has {', '.join(formats)} files")
    shards: dict[tuple[Path, str], dict[int, set[int]]] = {}
    by_stem: dict[tuple[Path, str], Path] = {}
    for file in files:
        stem = table_stem(file)
        other = by_stem.setdefault((file.parent, stem.lower()), file)
        match = _SHARD.search(stem)
        if match is not None:
            base = (file.parent, stem[: match.start()].lower())
            shards.setdefault(base, {}).setdefault(int(match[2]), set()).add(int(match[1]))
        if other is not file:
            raise _unclear(folder, f"split {split!r} is in {other.name} and {file.name}")
    for base, by_total in shards.items():
        if base in by_stem or len(by_total) > 1:
            raise _unclear(folder, f"split {split!r} is in one file and in parts, or in parts of several numbers")
        ((total, present),) = by_total.items()
        if present != set(range(total)):
            message = f"split {split!r} has {len(present & set(range(total)))} of {total} files"
            raise UserError(message, where=str(folder), hint="copy or download the others")


def _unclear(folder: Path, message: str) -> UserError:
    return UserError(message, where=str(folder), hint="keep one of them, or give its path as the dataset")


def _split_name(name: str) -> str:
    return name.lower() if name.lower() in SPLIT_NAMES else name


def _folders(folder: Path, left_out: LeftOut) -> list[Path]:
    return [entry.path for entry in _visible(folder, left_out) if entry.is_folder]


def _tables_below(folder: Path, left_out: LeftOut) -> Iterator[Path]:
    for path in _files_below(folder, left_out):
        if table_format(path) is None:
            left_out.add("other files", path)
        elif path.name.lower() in _ABOUT:
            left_out.add("files about the data", path)
        elif not path.exists():
            raise UserError("it is a link to a file that does not exist", where=str(path), hint="remove or repair it")
        else:
            yield path


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
        UserError: No folder of a split has class folders, or a split has two folders.
    """
    left_out = LeftOut()
    suffixes = image_suffixes()
    names = SPLIT_NAMES | {name.lower() for name in split_names}
    roots = _split_roots(folder, names, suffixes, left_out)
    splits: dict[str, list[tuple[Path, str]]] = {}
    metadata: dict[str, Path] = {}
    without_classes: list[Path] = []
    for name, root in roots.items():
        listed = [entry.path for entry in _visible(root, LeftOut()) if _lists_images(entry.path)]
        if listed and _has_image(root, suffixes):
            metadata[name] = listed[0]
            for other in listed[1:]:
                left_out.add("further lists of images", other)
            continue
        images = list(_class_images(root, suffixes, left_out))
        if images:
            splits[name] = images
        elif root != folder:
            without_classes.append(root)
    if splits or metadata:
        for root in without_classes:
            left_out.add("folders with images of no class", root)
        return FoundImages(splits, metadata, left_out)
    if without_classes:
        root = without_classes[0]
        raise UserError(
            f"{str(root)!r} has images, but none in the folder of a class",
            where="dataset",
            hint=f"move them to {root.name}/CLASS/, or add a metadata.csv with the columns file_name and label",
        )
    return None


def _split_roots(
    folder: Path, names: Collection[str], suffixes: Collection[str], left_out: LeftOut
) -> Mapping[str, Path]:
    """The folder of each split; the folder itself if it has no folders of splits."""
    with_images = [path for path in _folders(folder, LeftOut()) if _has_image(path, suffixes)]
    if not any(path.name.lower() in names for path in with_images):
        return {"train": folder}
    roots: dict[str, Path] = {}
    for path in with_images:
        other = roots.setdefault(_split_name(path.name), path)
        if other is not path:
            raise _unclear(folder, f"split {_split_name(path.name)!r} is in {other.name} and {path.name}")
    for entry in _visible(folder, left_out):
        if not entry.is_folder:
            left_out.add("files next to the splits", entry.path)
    return roots


def is_named_after_split(name: str) -> bool:
    """Whether a folder's name says that it has the images of a split, and not of a class.

    Example:
        >>> is_named_after_split("train_images"), is_named_after_split("Test"), is_named_after_split("test_tube")
        (True, True, False)
    """
    first, _, rest = re.sub(r"[-. ]", "_", name.lower()).partition("_")
    return first in SPLIT_NAMES and rest in ("", "images", "image", "imgs", "img", "data", "set", "pictures", "photos")


def unlisted_images(metadata: Path, listed: Collection[str], left_out: LeftOut) -> None:
    """Counts the images next to a metadata file, and below it, that the file does not list."""
    suffixes = image_suffixes()
    paths = {os.path.normpath(name) for name in listed}
    for file in _files_below(metadata.parent, LeftOut()):
        if file.suffix.lower() in suffixes and str(file.relative_to(metadata.parent)) not in paths:
            left_out.add(f"images that {metadata.name} does not list", file)


def _lists_images(path: Path) -> bool:
    return _METADATA.fullmatch(path.name) is not None and FILE_NAME in RowFile(path).names


def _class_images(root: Path, suffixes: Collection[str], left_out: LeftOut) -> Iterator[tuple[Path, str]]:
    """Each image below a folder with its class, in the order of their paths."""
    for entry in _visible(root, left_out):
        path = entry.path
        if not entry.is_folder:
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
        for entry in _visible(current, left_out):
            if entry.is_folder:
                subfolders.append(entry.path)
            else:
                yield entry.path
        waiting += reversed(subfolders)


def _has_image(folder: Path, suffixes: Collection[str]) -> bool:
    return any(file.suffix.lower() in suffixes for file in _files_below(folder, LeftOut()))


def image_suffixes() -> frozenset[str]:
    """The suffixes of all formats that Pillow opens, in lower case."""
    from PIL import Image

    known = Image.registered_extensions()
    return frozenset(suffix for suffix, kind in known.items() if kind in Image.OPEN and kind not in _NOT_DECODED)
