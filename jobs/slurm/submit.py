"""Submits the job groups of a plan to Slurm through submitit."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from disttrain.errors import UserError
from jobs.entry import RankTask
from jobs.environ import clean_environ
from jobs.planning.interpreter import compute_python
from jobs.planning.plan import JobGroup, Plan, request_of
from jobs.planning.sbatch_options import overruled_variables
from jobs.slurm.control import cancel, release
from jobs.slurm.interrupted import cancel_orphans
from jobs.slurm.sacct_table import AccountingUnavailable
from jobs.slurm.squeue import ClusterConfig, cluster_config, comment_of, query_squeue
from jobs.storage import ledger
from jobs.storage.sweep_folder import SweepFolder

# Errors after which the controller may have the job: its answer was lost.
UNCLEAR = re.compile(
    r"no clear answer|timed? ?out|unable to contact|connection|communication|zero bytes|transport endpoint|shut down",
    re.IGNORECASE,
)
# The limits of the jobs that a user may have at the same time: AssocMaxSubmitJobLimit, QOSMaxSubmitJobPerUserLimit, ...
SUBMIT_LIMIT = re.compile(r"\b(?:Assoc|QOS)\w*Submit\w*|Slurm temporarily unable to accept job")


def require_slurm(cluster_name: str) -> None:
    """Checks that Slurm's commands are on PATH, before any file is written.

    Raises:
        UserError: sbatch or srun is missing.
    """
    for program in ("sbatch", "srun", "squeue", "scontrol", "scancel"):
        if shutil.which(program) is None:
            raise UserError(
                f"cluster {cluster_name!r} needs Slurm, and {program} is not on PATH",
                hint="submit from a login node, or try --cluster local",
            )


def send_to_slurm(
    plan: Plan, overrides: Mapping[str, str], clock: Callable[[], float], on_sent: Callable[[JobGroup, str], None]
) -> tuple[list[str], str]:
    """Submits every group of the plan on hold, records it in the ledger, and releases it. Call `require_slurm` before.

    So no job starts that is not recorded. The jobs carry a token, by which those of a broken submission are found.
    Arrays are not larger than the cluster accepts. If the user has as many jobs as Slurm accepts, a smaller array is
    tried, and what does not fit is left.

    Args:
        plan: The plan of the runs to submit; their folders are prepared.
        overrides: The texts of ``--set``, for the ledger.
        clock: A function that returns the seconds since 1970.
        on_sent: A function that is called after each group, with the id of its job or job array.

    Returns:
        The ids of the runs that did not fit, and Slurm's word for the limit.

    Raises:
        UserError: sbatch refused a group, or gave no clear answer; the groups before it are submitted and recorded. Or
            a job could not be released.
    """
    if not plan.groups:
        return [], ""
    cluster = cluster_config(environ=os.environ)
    check_cluster(cluster, os.environ)
    submission = _Submission(plan, overrides, clock, cluster.name)
    unsent: list[str] = []
    limit = ""
    # The number of runs that may still fit, by what the limits may depend on; each refused call of sbatch halves it.
    room: dict[tuple[Any, ...], int] = {}
    for group in plan.groups:
        waiting = list(group.runs)
        key = tuple(group.parameters.get(name) for name in ("account", "qos", "partition"))
        while waiting:
            largest = min(cluster.max_array_size or len(waiting), room.get(key, len(waiting)))
            if largest == 0:
                unsent += [run.run_id for run in waiting]
                break
            chunk = dataclasses.replace(group, runs=tuple(waiting[:largest]))
            try:
                job_id = submission.send(chunk)
            except _Full as full:
                limit = full.limit
                room[key] = len(chunk.runs) // 2
                continue
            del waiting[: len(chunk.runs)]
            on_sent(chunk, job_id)
    submission.check_released()
    return unsent, limit


class _Full(Exception):
    """Slurm accepts no more jobs of this user at present."""

    def __init__(self, limit: str) -> None:
        super().__init__(limit)
        self.limit = limit


def check_cluster(cluster: ClusterConfig, environ: Mapping[str, str]) -> None:
    """Checks that the jobs go to the cluster that the user's variables name: all commands ask that of this host.

    Raises:
        UserError: SLURM_CLUSTERS or SBATCH_CLUSTERS names another one.
    """
    for variable in ("SBATCH_CLUSTERS", "SLURM_CLUSTERS"):
        wanted = environ.get(variable)
        if wanted and cluster.name and not {cluster.name, "all"} & set(wanted.split(",")):
            message = f"{variable} is {wanted!r}, but this host submits to cluster {cluster.name!r}"
            raise UserError(message, hint=f"submit from a login node of {wanted}, or unset {variable}")


class _Submission:
    """Sends arrays one after the other.

    Args:
        plan: The plan.
        overrides: The texts of ``--set``.
        clock: A function that returns the seconds since 1970.
        cluster: The name of the cluster.
    """

    def __init__(
        self, plan: Plan, overrides: Mapping[str, str], clock: Callable[[], float], cluster: str | None
    ) -> None:
        self._plan = plan
        self._overrides = overrides
        self._clock = clock
        self._cluster = cluster
        self._not_released: dict[str, UserError] = {}

    def send(self, group: JobGroup) -> str:
        """Submits a group as one array, or as a plain job, and returns its id.

        Raises:
            _Full: The user has as many jobs as Slurm accepts.
            UserError: As in `send_to_slurm`.
        """
        folder = self._plan.folder
        run_ids = [run.run_id for run in group.runs]
        token, size_before = secrets.token_hex(8), ledger.size_bytes(folder)
        ledger.intend(folder, run_ids, self._clock(), self._overrides, token, request_of(group), group.after)
        try:
            job_ids = _sbatch(self._plan, group, token)
        except UserError as error:
            if (full := SUBMIT_LIMIT.search(error.message)) and not UNCLEAR.search(error.message):
                ledger.give_up(folder, run_ids, self._clock(), error.message, [token])
                raise _Full(full[0]) from None
            _undo(self._plan, token, run_ids, self._clock(), error)
        # The user may want them on hold.
        stays_held = bool((group.parameters.get("additional_parameters") or {}).get("hold"))
        jobs, job_id = dict(zip(run_ids, job_ids, strict=True)), ledger.array_of(job_ids[0])
        if set(run_ids) - set(ledger.read_ledger(folder, size_before).unconfirmed):
            # The lock does not hold between hosts on some file systems.
            cancel([job_id], environ=os.environ)
            raise UserError("another sweep submit has taken over these runs", hint="sweep status shows what was sent")
        ledger.record(folder, jobs, self._clock(), cluster=self._cluster, token=token, held=not stays_held)
        try:
            if not stays_held:
                release([job_id], environ=os.environ)
                ledger.released(folder, [job_id], self._clock())
        except UserError as error:
            self._not_released[job_id] = error
        return job_id

    def check_released(self) -> None:
        """Checks that every job was released.

        Raises:
            UserError: Some were not.
        """
        if self._not_released:
            first = next(iter(self._not_released.values()))
            message = f"{first.message}; on hold: {', '.join(self._not_released)}"
            raise UserError(message, hint="submit again: it releases what is on hold")


def _undo(plan: Plan, token: str, run_ids: Sequence[str], time_s: float, error: UserError) -> NoReturn:
    """Ends what sbatch may have accepted before its error. Without an answer, a later submission does it.

    Raises:
        UserError: The error of sbatch, and what became of its jobs.
    """
    jobs: list[str] | None = None
    with contextlib.suppress(AccountingUnavailable, UserError):
        queued = query_squeue(plan.sweep_name, user_id=os.geteuid(), environ=os.environ)
        jobs = cancel_orphans(queued.values(), {token}, environ=os.environ)
    is_refusal = not UNCLEAR.search(error.message)
    if jobs or (is_refusal and jobs is not None):
        ledger.give_up(plan.folder, run_ids, time_s, error.message, [token])
    if jobs:
        message = f"{error.message}; the job that it had accepted, {', '.join(jobs)}, was on hold and is cancelled"
        raise UserError(message, where=error.where, hint="submit again")
    if is_refusal:
        raise error
    hint = "submit again: what it may have accepted is on hold, and is cancelled first"
    raise UserError(error.message, where=error.where, hint=hint)


def _sbatch(plan: Plan, group: JobGroup, token: str) -> list[str]:
    options = ["--hold", f"--comment={job_comment(token, group.parameters)}"]
    return send_tasks(plan, group, rank_tasks(plan, group), options)


def send_tasks(plan: Plan, group: JobGroup, tasks: Sequence[Callable[[], None]], options: Sequence[str]) -> list[str]:
    """Calls sbatch once: for an array of these tasks with the request of a group, or for a plain job of one task.

    Args:
        plan: The plan with the group.
        group: What is requested.
        tasks: What each rank calls, for each task of the array.
        options: Options of the command line of sbatch.

    Returns:
        The id of each task's job.

    Raises:
        UserError: sbatch refused it, or gave no clear answer.
    """
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    executor = SlurmExecutor(folder=plan.log_folder, python=compute_python(group.profile))
    executor.update_parameters(**group.parameters)
    # submitit prints the output of sbatch after a refusal; our one-line error already has it.
    with (
        clean_environ(other_node=True, overruled=overruled_by(plan, group)),
        contextlib.redirect_stderr(io.StringIO()),
        _called_with(SlurmExecutor, options),
    ):
        try:
            # submitit makes an array of several tasks, and a plain job of one.
            return [str(job.job_id) for job in executor.submit_array(tasks)]
        except (FailedJobError, FailedSubmissionError) as error:
            raise UserError(
                f"sbatch refused {len(tasks)} runs of {group.allocation}: {_reason(error)}",
                where=f"cluster {plan.cluster.name!r}",
                hint="sweep plan --scripts shows what was submitted",
            ) from None


def overruled_by(plan: Plan, group: JobGroup) -> frozenset[str]:
    """The SBATCH_ variables of the user that must not reach sbatch with the script of a group."""
    options = group.profile.sbatch if group.profile else ()
    return overruled_variables(os.environ, plan.script(group), options)


@contextlib.contextmanager
def _called_with(executor: Any, options: Sequence[str]) -> Iterator[None]:
    """Lets submitit call sbatch with these options, and read the job's number as wrappers of sbatch print it.

    An array is sent by another executor that submitit makes itself, so the class is changed.
    """
    before = executor._make_submission_command, executor.__dict__["_get_job_id_from_submission_command"]
    executor._make_submission_command = lambda _, path: ["sbatch", *options, str(path)]
    executor._get_job_id_from_submission_command = staticmethod(job_id_in)
    try:
        yield
    finally:
        executor._make_submission_command, executor._get_job_id_from_submission_command = before


def job_comment(token: str, parameters: Mapping[str, Any]) -> str:
    """The comment of a job: the user's own, and the token by which the job is found again."""
    comment = comment_of(token)
    if own := (parameters.get("additional_parameters") or {}).get("comment"):
        comment = f"{own} {comment}"
    return comment


