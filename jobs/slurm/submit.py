"""Submits the job groups of a plan to Slurm through submitit."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from collections.abc import Callable, Mapping

from disttrain.errors import UserError
from jobs.entry import RankTask
from jobs.environ import clean_environ
from jobs.planning.expand import RunSpec
from jobs.planning.interpreter import compute_python
from jobs.planning.plan import JobGroup, Plan
from jobs.planning.sbatch_options import overruled_variables
from jobs.slurm.squeue import cluster_name
from jobs.storage import ledger
from jobs.storage.sweep_folder import SweepFolder


def require_slurm(cluster_name: str) -> None:
    """Checks that Slurm's commands are on PATH, before any file is written.

    Raises:
        UserError: sbatch or srun is missing.
    """
    for program in ("sbatch", "srun"):
        if shutil.which(program) is None:
            raise UserError(
                f"cluster {cluster_name!r} needs Slurm, and {program} is not on PATH",
                hint="submit from a login node, or try --cluster local",
            )


def send_to_slurm(
    plan: Plan, overrides: Mapping[str, str], clock: Callable[[], float], on_sent: Callable[[JobGroup, str], None]
) -> None:
    """Submits every group of the plan and records each in the ledger. Call `require_slurm` before.

    Args:
        plan: The plan of the runs to submit; their folders are prepared.
        overrides: The texts of ``--set``, for the ledger.
        clock: A function that returns the seconds since 1970.
        on_sent: A function that is called after each group, with the id of its job or job array.

    Raises:
        UserError: sbatch refused a group; the groups before it are submitted and recorded.
    """
    cluster = cluster_name(environ=os.environ) if plan.groups else None
    for group in plan.groups:
        run_ids = [run.run_id for run in group.runs]
        ledger.intend(plan.folder, run_ids, clock(), overrides)
        try:
            job_ids = _sbatch(plan, group)
        except UserError as error:
            ledger.give_up(plan.folder, run_ids, clock(), error.message)
            raise
        ledger.record(plan.folder, dict(zip(run_ids, job_ids, strict=True)), clock(), cluster=cluster)
        on_sent(group, job_ids[0].split("_")[0])


def _sbatch(plan: Plan, group: JobGroup) -> list[str]:
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    executor = SlurmExecutor(folder=plan.log_folder, python=compute_python(plan.cluster))
    executor.update_parameters(**group.parameters)
    tasks = [rank_task(plan, run) for run in group.runs]
    # submitit prints the output of sbatch after a refusal; our one-line error already has it.
    options = plan.cluster.sbatch if plan.cluster else ()
    overruled = overruled_variables(os.environ, plan.script(group), options)
    with clean_environ(other_node=True, overruled=overruled), contextlib.redirect_stderr(io.StringIO()):
        try:
            # submitit makes an array of several tasks, and a plain job of one.
            return [str(job.job_id) for job in executor.submit_array(tasks)]
        except (FailedJobError, FailedSubmissionError) as error:
            raise UserError(
                f"sbatch refused {len(tasks)} runs of {group.allocation}: {_reason(error)}",
                where=f"cluster {plan.cluster_name!r}",
                hint="sweep plan --scripts shows what was submitted",
            ) from None


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
