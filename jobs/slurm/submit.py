"""Submits the job groups of a plan to Slurm through submitit."""

from __future__ import annotations

import contextlib
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
from jobs.planning.expand import RunSpec
from jobs.planning.interpreter import compute_python
from jobs.planning.plan import JobGroup, Plan
from jobs.planning.sbatch_options import overruled_variables
from jobs.slurm.control import cancel, release
from jobs.slurm.interrupted import cancel_orphans
from jobs.slurm.sacct_table import AccountingUnavailable
from jobs.slurm.squeue import cluster_name, comment_of, query_squeue
from jobs.storage import ledger
from jobs.storage.sweep_folder import SweepFolder

# Errors after which the controller may have the job: its answer was lost.
_UNCLEAR = re.compile(
    r"no clear answer|timed? ?out|unable to contact|connection|communication|zero bytes|transport endpoint|shut down",
    re.IGNORECASE,
)


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
) -> None:
    """Submits every group of the plan on hold, records it in the ledger, and releases it. Call `require_slurm` before.

    So no job starts that is not recorded. The jobs carry a token, by which those of a broken submission are found.

    Args:
        plan: The plan of the runs to submit; their folders are prepared.
        overrides: The texts of ``--set``, for the ledger.
        clock: A function that returns the seconds since 1970.
        on_sent: A function that is called after each group, with the id of its job or job array.

    Raises:
        UserError: sbatch refused a group, or gave no clear answer; the groups before it are submitted and recorded. Or
            a job could not be released.
    """
    cluster = cluster_name(environ=os.environ) if plan.groups else None
    not_released: dict[str, UserError] = {}
    for group in plan.groups:
        run_ids = [run.run_id for run in group.runs]
        token = secrets.token_hex(8)
        ledger.intend(plan.folder, run_ids, clock(), overrides, token)
        try:
            job_ids = _sbatch(plan, group, token)
        except UserError as error:
            _undo(plan, token, run_ids, clock(), error)
        # The user may want them on hold.
        stays_held = bool((group.parameters.get("additional_parameters") or {}).get("hold"))
        jobs, job_id = dict(zip(run_ids, job_ids, strict=True)), ledger.array_of(job_ids[0])
        if set(run_ids) - set(ledger.read_ledger(plan.folder).unconfirmed):
            # The lock does not hold between hosts on some file systems.
            cancel([job_id], environ=os.environ)
            raise UserError("another sweep submit has taken over these runs", hint="sweep status shows what was sent")
        ledger.record(plan.folder, jobs, clock(), cluster=cluster, token=token, held=not stays_held)
        try:
            if not stays_held:
                release([job_id], environ=os.environ)
                ledger.released(plan.folder, [job_id], clock())
        except UserError as error:
            not_released[job_id] = error
        on_sent(group, job_id)
    if not_released:
        first = next(iter(not_released.values()))
        message = f"{first.message}; on hold: {', '.join(not_released)}"
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
    is_refusal = not _UNCLEAR.search(error.message)
    if jobs or (is_refusal and jobs is not None):
        ledger.give_up(plan.folder, run_ids, time_s, error.message)
    if jobs:
        message = f"{error.message}; the job that it had accepted, {', '.join(jobs)}, was on hold and is cancelled"
        raise UserError(message, where=error.where, hint="submit again")
    if is_refusal:
        raise error
    hint = "submit again: what it may have accepted is on hold, and is cancelled first"
    raise UserError(error.message, where=error.where, hint=hint)


def _sbatch(plan: Plan, group: JobGroup, token: str) -> list[str]:
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    executor = SlurmExecutor(folder=plan.log_folder, python=compute_python(plan.cluster))
    executor.update_parameters(**group.parameters)
    tasks = [rank_task(plan, run) for run in group.runs]
    # submitit prints the output of sbatch after a refusal; our one-line error already has it.
    options = plan.cluster.sbatch if plan.cluster else ()
    overruled = overruled_variables(os.environ, plan.script(group), options)
    with (
        clean_environ(other_node=True, overruled=overruled),
        contextlib.redirect_stderr(io.StringIO()),
        _on_hold(SlurmExecutor, token, group.parameters),
    ):
        try:
            # submitit makes an array of several tasks, and a plain job of one.
            return [str(job.job_id) for job in executor.submit_array(tasks)]
        except (FailedJobError, FailedSubmissionError) as error:
            raise UserError(
                f"sbatch refused {len(tasks)} runs of {group.allocation}: {_reason(error)}",
                where=f"cluster {plan.cluster_name!r}",
                hint="sweep plan --scripts shows what was submitted",
            ) from None


@contextlib.contextmanager
def _on_hold(executor: Any, token: str, parameters: Mapping[str, Any]) -> Iterator[None]:
    """Lets submitit call sbatch with a hold and the token, and read the job's number as wrappers of sbatch print it.

    An array is sent by another executor that submitit makes itself, so the class is changed.
    """
    comment = comment_of(token)
    if own := (parameters.get("additional_parameters") or {}).get("comment"):
        comment = f"{own} {comment}"
    before = executor._make_submission_command, executor.__dict__["_get_job_id_from_submission_command"]
    executor._make_submission_command = lambda _, path: ["sbatch", "--hold", f"--comment={comment}", str(path)]
    executor._get_job_id_from_submission_command = staticmethod(_job_id_in)
    try:
        yield
    finally:
        executor._make_submission_command, executor._get_job_id_from_submission_command = before


def _job_id_in(output: str | bytes) -> str:
    """The number of the job in what sbatch, or a wrapper of it, has printed: in a sentence, or alone in a line.

    Raises:
        FailedSubmissionError: There is none.

    Example:
        >>> _job_id_in("Submitted batch job 12\\nCharged to 7\\n"), _job_id_in("12;a\\n"), _job_id_in(b"Hello\\n12")
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


def rank_task(plan: Plan, run: RunSpec) -> RankTask:
    """The task that each rank of the run executes."""
    return RankTask(
        run_dir=str(SweepFolder(plan.folder).run(run.run_id)),
        nodes=run.allocation.nodes,
        gpus_per_node=run.allocation.gpus_per_node,
    )