def job_id_in(output: str | bytes) -> str:
    """The number of the job in what sbatch, or a wrapper of it, has printed: in a sentence, or alone in a line.

    Raises:
        FailedSubmissionError: There is none.

    Example:
        >>> job_id_in("Submitted batch job 12\\nCharged to 7\\n"), job_id_in("12;a\\n"), job_id_in(b"Hello\\n12")
        ('12', '12', '12')
    """
    from submitit.core.utils import FailedSubmissionError

    text = output.decode(errors="replace") if isinstance(output, bytes) else output
    for pattern in (r"\bSubmitted batch job (\d+)", r"^\s*(\d+)(?:;\S*)?\s*$"):
        if found := re.findall(pattern, text, re.MULTILINE):
            return str(found[-1])
    raise FailedSubmissionError(f"no clear answer: {' '.join(text.split()) or 'nothing'}")


def _reason(error: Exception) -> str:
    """All lines of sbatch's error in one: the first line often names the wrong value."""
    lines = [line.removeprefix("sbatch: ").removeprefix("error: ") for line in str(error).splitlines() if line.strip()]
    return "; ".join(lines) or type(error).__name__


def rank_tasks(plan: Plan, group: JobGroup) -> list[RankTask]:
    """The tasks of the runs of a group: each rank of a run executes that of the run."""
    resume, notifies = None, False
    if group.profile is not None:
        resume, notifies = group.profile.resume_policy, group.profile.notify is not None
    folder = SweepFolder(plan.folder)
    return [
        RankTask(
            run_dir=str(folder.run(run.run_id)),
            nodes=run.allocation.nodes,
            gpus_per_node=run.allocation.gpus_per_node,
            resume=resume,
            notifies=notifies,
        )
        for run in group.runs
    ]
