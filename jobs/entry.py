"""The entry points of ranks: picklable callables, which submitit starts once for every GPU."""

from __future__ import annotations

import faulthandler
import os
from dataclasses import dataclass
from pathlib import Path

from disttrain.environment.rank_env import RankEnv
from disttrain.records.lifecycle.attempt_log import ResumePolicy
from jobs.resumption import chain_command, notify_end

_NOTIFY_S = 60.0  # a rank that has failed ends after this time
_STDERR = 2  # the descriptor: sys.stderr may be replaced by an object without one


@dataclass(frozen=True)
class RankTask:
    """One rank of one run.

    The pickle refers to this class by name and has no config. The config is in the run's run.json, which is written
    before the submission.

    Args:
        run_dir: The absolute path of the run's folder.
        nodes: The number of nodes of the allocation.
        gpus_per_node: The number of ranks on each node.
        folded: Whether this one host stands for all nodes (local executor).
        visible_gpus: The value of CUDA_VISIBLE_DEVICES; None for the scheduler's value.
        threads: The number of torch threads of this rank, unless the user's environment sets OMP_NUM_THREADS; None for
            the default, which follows the scheduler's cores.
        resume: How the run resumes after its job was ended; None outside Slurm.
        notifies: Whether the end of the run may be what the user wants to be notified of.
    """

    run_dir: str
    nodes: int
    gpus_per_node: int
    folded: bool = False
    visible_gpus: str | None = None
    threads: int | None = None
    resume: ResumePolicy | None = None
    notifies: bool = False

    def __call__(self) -> None:
        from disttrain.stored_run import StoredRun, end_like_script, likely_rank  # the login node never runs a rank

        environ = dict(os.environ)
        if self.visible_gpus is not None:
            # submitit's local executor sets it to the first GPUs of the machine, even if other runs use them.
            os.environ["CUDA_VISIBLE_DEVICES"] = self.visible_gpus
        if self.threads is not None:
            os.environ.setdefault("OMP_NUM_THREADS", str(self.threads))
        if self.folded:
            # It is for submitit's controller (see LocalRun): programs that this rank starts search their own folder.
            os.environ.pop("PYTHONSAFEPATH", None)
        run_dir = Path(self.run_dir)
        chain = chain_command(self.run_dir)
        run = StoredRun(run_dir, self.nodes, self.gpus_per_node, self.folded, self.resume, chain)
        try:
            run.run_rank()
        except (Exception, SystemExit) as error:
            if self.notifies:
                if isinstance(error, Exception):
                    # `run` has set a shorter time, after which this process ends even if its threads hang.
                    faulthandler.dump_traceback_later(_NOTIFY_S, exit=True, file=_STDERR)
                notify_end(run_dir, environ)
            end_like_script(error)
            raise
        if self.notifies and likely_rank(os.environ) == 0:
            notify_end(run_dir, environ)


@dataclass(frozen=True)
class DoctorTask:
    """One rank of a job of `sweep doctor`.

    Args:
        folder: The absolute path of the job's folder, with its request.
        nodes: The number of nodes of the allocation.
        folded: Whether this one host stands for all nodes (local executor).
    """

    folder: str
    nodes: int
    folded: bool = False

    def __call__(self) -> None:
        from disttrain.doctor_run import run_doctor
        from disttrain.stored_run import reset_signals

        reset_signals()
        env = RankEnv.from_environ(os.environ)
        run_doctor(Path(self.folder), env.fold(self.nodes) if self.folded else env)
