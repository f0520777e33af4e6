"""What runs on each rank: `RankTask`, the picklable callable that submitit starts once for every GPU."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from disttrain.config.train_config import TrainConfig
from disttrain.environment.rank_env import RankEnv
from disttrain.records.record_files import write_failure


@dataclass(frozen=True)
class RankTask:
    """One rank of one run.

    It is pickled by reference and holds no config: the run's own run.json does, written before the submission.

    Args:
        run_dir: Folder of the run, absolute.
        nodes: Nodes of the allocation.
        gpus_per_node: Ranks of each.
        folded: All nodes are this one host (local executor).
        visible_gpus: For CUDA_VISIBLE_DEVICES; None: as the scheduler set it.
        threads: Of torch on this rank, unless the user's environment says; None: the scheduler's cores decide.
    """

    run_dir: str
    nodes: int
    gpus_per_node: int
    folded: bool = False
    visible_gpus: str | None = None
    threads: int | None = None

    def __call__(self) -> None:
        _restore_signals()
        if self.visible_gpus is not None:
            # submitit's local executor sets it to the first GPUs of the machine, whatever else runs on them.
            os.environ["CUDA_VISIBLE_DEVICES"] = self.visible_gpus
        if self.threads is not None:
            os.environ.setdefault("OMP_NUM_THREADS", str(self.threads))
        run_dir = Path(self.run_dir)
        try:
            from disttrain.run import run  # torch, only here and only now

            env = RankEnv.from_environ(os.environ)
            if self.folded:
                env = env.fold(self.nodes)
            asked = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))
            # Where a family of the user's own lies; behind the installed packages, so that it hides none of them.
            sys.path.extend(asked.get("import_path", ()))
            config = dataclasses.replace(TrainConfig(**asked["train"]), setup=f"{self.nodes}x{self.gpus_per_node}")
        except Exception as error:
            write_failure(run_dir, _likely_rank(os.environ), error)  # what fails later, `run` writes down itself
            raise
        run(config, env, run_dir)


def _likely_rank(environ: Mapping[str, str]) -> int:
    """The rank of a process whose environment cannot be read as one."""
    told = environ.get("SLURM_PROCID") or environ.get("SUBMITIT_LOCAL_GLOBALID") or ""
    return int(told) if told.isdecimal() else 0


def _restore_signals() -> None:
    """Undoes submitit's handlers: with them a rank ignores SIGTERM, and lives until Slurm's SIGKILL 30 s later.

    USR2, which warns of the time limit or of a preemption, would end rank 0 alone, in the middle of a step, with the
    others stuck in an all-reduce. A run goes on until it is killed, and its next attempt from the last checkpoint.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGCONT, signal.SIG_DFL)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
