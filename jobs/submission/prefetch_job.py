"""The job of `sweep prefetch`: what it requests, and the lines that it prints."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

from disttrain.errors import UserError
from disttrain.records.atomic_write import write_text
from disttrain.records.job_files.prefetch_files import (
    FOLDER_NAME,
    PrefetchOutcome,
    PrefetchRequest,
    read_outcome,
    read_request,
    write_request,
)
from disttrain.records.json_values import DamagedFile, read_object, to_json
from jobs.environ import clean_environ
from jobs.planning.allocation import Allocation
from jobs.planning.cluster_profile import ClusterProfile, override
from jobs.planning.plan import batch_script, slurm_parameters
from jobs.planning.sbatch_options import overruled_variables
from jobs.slurm.command import run_command
from jobs.slurm.sacct_table import AccountingUnavailable
from jobs.slurm.squeue import QueuedJob, ask_controller, query_squeue
from jobs.slurm.states import State
from jobs.slurm.submit import job_id_in, require_slurm
from jobs.storage.job_logs import LogPrinter, log_files
from jobs.storage.ledger import submission_lock
from jobs.storage.sweep_folder import SweepFolder
from jobs.submission.messages import note, say

_JOB_NAME = "job.json"  # the id of the latest job
_SCRIPT_NAME = "job.sh"
_POLL_S = 1.0  # between two looks at the log
_ASK_EVERY_S = 30.0  # between two questions to Slurm
_OUTCOME_LATE_S = 10.0  # a shared file system may show the outcome this long after the end of the job


def fetch_by_job(
    folder: SweepFolder, request: PrefetchRequest, profile: ClusterProfile, sweep_name: str, command: str
) -> PrefetchOutcome:
    """Sends the job, or finds the one of an earlier call, and prints its log until the outcome exists.

    Args:
        folder: The folder of the sweep.
        request: What is to be fetched.
        profile: What the job requests (`without_gpus`).
        sweep_name: The name of the sweep.
        command: What the job starts.

    Raises:
        UserError: Slurm refuses the job, it ended without an outcome, or one with another request waits or runs.
    """
    require_slurm(folder.cluster_name)
    name = _job_name(sweep_name)
    with fetching_lock(folder):
        job_id = _earlier_job(folder, request, name)
        if job_id is None:
            write_request(folder.path, request)
            job_id = _send(folder, profile, name, command)
            say(f"fetching by job {job_id}, without GPUs")
        else:
            say(f"fetching by job {job_id} of an earlier call")
    try:
        return _follow(folder, job_id, name)
    except KeyboardInterrupt:
        note(f"job {job_id} continues; the same command shows it again, and scancel {job_id} ends it")
        raise


def fetching_lock(folder: SweepFolder) -> AbstractContextManager[None]:
    """Locks the request of a sweep, so that no second call replaces it, or writes the manifest at the same time.

    Raises:
        UserError: Another process has the lock.
    """
    inner = folder.path / FOLDER_NAME
    inner.mkdir(mode=0o700, exist_ok=True)
    return submission_lock(inner)


def require_no_job(folder: SweepFolder, sweep_name: str) -> None:
    """Checks that no job of an earlier call fetches.

    Raises:
        UserError: One waits or runs.
    """
    try:
        job_id = _unfinished_job(folder, _job_name(sweep_name))
    except AccountingUnavailable as error:
        note(f"{error}: it is not known whether a job of an earlier call fetches, too")
        return
    if job_id is not None:
        message = f"job {job_id} of an earlier sweep prefetch has not ended"
        raise UserError(message, hint=f"wait for its end, or end it with scancel {job_id}")


def without_gpus(profile: ClusterProfile, *, keeps_constraint: bool = True) -> ClusterProfile:
    """What the job requests: the cores and the memory of one GPU of the profile, and no GPU.

    Args:
        profile: What the runs request.
        keeps_constraint: Whether the job needs the features of their nodes; those of another partition differ.
    """
    of_gpus = {name: False for name in profile.sbatch if _is_of_gpus(name)}
    changes: dict[str, Any] = {"gpu_request": "none", "gpu_type": None, "requeue": "off", "sbatch": of_gpus}
    if not keeps_constraint:
        changes["constraint"] = None
    return override(profile, changes, str)


def _is_of_gpus(option: str) -> bool:
    """Whether an option of sbatch requests GPUs, or depends on them.

    Example:
        >>> [_is_of_gpus(option) for option in ("gpu-bind", "mem_per_gpu", "gres-flags", "mem-per-cpu", "mail-type")]
        [True, True, True, False, False]
    """
    name = option.replace("_", "-")
    return name.startswith(("gpu", "gres")) or name.endswith("-per-gpu") or name == "tres-bind"


def job_script(folder: SweepFolder, profile: ClusterProfile, name: str, command: str) -> str:
    """The batch script of the job."""
    parameters = slurm_parameters(name, Allocation(1, 1), profile)
    return batch_script(command, folder.path / FOLDER_NAME, parameters)


def _send(folder: SweepFolder, profile: ClusterProfile, name: str, command: str) -> str:
    from submitit.core.utils import FailedSubmissionError

    script = job_script(folder, profile, name, command)
    path = folder.path / FOLDER_NAME / _SCRIPT_NAME
    write_text(path, script, private=True)
    try:
        with clean_environ(other_node=True, overruled=overruled_variables(os.environ, script, profile.sbatch)):
            job_id = job_id_in(ask_controller(["sbatch", str(path)], os.environ, run_command))
    except (AccountingUnavailable, FailedSubmissionError) as error:
        hint = "--partition and --time change the job; --here needs none"
        raise UserError(f"the job that fetches cannot be sent: {error}", hint=hint) from None
    write_text(folder.path / FOLDER_NAME / _JOB_NAME, to_json({"job_id": job_id}) + "\n", private=True)
    return job_id


def _earlier_job(folder: SweepFolder, request: PrefetchRequest, name: str) -> str | None:
    """The id of the job of an earlier call that waits or runs; None if there is none.

    Raises:
        UserError: It has another request.
    """
    job_id = _unfinished_job(folder, name)
    if job_id is None:
        return None
    with contextlib.suppress(DamagedFile):
        if read_request(folder.path) == request:
            return job_id
    message = f"job {job_id} of an earlier sweep prefetch still fetches other inputs"
    raise UserError(message, hint=f"wait for its end, or end it with scancel {job_id}")


def _unfinished_job(folder: SweepFolder, name: str) -> str | None:
    """The id of the latest job, if it waits or runs."""
    try:
        job_id = (read_object(folder.path / FOLDER_NAME / _JOB_NAME) or {}).get("job_id")
        has_ended = read_outcome(folder.path) is not None
    except DamagedFile:
        return None  # the job is sent again
    if job_id is None or has_ended:
        return None
    job = _ask(name).get(str(job_id))
    return str(job_id) if job is not None and not job.state.is_finished else None


def _job_name(sweep_name: str) -> str:
    return f"{sweep_name}-prefetch"


def _ask(name: str) -> dict[str, QueuedJob]:
    return query_squeue(name, user_id=os.geteuid(), environ=os.environ)


def _follow(folder: SweepFolder, job_id: str, name: str) -> PrefetchOutcome:
    """Prints the log of the job until it has an outcome.

    Raises:
        UserError: The job ended without one.
    """
    printers = {
        ".out": LogPrinter(sys.stdout.buffer, headings=False),
        ".err": LogPrinter(sys.stderr.buffer, headings=False),
    }

    def print_new() -> None:
        for path in log_files(folder.path / FOLDER_NAME, job_id, 0):
            printers[path.suffix].print_new([path])

    states = _states(job_id, name)
    while True:
        print_new()
        if (outcome := read_outcome(folder.path)) is not None:
            print_new()
            return outcome
        ended_as = next(states)
        if ended_as is not None:
            print_new()
            raise _lost(folder, job_id, ended_as)
        time.sleep(_POLL_S)


def _states(job_id: str, name: str) -> Iterator[str | None]:
    """At each look: how the job has ended, some seconds after its end; None before. It asks Slurm rarely."""
    asked_s, ended_s = -_ASK_EVERY_S, None
    state, shown = "", ""
    while True:
        now_s = time.monotonic()
        if ended_s is None and now_s - asked_s >= _ASK_EVERY_S:
            asked_s = now_s
            try:
                job = _ask(name).get(job_id)
            except AccountingUnavailable as error:
                note(str(error))
                yield None
                continue
            if job is None or job.state.is_finished:
                ended_s, state = now_s, str(job.state if job else State.UNKNOWN)
            elif job.state.is_pending and shown != job.reason:
                shown = job.reason
                note(f"job {job_id} {job.explanation or f'waits ({job.reason})'}")
        yield state if ended_s is not None and now_s - ended_s > _OUTCOME_LATE_S else None


def _lost(folder: SweepFolder, job_id: str, ended_as: str) -> UserError:
    hint = f"repeat the command: what is complete is not fetched again; its log is in {folder.path / FOLDER_NAME}"
    if ended_as == State.TIMEOUT:
        hint = "repeat the command with a longer --time: what is complete is not fetched again"
    return UserError(f"job {job_id} ended ({ended_as}) before all inputs were complete", hint=hint)
