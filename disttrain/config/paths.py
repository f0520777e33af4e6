"""The fields of a config that may contain paths, made absolute."""

from __future__ import annotations

import dataclasses
import os
import re
from typing import Any

from disttrain.config.train_config import FAMILIES, PATH_FIELDS, TrainConfig
from disttrain.environment.variables import shorten
from disttrain.errors import FieldsError

_VARIABLE = re.compile(r"\$(?:[A-Za-z_]\w*|\{[A-Za-z_]\w*\})")
_HUB_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?")
_FILE_SUFFIXES = tuple(
    suffix + compressed
    for suffix in (".csv", ".tsv", ".parquet", ".json", ".jsonl", ".ndjson", ".arrow", ".txt", ".safetensors", ".zip")
    for compressed in ("", ".gz", ".bz2", ".xz", ".zst")
)


def is_path(value: str) -> bool:
    """Whether the form of a value shows that it is a path and not a hub id.

    Example:
        >>> is_path("./data/sst2"), is_path("stanfordnlp/imdb")
        (True, False)
    """
    return value.startswith(("./", "../", "/", "~")) or value in (".", "..")


def find_variable(text: str) -> str | None:
    """The first shell variable in a text, with its dollar sign; None if there is none.

    Example:
        >>> find_variable("$SCRATCH/films"), find_variable("/data/${USER}/x"), find_variable("5$")
        ('$SCRATCH', '${USER}', None)
    """
    match = _VARIABLE.search(text)
    if match is None:
        return None
    return match[0]


def may_be_hub_id(value: str) -> bool:
    """Whether the hub could have something of this name: ``name`` or ``owner/name``.

    A name with the suffix of a data file is a path, unless it has an owner.

    Example:
        >>> [may_be_hub_id(value) for value in ("stanfordnlp/imdb", "imdb", "films/train/a.csv", "train.csv", "a b/c")]
        [True, True, False, False, False]
    """
    parts = value.split("/")
    if len(parts) > 2 or not all(_HUB_NAME.fullmatch(part) for part in parts):
        return False
    if "--" in value or ".." in value or value.endswith(".git"):
        return False
    return len(parts) == 2 or not value.lower().endswith(_FILE_SUFFIXES)


def absolute_paths(config: TrainConfig, folder: str) -> TrainConfig:
    """The config with every path made absolute.

    A value is a path if a file or folder of that name exists in `folder`, if it looks like one (`is_path`), or if it
    cannot be the id of something on the hub.

    Args:
        config: The config, with paths as they were written.
        folder: The base of relative paths: the sweep file's folder, or the working directory.

    Raises:
        FieldsError: A path does not exist, or has a variable of the shell, which nothing would expand.
    """
    changes: dict[str, Any] = {}
    for name in PATH_FIELDS:
        value: str | None = getattr(config, name)
        if value is None:
            continue
        path = _existing(value, folder)
        if path is not None:
            changes[name] = path
            continue
        _check_expanded(name, value)
        # What the checkpoint of a family of the user's own is, only the family can say.
        own = name == "checkpoint" and config.model not in FAMILIES
        if is_path(value) or not (own or _may_be_absent(value, folder)):
            place = os.path.normpath(os.path.join(folder, value))
            raise FieldsError((name,), f"{name} {shorten(value)} does not exist", hint=f"looked for {place}")
    if config.output_dir is not None and _existing(config.output_dir, folder) is None:
        _check_expanded("output_dir", config.output_dir)
    return dataclasses.replace(config, **changes)


def _existing(value: str, folder: str) -> str | None:
    """The absolute path of a value that names a file or folder; None if there is no such file."""
    if "\0" in value:
        return None
    path = os.path.normpath(os.path.join(folder, os.path.expanduser(value)))
    if os.path.exists(path):
        return path
    return None


def _may_be_absent(value: str, folder: str) -> bool:
    """Whether a value that is not in `folder` may be on the hub. films/train.csv is not, if films is a folder here."""
    owner, slash, _ = value.partition("/")
    is_file = value.lower().endswith(_FILE_SUFFIXES)
    return may_be_hub_id(value) and not (slash and is_file and os.path.isdir(os.path.join(folder, owner)))


def _check_expanded(name: str, value: str) -> None:
    variable = find_variable(value)
    if variable:
        message = f"{name} {shorten(value)} has the variable {variable}, which is not expanded"
        raise FieldsError((name,), message, hint="write the path itself; on the command line, a shell expands it")
