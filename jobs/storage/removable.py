"""What the folder of a sweep has that no run needs any more: checkpoints, models and leftovers. It removes nothing."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import product
from pathlib import Path
from typing import Any

from disttrain.records.json_values import DamagedFile, read_object
from disttrain.records.record_files import CHECKPOINTS_NAME, RUN_NAME
from disttrain.records.run_folder import MODEL_NAME
from jobs.storage.code_snapshot import digest_files, place_digest, recorded_snapshot
from jobs.storage.ledger import Ledger, array_of
from jobs.storage.sweep_folder import SweepFolder

# A younger file may belong to a command that runs now, or to an sbatch that a killed command has left.
_LEAST_AGE_S = 3600.0
# An older attempt may still run on a lost node: it stops when it finds the claim of a newer one.
_CLAIM = re.compile(r"attempt-\d+")
# The files that a rank or a command writes before it gives them their name.
_TEMPORARY = re.compile(r"\..+\.\d+")
# Of those, the ones that are ours where a user's own script may write too.
_OWN_TEMPORARY = re.compile(r"\.(?:(?:run|request|stage|summary|failure-rank\d+)\.json|metrics-rank\d+\.jsonl)\.\d+")
_SLURM_LOG = re.compile(r"(?P<array>\d+)_(?:\d+_)*(?:submission\.sh|submitted\.pkl|result\.pkl|log\.(?:out|err))")
_LOCAL_LOGS = re.compile(r"local-\d+-[0-9a-f]+-\d+")
# What submitit writes before sbatch, and renames after it.
_UNSENT = re.compile(r"[0-9a-f]{32}\.pkl|\.submission_file_[0-9a-f]{32}\.sh")


class Kind(StrEnum):
    """What can be removed together."""

    CHECKPOINTS = "checkpoints"
    MODELS = "models"
    LEFTOVERS = "leftovers"


@dataclass(frozen=True)
class Removable:
    """Files that can be removed.

    Attributes:
        kind: The kind.
        name: The run, or the path in the folder of the sweep.
        paths: The files and folders, in the order in which they are removed.
        size_bytes: Their size.
    """

    kind: Kind
    name: str
    paths: tuple[Path, ...]
    size_bytes: int


def of_runs(
    folder: SweepFolder, ended: Mapping[str, str], unneeded: Collection[str], scripts: Collection[str] = ()
) -> Iterator[Removable]:
    """The checkpoints and models of runs. A run that failed keeps the checkpoints from which it resumes.

    Args:
        folder: The folder of the sweep.
        ended: The names of the runs that have ended, by id: nothing of any other run is looked at.
        unneeded: Those of them that never resume: they are done, or dropped.
        scripts: The runs of commands. Checkpoints and models in their folders are the user's own, and stay.
    """
    for run_id, name in ended.items():
        run_dir = folder.run(run_id)
        results = sorted(run_dir.glob("earlier/*"))
        if run_id in unneeded:
            results.append(run_dir)
        pattern = _TEMPORARY
        if run_id in scripts:
            results, pattern = [], _OWN_TEMPORARY
        checkpoints = [path for result in results for path in _entries(result / CHECKPOINTS_NAME)]
        # Without its manifest a checkpoint is none: an interrupted removal leaves nothing that looks complete.
        checkpoints = [path for path in checkpoints if not _CLAIM.fullmatch(path.name)]
        checkpoints.sort(key=lambda path: path.suffix != ".json")
        models = [result / MODEL_NAME for result in results if _is_folder(result / MODEL_NAME)]
        temporary = [path for path in _entries(run_dir) if pattern.fullmatch(path.name)]
        for kind, paths in (
            (Kind.CHECKPOINTS, checkpoints), (Kind.MODELS, models), (Kind.LEFTOVERS, temporary)
        ):  # fmt: skip
            if paths:
                yield _removable(kind, name, paths)


def leftovers(
    folder: SweepFolder, planned: Sequence[Mapping[str, Any]], ledger: Ledger, now_s: float
) -> Iterator[Removable]:
    """What failed submissions, forgotten runs and killed commands have left.

    Args:
        folder: The folder of the sweep.
        planned: The runs of plan.json.
        ledger: The ledger. With a damaged line, or after an interrupted submission, it may lack jobs: then there are
            no leftovers.
        now_s: The time now, in seconds since 1970.
    """
    if ledger.damaged_lines or ledger.unconfirmed or ledger.open_tokens:
        return
    known = {run["run_id"] for run in planned} | ledger.jobs.keys()
    paths = [path for path in _entries(folder.path / "runs") if path.name not in known and _is_unused(path)]
    paths += _unknown_logs(folder.logs, ledger)
    paths += [path for path in _entries(folder.path) if _TEMPORARY.fullmatch(path.name) and path.is_file()]
    root = folder.code_store.parent
    for path in (*paths, *_unneeded_copies(folder)):
        if now_s - path.lstat().st_mtime > _LEAST_AGE_S:
            place = folder.path if path.is_relative_to(folder.path) else root
            yield _removable(Kind.LEFTOVERS, str(path.relative_to(place)), [path])


def _is_unused(run_dir: Path) -> bool:
    """Whether the folder of a run has no more than a submission writes: no record, checkpoint or result."""
    names = {path.name for path in _entries(run_dir)}
    return _is_folder(run_dir) and all(name == RUN_NAME or _TEMPORARY.fullmatch(name) for name in names)


def _unneeded_copies(folder: SweepFolder) -> Iterator[Path]:
    """The copies of code that no run of any sweep names, and what killed submissions have left.

    A copy in which a script has written files of its own stays.

    Args:
        folder: The folder of a sweep.
    """
    store = folder.code_store
    copies = _entries(store) if os.access(store, os.R_OK | os.X_OK) else []  # another user's are private
    named = _named_copies(folder) if copies else set()
    for path in copies:
        if path.name.startswith(".") or (path not in named and _is_unchanged(path)):
            yield path


def _named_copies(folder: SweepFolder) -> Collection[Path]:
    """The copies that a run of any sweep names; all of them if a run.json cannot be read."""
    named, store = set(), folder.code_store
    is_own = SweepFolder(store.parent).plan_file.is_file()
    sweeps = [store.parent] if is_own else store.parent.glob("*/*")
    for sweep, pattern in product(sweeps, ("runs/*", "runs/*/earlier/*", "smoke/runs/*")):
        for path in sweep.glob(f"{pattern}/{RUN_NAME}"):
            try:
                snapshot = recorded_snapshot(read_object(path) or {}, store)
            except DamagedFile:
                return _entries(store)
            if snapshot is not None:
                named.add(snapshot.folder)
    return named


def is_unneeded_copy(folder: SweepFolder, path: Path, now_s: float) -> bool:
    """Whether a folder of the store is still old, and no run names it: a submission makes what it uses young."""
    return now_s - path.lstat().st_mtime > _LEAST_AGE_S and path not in _named_copies(folder)


def _is_unchanged(copy: Path) -> bool:
    """Whether a copy has nothing but what was copied or linked, and what Python caches."""
    code, place = [*copy.name.split("-"), ""][:2]
    return digest_files(copy, sorted(_own_files(copy, place))) == code


def _own_files(copy: Path, place: str) -> Iterator[str]:
    """The files of a copy, without its links to the checkout of this digest."""
    for folder, folders, files in os.walk(copy):
        folders[:] = [name for name in folders if name != "__pycache__"]
        for entry in (*folders, *files):
            path = Path(folder, entry)
            name = str(path.relative_to(copy))
            if path.is_symlink():
                root = os.readlink(path).removesuffix(f"/{name}")
                if place_digest(root) != place:
                    yield name
            elif not path.is_dir():
                yield name


def _unknown_logs(logs: Path, ledger: Ledger) -> Iterator[Path]:
    """The logs and scripts of jobs that the ledger does not have, because their runs were forgotten or not sent."""
    jobs = {job.job_id for job in ledger.all_jobs()}
    arrays = set(map(array_of, jobs))
    for path in _entries(logs):
        slurm = _SLURM_LOG.fullmatch(path.name)
        if slurm:
            is_known = slurm["array"] in arrays
        elif _LOCAL_LOGS.fullmatch(path.name):
            is_known = path.name in jobs
        elif _UNSENT.fullmatch(path.name):
            is_known = path.is_symlink() and path.exists()  # submitit leaves a link to the script of each array
        else:
            continue
        if not is_known:
            yield path


def _removable(kind: Kind, name: str, paths: Sequence[Path]) -> Removable:
    return Removable(kind, name, tuple(paths), sum(map(_size_bytes, paths)))


def _entries(folder: Path) -> list[Path]:
    """What a folder has, in order of names; nothing if it does not exist or is a link to another disk."""
    return sorted(folder.iterdir()) if _is_folder(folder) else []


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _size_bytes(path: Path) -> int:
    """The size of a file, or of all files in a folder. What a link names does not count."""
    size = path.lstat().st_size
    if _is_folder(path):
        size = sum(_size_bytes(Path(entry.path)) for entry in os.scandir(path))
    return size
