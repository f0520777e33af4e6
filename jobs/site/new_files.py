"""The files of `sweep init`: where they go, that they are new, and writing all of them or none."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from disttrain.errors import UserError
from disttrain.records.atomic_write import write_text
from jobs.planning.cluster import DEBUG, LOCAL
from jobs.planning.cluster_profile import check_section
from jobs.planning.sweep_file import parse_sweep
from jobs.planning.yaml_file import parse_yaml

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_FALLBACK = "mysite"


@dataclass(frozen=True)
class NewFiles:
    """The paths of what is written.

    Attributes:
        profile: The cluster profile.
        sweep: The first sweep.
        texts: The folder of its texts; None if it has none.
    """

    profile: Path
    sweep: Path
    texts: Path | None

    @property
    def cluster(self) -> str:
        """The name of the profile."""
        return self.profile.stem


def new_files(name: str | None, sweep: Path, *, has_texts: bool, cluster_name: str | None) -> NewFiles:
    """The paths for a profile and a first sweep.

    Args:
        name: The name of the profile; None for that of the cluster.
        sweep: The path of the sweep file.
        has_texts: Whether the sweep needs texts.
        cluster_name: Slurm's name of the cluster.

    Raises:
        UserError: A name cannot be that of such a file.

    Example:
        >>> new_files("site.yaml", Path("first.yaml"), has_texts=True, cluster_name=None)
        NewFiles(profile=PosixPath('clusters/site.yaml'), sweep=PosixPath('first.yaml'), texts=PosixPath('first-texts'))
    """
    if name is None:
        name = cluster_name if cluster_name and _is_free(cluster_name) else _FALLBACK
    name = name.removesuffix(".yaml").removesuffix(".yml")
    if not _is_free(name):
        hint = f"use letters, digits, '.', '_' and '-', and not {LOCAL} or {DEBUG}"
        raise UserError(f"{name!r} cannot be the name of a profile", hint=hint)
    if sweep.suffix not in (".yaml", ".yml") or not _NAME.fullmatch(sweep.stem):
        hint = "for example first.yaml: the sweep has the name of its file"
        raise UserError(f"{str(sweep)!r} cannot be the name of a sweep file", where="--sweep", hint=hint)
    texts = sweep.with_name(f"{sweep.stem}-texts") if has_texts else None
    return NewFiles(Path("clusters") / f"{name}.yaml", sweep, texts)


def _is_free(name: str) -> bool:
    return _NAME.fullmatch(name) is not None and name not in (LOCAL, DEBUG)


def check_new(paths: NewFiles) -> None:
    """Checks that none of the files exists.

    Raises:
        UserError: One does.
    """
    for path, hint in (
        (paths.profile, "give another name, or remove it"),
        (paths.sweep, "choose another file with --sweep, or remove it"),
        (paths.texts, "choose another file with --sweep, or remove it"),
    ):
        if path is not None and os.path.lexists(path):
            raise UserError(f"{str(path)!r} exists, and sweep init overwrites nothing", hint=hint)


def check_texts(paths: NewFiles, profile: str, sweep: str) -> None:
    """Checks that the texts of the profile and of the sweep are valid.

    Raises:
        UserError: One is not: an answer is no value of its key.
    """
    check_section(parse_yaml(profile, str(paths.profile)))
    parse_sweep(parse_yaml(sweep, str(paths.sweep)), os.path.abspath(paths.sweep.parent))


def write_new(files: Mapping[Path, str]) -> None:
    """Writes the files, and removes those that were written if a later one cannot be.

    Raises:
        OSError: A file cannot be written. Its filename is the path.
    """
    written: list[Path] = []
    try:
        for path, text in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            written.append(path)
            write_text(path, text)
    except OSError:
        for path in written:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        raise
