"""The links under by-name/: one for each run of a sweep, named by the label of the run."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from jobs.planning.labels import Variation, link_name
from jobs.storage.sweep_folder import SweepFolder

# More links would make every submission slow on a shared file system.
MOST_LINKS = 1000
# A file name has at most 255 bytes; a name that is cut gets the digits of the run id.
_MOST_CHARACTERS = 200


def link_names(planned: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The run id of each link, by the name of the link.

    Args:
        planned: The runs of plan.json.
    """
    variation = Variation(planned)
    names = {run["run_id"]: link_name(variation.label(run)) for run in planned}
    counts = Counter(names.values())
    links = {}
    for run_id, name in names.items():
        if counts[name] > 1 or len(name) > _MOST_CHARACTERS:
            name = f"{name[:_MOST_CHARACTERS]}_{run_id.rpartition('-')[2]}"
        links[name] = run_id
    return links


def link_names_or_warn(folder: SweepFolder) -> None:
    """Writes the links of a sweep. They are a convenience: if that fails, a note says so, and the command continues."""
    try:
        write_links(folder)
    except OSError as error:
        print(f"note: by-name/ is not complete: {error.filename!r}: {error.strerror}", file=sys.stderr)


def write_links(folder: SweepFolder) -> None:
    """Makes by-name/ agree with plan.json. The links are relative, so the folder of the sweep can be moved.

    Raises:
        OSError: The file system has no symbolic links, or a file of that name is in the way.
    """
    planned = folder.planned_runs()
    wanted = {}
    if len(planned) <= MOST_LINKS:
        wanted = {name: os.path.join("..", "runs", run_id) for name, run_id in link_names(planned).items()}
    by_name = folder.path / "by-name"
    if wanted:
        by_name.mkdir(exist_ok=True)
    existing = {}
    if by_name.is_dir():
        existing = {path.name: os.readlink(path) for path in by_name.iterdir() if path.is_symlink()}
    for name, target in existing.items():
        if wanted.get(name) != target:
            (by_name / name).unlink()
    for name, target in wanted.items():
        if existing.get(name) != target:
            (by_name / name).symlink_to(target, target_is_directory=True)
