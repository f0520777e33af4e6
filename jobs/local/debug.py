"""The debug executor: runs every run in this process, as one rank."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from jobs.entry import RankTask
from jobs.environ import clean_environ
from jobs.planning.expand import RunSpec
from jobs.planning.plan import Plan
from jobs.storage.sweep_folder import SweepFolder


def run_in_debugger(plan: Plan, runs: Sequence[RunSpec]) -> None:
    """Runs the runs in this process one after the other, as one rank each: breakpoints work, and an error opens pdb.

    Args:
        plan: The plan of the sweep; its folder is a scratch folder (`scratch_folder`).
        runs: The runs in their order; an error ends the sequence.
    """
    from submitit import DebugExecutor

    executor = DebugExecutor(folder=plan.log_folder)
    with clean_environ():
        for run in runs:
            task = RankTask(run_dir=str(SweepFolder(plan.folder).run(run.run_id)), nodes=1, gpus_per_node=1)
            executor.submit(task).results()


def scratch_folder(sweep_name: str) -> Path:
    """A new folder for one debug session, so that its records cannot be mistaken for those of a real run."""
    return Path(tempfile.mkdtemp(prefix=f"sweep-debug-{sweep_name}-")) / sweep_name / "debug"
