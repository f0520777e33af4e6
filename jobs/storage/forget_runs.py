"""Removes runs from the folder of a sweep: first their files, then their jobs, then their plan."""

from __future__ import annotations

import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from disttrain.errors import UserError
from jobs.planning.labels import Variation
from jobs.storage import ledger
from jobs.storage.ledger import Ledger, array_of
from jobs.storage.removable import is_unneeded_copy
from jobs.storage.run_lookup import find_runs, list_names
from jobs.storage.sweep_folder import SweepFolder


def runs_to_forget(
    planned: Sequence[Mapping[str, Any]], texts: Sequence[str], active: Mapping[str, str]
) -> list[Mapping[str, Any]]:
    """The runs to remove.

    Args:
        planned: The runs of plan.json.
        texts: What the user typed for each run; nothing for all dropped runs.
        active: The state of each run that has, or may have, a job which has not ended, by run id.

    Raises:
        UserError: A text names no run, or a job has not ended.
    """
    variation = Variation(planned)
    chosen = [run for run in planned if run.get("dropped")]
    if texts:
        chosen = find_runs(planned, texts)
    unfinished = [f"{variation.name(run)} {active[run['run_id']]}" for run in chosen if run["run_id"] in active]
    if unfinished:
        message = f"runs that have not ended cannot be removed: {list_names(unfinished)}"
        raise UserError(message, hint="wait until they end, or end them with sweep cancel; nothing was removed")
    return chosen


def forget_runs(folder: SweepFolder, run_ids: Collection[str], time_s: float) -> None:
    """Removes the runs. After a crash in between, a second call removes the rest.

    Args:
        folder: The folder of the sweep, under its submission lock.
        run_ids: The ids of the runs.
        time_s: The time in seconds since 1970, for the ledger.
    """
    _remove_files(folder, run_ids, ledger.read_ledger(folder.path))
    ledger.forget(folder.path, list(run_ids), time_s)
    folder.remove_from_plan(run_ids)


def _remove_files(folder: SweepFolder, run_ids: Collection[str], jobs: Ledger) -> None:
    """Removes the folders of the runs, and the logs of their jobs."""
    for run_id in run_ids:
        remove(folder.run(run_id))
        for figure in (folder.path / "figures").glob(f"*-{run_id}.svg"):
            remove(figure)
    forgotten = {job.job_id for run_id in run_ids for job in jobs.jobs.get(run_id, ())}
    for job_id in forgotten:
        # The folder of a local run, or the files of a Slurm job: 7_0_* of an array task, 7_* of a plain job.
        for path in (folder.logs / job_id, *folder.logs.glob(f"{job_id}_*")):
            remove(path)
    remaining = {job.job_id for job in jobs.all_jobs()} - forgotten
    for array in set(map(array_of, forgotten)) - set(map(array_of, remaining)):
        _remove_script(folder.logs, array)


def _remove_script(logs: Path, array: str) -> None:
    """Removes the batch script that the tasks of an array share, and the hidden link that submitit leaves to it."""
    script = logs / f"{array}_submission.sh"
    for link in logs.glob(".submission_file_*.sh"):
        if link.is_symlink() and link.readlink().name == script.name:
            link.unlink()
    script.unlink(missing_ok=True)


def remove_copy(folder: SweepFolder, path: Path) -> None:
    """Removes a copy of code, unless another submission uses it in the meantime: no run finds a half of it."""
    if is_unneeded_copy(folder, path, time.time()):
        removed = path.with_name(f".{path.name.lstrip('.')}")
        path.rename(removed)
        remove(removed)


def remove(path: Path) -> None:
    """Removes a file, a folder with all its files, or a link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
