"""The adapter to submitit for Slurm and for the debugger; the local executor's is the queue that it lacks."""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Callable

from disttrain.errors import UserError
from jobs.entry import RankTask
from jobs.environ import clean_environ
from jobs.planning.cluster_profile import compute_python
from jobs.planning.expand import RunSpec
from jobs.planning.plan import JobGroup, Plan
from jobs.storage import ledger
from jobs.storage.sweep_folder import SweepFolder


def require_slurm(cluster_name: str) -> None:
    """Checks that Slurm can be asked, before anything is written.

    Raises:
        UserError: There is no Slurm here.
    """
    for program in ("sbatch", "srun"):
        if shutil.which(program) is None:
            raise UserError(
                f"cluster {cluster_name!r} needs Slurm, and {program} is not on PATH",
                hint="submit from a login node, or try --cluster local",
            )


def send_to_slurm(plan: Plan, clock: Callable[[], float], sent: Callable[[JobGroup, str], None]) -> None:
    """Submits every group of the plan, and records each in the ledger; `require_slurm` has found Slurm here.

    Args:
        plan: Of the runs to send; their folders are prepared.
        clock: Seconds since 1970.
        sent: Called after each group with the id of its job (array).

    Raises:
        UserError: sbatch refused a group; the groups before it are sent and recorded.
    """
    for group in plan.groups:
        run_ids = [run.run_id for run in group.runs]
        ledger.intend(plan.folder, run_ids, clock())
        try:
            job_ids = _sbatch(plan, group)
        except UserError as error:
            ledger.give_up(plan.folder, run_ids, clock(), error.message)
            raise
        ledger.record(plan.folder, dict(zip(run_ids, job_ids, strict=True)), clock())
        sent(group, job_ids[0].split("_")[0])


def _sbatch(plan: Plan, group: JobGroup) -> list[str]:
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    executor = SlurmExecutor(folder=plan.log_folder, python=compute_python(plan.cluster))
    executor.update_parameters(**group.parameters)
    tasks = [rank_task(plan, run) for run in group.runs]
    # submitit prints what sbatch says of a refusal, which the one line of our error repeats.
    with clean_environ(other_node=True), contextlib.redirect_stderr(io.StringIO()):
        try:
            # An array for many, a plain job for one.
            return [str(job.job_id) for job in executor.submit_array(tasks)]
        except (FailedJobError, FailedSubmissionError) as error:
            raise UserError(
                f"sbatch refused {len(tasks)} runs of {group.allocation}: {_reason(error)}",
                where=f"cluster {plan.cluster_name!r}",
                hint="sweep plan --scripts shows what was sent",
            ) from None


def _reason(error: Exception) -> str:
    """What sbatch said, in one line: the value at fault is often in the first of its lines."""
    lines = [line.removeprefix("sbatch: ").removeprefix("error: ") for line in str(error).splitlines() if line.strip()]
    return "; ".join(lines) or type(error).__name__


def rank_task(plan: Plan, run: RunSpec) -> RankTask:
    """What each rank of the run is started with."""
    return RankTask(
        run_dir=str(SweepFolder(plan.folder).run(run.run_id)),
        nodes=run.allocation.nodes,
        gpus_per_node=run.allocation.gpus_per_node,
    )
