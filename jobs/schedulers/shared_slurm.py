"""Slurm for the commands that follow a sweep: they share its answers, and ask it at most once each half minute."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from disttrain.records.atomic_write import write_text
from disttrain.records.json_values import DamagedFile, check_fields, read_object, to_json
from jobs.schedulers.answers import Answers, Question
from jobs.schedulers.slurm_scheduler import SlurmScheduler, rows_named
from jobs.slurm.attempts import attempts_by_job
from jobs.slurm.squeue import QueuedJob
from jobs.slurm.states import parse_state
from jobs.storage.sweep_folder import SweepFolder

_CLAIM = ".watch-"
SHARED_S = 30.0  # how long an answer is used: sites ask for at most one or two questions a minute


@dataclass(frozen=True)
class _Shared:
    """The content of watch.json. The rows of sacct are in accounting.jsonl.

    Attributes:
        asked_s: The time of the latest question, in seconds since 1970; it may not be answered yet.
        answered_s: The time of the question that `queue` and `notices` answer; None if none is answered yet.
        queue: As of `Answers`; a job is a list of its fields.
        notices: As of `Answers`, and so are the others.
    """

    asked_s: float
    answered_s: float | None = None
    queue: dict[str, Any] | None = None
    notices: list[str] = dataclasses.field(default_factory=list)
    here: str | None = None
    is_current: bool = True

    def jobs(self) -> dict[str, QueuedJob] | None:
        """The jobs that squeue listed."""
        if self.queue is None:
            return None
        return {job_id: QueuedJob(job_id, parse_state(state), *rest) for job_id, (state, *rest) in self.queue.items()}


class SharedSlurm(SlurmScheduler):
    """Slurm, asked at most once each half minute for all processes of the owner that follow the sweep, on any host.

    The process that asks writes into watch.json when it asks, and then what squeue answered. Another user, and the
    owner where the folder cannot be written, ask for themselves alone, as seldom.

    Args:
        environ: The environment of Slurm's commands.
    """

    poll_s = 1.0

    def __init__(self, environ: Mapping[str, str]) -> None:
        super().__init__(environ)
        self._own: Answers | None = None  # the last answer to a question of this process
        self._own_s = float("-inf")  # the time of that question
        self._used_s: float | None = None  # the time of the question whose answer was given last

    def has_news(self, folder: SweepFolder) -> bool:
        """Whether the answer is half a minute old, or another process has a newer one."""
        shared = _read(folder)
        if self._used_s is None or not self._is_fresh(shared, time.time()):
            return True
        return shared is not None and (shared.answered_s or 0) > self._used_s

    def ask(self, question: Question) -> Answers:
        """The shared answer. If it is half a minute old, Slurm is asked, by one of the processes that need it."""
        now_s = time.time()
        shared = _read(question.folder)
        if self._is_fresh(shared, now_s) or not _claim(question.folder, shared, now_s):
            return self._last(shared, question)
        self._own_s = now_s
        self._own = dataclasses.replace(super().ask(question), asked_s=now_s)
        self._used_s = now_s
        _write(question.folder, self._own, now_s)
        return self._own

    def _is_fresh(self, shared: _Shared | None, now_s: float) -> bool:
        """Whether Slurm was asked in the last half minute; the clocks of two hosts may differ a little."""
        asked_s = [self._own_s] if shared is None else [self._own_s, shared.asked_s]
        return any(abs(now_s - time_s) < SHARED_S for time_s in asked_s)

    def _last(self, shared: _Shared | None, question: Question) -> Answers:
        """The latest answer to any process."""
        if self._own is not None and (shared is None or self._own_s >= (shared.answered_s or 0)):
            return self._own
        attempts = attempts_by_job(rows_named(question.saved, question.job_name))
        if shared is None or shared.answered_s is None:
            return Answers(attempts, is_current=False)
        self._used_s = shared.answered_s
        return Answers(
            attempts, tuple(shared.notices), shared.jobs(), shared.here, shared.is_current, asked_s=shared.answered_s
        )


def _read(folder: SweepFolder) -> _Shared | None:
    """What the processes share; None if it is not readable or damaged."""
    try:
        with folder.watch_file.open("rb") as file:  # NFS shows changes by other hosts when a file is opened
            stat = os.fstat(file.fileno())
    except OSError:
        return None
    return _parse(folder.watch_file, (stat.st_ino, stat.st_mtime_ns, stat.st_size))


@functools.lru_cache(maxsize=1)  # each process looks every second
def _parse(path: Path, _version: tuple[int, int, int]) -> _Shared | None:
    try:
        values = read_object(path)
        if values is None:
            return None
        check_fields(_Shared, values)
        shared = _Shared(**values)
        shared.jobs()
    except (DamagedFile, ValueError, TypeError):  # TypeError: another release has other fields
        return None
    return shared


def _claim(folder: SweepFolder, shared: _Shared | None, now_s: float) -> bool:
    """Whether this process may ask now. Only one process can create the file of a half minute of the clock."""
    if not folder.is_owner():
        return True
    number = int(now_s // SHARED_S)
    try:
        os.close(os.open(_claim_file(folder, number), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        return False
    except OSError:
        return True  # a full or read-only disk: each process asks for itself
    with contextlib.suppress(OSError):
        # At once: the answer may take a minute, and until then no other process may ask.
        _write_shared(folder, dataclasses.replace(shared or _Shared(now_s), asked_s=now_s))
    for path in folder.path.glob(f"{_CLAIM}*"):
        if path.name < _claim_file(folder, number).name:  # they have the same number of digits until the year 2286
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
    return True


def _claim_file(folder: SweepFolder, number: int) -> Path:
    return folder.path / f"{_CLAIM}{number}"


def _write(folder: SweepFolder, answers: Answers, asked_s: float) -> None:
    """Shares an answer. Where that is not possible, a notice of the answer itself says so."""
    if not folder.is_owner():
        return
    queue = answers.queue
    shared = _Shared(
        asked_s=asked_s,
        answered_s=asked_s,
        queue=None if queue is None else {job.job_id: dataclasses.astuple(job)[1:] for job in queue.values()},
        notices=list(answers.notices),
        here=answers.here,
        is_current=answers.is_current,
    )
    with contextlib.suppress(OSError):
        _write_shared(folder, shared)


def _write_shared(folder: SweepFolder, shared: _Shared) -> None:
    values = {field.name: getattr(shared, field.name) for field in dataclasses.fields(shared)}
    write_text(folder.watch_file, to_json(values) + "\n", private=True)
