"""The fields of a config that may contain paths, made absolute."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from disttrain.config.train_config import PATH_FIELDS, TrainConfig
from disttrain.errors import FieldsError


def is_path(value: str) -> bool:
    """Whether the form of a value shows that it is a path and not a hub id.

    Example:
        >>> is_path("./data/sst2"), is_path("stanfordnlp/imdb")
        (True, False)
    """
    return value.startswith(("./", "../", "/", "~")) or value in (".", "..")


def absolute_paths(config: TrainConfig, folder: str) -> TrainConfig:
    """The config with every path made absolute.

    A value is a path if it looks like one (`is_path`), or if a file or folder of that name exists in `folder`.

    Args:
        config: The config, with paths as they were written.
        folder: The base of relative paths: the sweep file's folder, or the working directory.

    Raises:
        FieldsError: A value looks like a path, but no such file or folder exists.
    """
    changes: dict[str, Any] = {}
    for name in PATH_FIELDS:
        value: str | None = getattr(config, name)
        if value is None:
            continue
        path = os.path.normpath(os.path.join(folder, os.path.expanduser(value)))
        if os.path.exists(path):
            changes[name] = path
        elif is_path(value):
            raise FieldsError((name,), f"{name} {value!r} does not exist", hint=f"looked for {path}")
    return dataclasses.replace(config, **changes)
