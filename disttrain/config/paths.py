"""The paths of a run: the fields of a config that may contain paths, made absolute, and the root of all results."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from disttrain.config.train_config import FAMILIES, PATH_FIELDS, TrainConfig
from disttrain.errors import FieldsError, shorten

# What a shell would expand: $NAME, ${...}, $(...) and `...`.
_VARIABLE = re.compile(r"\$(?:[A-Za-z_]\w*|\{[^}]*\}|\([^)]*\))|`[^`]*`")
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
    """The first shell variable or command in a text, with its dollar sign or backticks; None if there is none.

    Example:
        >>> find_variable("$SCRATCH/films"), find_variable("/data/${USER:-me}/$(date)"), find_variable("5$")
        ('$SCRATCH', '${USER:-me}', None)
    """
    match = _VARIABLE.search(text)
    if match is None:
        return None
    return match[0]


def may_be_hub_id(value: str) -> bool:
    """Whether the hub could have something of this name: ``name`` or ``owner/name``.

    A name with the suffix of a data file is a path.

    Example:
        >>> [may_be_hub_id(value) for value in ("stanfordnlp/imdb", "imdb", "a/b/c", "data/train.csv", "a b/c")]
        [True, True, False, False, False]
    """
    parts = value.split("/")
    if len(parts) > 2 or not all(_HUB_NAME.fullmatch(part) for part in parts):
        return False
    return not ("--" in value or ".." in value or value.endswith(".git") or value.lower().endswith(_FILE_SUFFIXES))


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
            _check_no_revision(config, name)
            changes[name] = path
            continue
        _check_expanded(name, value)
        # What the checkpoint of a family of the user's own is, only the family can say.
        own = name == "checkpoint" and config.model not in FAMILIES
        if is_path(value) or not (own or may_be_hub_id(value)):
            message = f"{name} {shorten(repr(value))} does not exist"
            raise FieldsError((name,), message, hint=f"looked for {_absolute(value, folder)}")
    if config.output_dir is not None:
        if _existing(config.output_dir, folder) is None:
            _check_expanded("output_dir", config.output_dir)
        changes["output_dir"] = _without_tilde(config.output_dir)
    return dataclasses.replace(config, **changes)


def absolute_values(values: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """The values of some fields, with the paths of existing files and folders made absolute.

    Args:
        values: The values by field name.
        folder: The base of relative paths.
    """
    absolute = dict(values)
    for name in PATH_FIELDS:
        if isinstance(value := values.get(name), str):
            absolute[name] = _existing(value, folder) or value
    return absolute


def moved_path(path: str, before: str, now: str) -> str | None:
    """An absolute path in one folder as a path in another one; None if it is not in the first.

    Example:
        >>> moved_path("/a/b/c", "/a/b", "/x"), moved_path("/a/b", "/a/b", "/x"), moved_path("/a/bc", "/a/b", "/x")
        ('/x/c', '/x', None)
    """
    if path != before and not path.startswith(before + os.sep):
        return None
    return now + path[len(before) :]


def results_root(environ: Mapping[str, str], option: Path | None = None) -> Path:
    """The folder of all results: the option --root, or $SWEEP_ROOT, or ./runs."""
    return Path(_without_tilde(str(option or environ.get("SWEEP_ROOT") or "runs")))


def _without_tilde(path: str) -> str:
    """The path with the home folder in place of `~`, which a shell leaves in ``--root=~/runs``."""
    if "\0" in path:  # no name of a user has it, and `expanduser` would fail
        return path
    return os.path.expanduser(path)


def _absolute(value: str, folder: str) -> str:
    return os.path.normpath(os.path.join(folder, _without_tilde(value)))


def _existing(value: str, folder: str) -> str | None:
    """The absolute path of a value that names a file or folder; None if there is no such file."""
    path = _absolute(value, folder)
    if os.path.exists(path):
        return path
    return None


def _check_no_revision(config: TrainConfig, name: str) -> None:
    """Checks that a field with an existing path has no revision: only the hub has revisions."""
    revision: str | None = getattr(config, f"{name}_revision")
    if revision is not None:
        message = f"{name}_revision is {shorten(repr(revision))}, but {getattr(config, name)!r} is a local path"
        raise FieldsError((f"{name}_revision", name), message, hint=f"drop {name}_revision")


def _check_expanded(name: str, value: str) -> None:
    variable = find_variable(value)
    if variable:
        message = f"{name} {shorten(repr(value))} has the variable {variable}, which is not expanded"
        raise FieldsError((name,), message, hint="write the path itself; on the command line, a shell expands it")
