"""Which runs start in a copy of the user's code, and their copies: `code` of the cluster profile decides."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from disttrain.config.command.command_config import CommandConfig
from disttrain.config.command.command_words import command_words
from disttrain.config.train_config import is_own_family
from jobs.planning.cluster_profile import CodeRule
from jobs.planning.expand import RunSpec
from jobs.planning.plan import Plan
from jobs.storage.code_snapshot import STORE, Snapshot, take_snapshot
from jobs.storage.code_state import GitError, checkout_of
from jobs.storage.sweep_folder import LAST, SweepFolder
from jobs.submission.messages import note, say


def copy_code(folder: SweepFolder, plans: Sequence[Plan], import_path: Sequence[str]) -> dict[str, Snapshot]:
    """Copies the code of the runs that start in a copy, once for each checkout, and returns their copies by run id.

    A run that is not in a git checkout starts the files in place, and a note says so.

    Args:
        folder: The folder of the sweep.
        plans: The plans of the runs.
        import_path: The folders in which the ranks search for the user's own model family: the last one is that of the
            submission.

    Raises:
        UserError: The code is too large.
        OSError: A copy cannot be written.
    """
    runs_by_place: dict[str, list[RunSpec]] = {}
    for plan in plans:
        for run in plan.runs:
            if place := _copied_place(run, plan.cluster.code_for(run.allocation), import_path):
                runs_by_place.setdefault(place, []).append(run)
    copies: dict[str, Snapshot] = {}
    for place, runs in runs_by_place.items():
        if snapshot := _copy_around(folder, Path(place)):
            say(f"  code {snapshot.code}: a copy of {snapshot.root}")
            _note_originals(snapshot, runs)
            copies |= dict.fromkeys((run.run_id for run in runs), snapshot)
    return copies


def _copy_around(folder: SweepFolder, place: Path) -> Snapshot | None:
    """The copy of the checkout around a working directory; None, after a note, if the copy would not have it."""
    live = "so the code is not copied: each run uses the files as they are when it starts"
    try:
        checkout = checkout_of(place)
    except GitError as error:
        note(f"git refuses {place}, {live}; git: {error} (fix this, or set code: live under slurm)")
        return None
    if checkout is None:
        note(f"{place} is not in a git checkout, {live}")
        return None
    snapshot = take_snapshot(checkout, folder.code_store, _no_code(folder, place))
    copy = Path(snapshot.copy_of(str(place)))
    if not copy.is_dir() or not copy.resolve().is_relative_to(snapshot.folder.resolve()):
        note(f"git ignores {place}, or it has no files, {live}")
        return None
    return snapshot


def _note_originals(snapshot: Snapshot, runs: Sequence[RunSpec]) -> None:
    """Says if a command names a file of the checkout by its absolute path, which stays that of the original."""
    commands = dict.fromkeys(run.config.command for run in runs if isinstance(run.config, CommandConfig))
    for word in dict.fromkeys(word for command in commands for word in command_words(command)):
        if os.path.isabs(word) and _is_copied(snapshot, word):
            note(f"the command has the absolute path {word}, so runs use this file and not its copy")


def _is_copied(snapshot: Snapshot, path: str) -> bool:
    """Whether a path is that of a file of which there is a copy, and not a link."""
    copy = Path(snapshot.copy_of(path))
    return copy.is_file() and copy.resolve().is_relative_to(snapshot.folder.resolve())


def _copied_place(run: RunSpec, rule: CodeRule | None, import_path: Sequence[str]) -> str | None:
    """The folder whose checkout is copied for a run; None if it starts the files in place."""
    if isinstance(run.config, CommandConfig):
        return None if rule == "live" else run.config.working_dir
    if rule == "snapshot" and is_own_family(run.config.model):
        return import_path[-1] if import_path else None
    return None


def _no_code(folder: SweepFolder, place: Path) -> tuple[Path, ...]:
    """What is no code: cluster profiles, and the root of all sweeps, or if the code is in that, the folders in it."""
    root = folder.path.parent.parent
    if not (root / STORE).is_dir():
        root = folder.code_store.parent  # below no root
    root = root.resolve()
    profiles = tuple(place.glob("clusters/*.yaml"))
    if not place.is_relative_to(root):
        return (root, *profiles)
    sweeps = {path.parent.parent for path in root.glob("*/*/plan.json")}
    return (root / STORE, root / LAST, root / folder.sweep_name, *sorted(sweeps), *profiles)
