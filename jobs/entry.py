"""The entry point of each rank: `RankTask`, the picklable callable that submitit starts once for every GPU."""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from disttrain.config.command.command_config import CommandConfig, is_command
from disttrain.config.hub_inputs import with_pinned
from disttrain.config.train_config import TrainConfig, is_own_family
from disttrain.environment.rank_env import RankEnv
from disttrain.environment.stop_signals import StopSignals
from disttrain.environment.variables import parse_count
from disttrain.errors import STOPPED_STATUS, ScriptFailed, ScriptStopped, Stopped
from disttrain.records.lifecycle.attempt_log import ASKED_AGAIN, NotResumed, ResumePolicy
from disttrain.records.record_files import write_failure
from jobs.resumption import begin_attempt, end_attempt, notify_end

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
        began_s = time.monotonic()
        # What a later job may get: the run changes its own, for example to the network of these nodes.
        environ = dict(os.environ)
        _restore_signals()
        stop_signals = StopSignals() if self.resume is not None else None
        if self.visible_gpus is not None:
            # submitit's local executor sets it to the first GPUs of the machine, even if other runs use them.
            os.environ["CUDA_VISIBLE_DEVICES"] = self.visible_gpus
        if self.threads is not None:
            os.environ.setdefault("OMP_NUM_THREADS", str(self.threads))
        if self.folded:
            # It is for submitit's controller (see LocalRun): programs that this rank starts search their own folder.
            os.environ.pop("PYTHONSAFEPATH", None)
        try:
            self._run(began_s, stop_signals, environ)
        except (Exception, SystemExit) as error:
            if self.notifies:
                if isinstance(error, Exception):
                    # `run` has set a shorter time, after which this process ends even if its threads hang.
                    faulthandler.dump_traceback_later(_NOTIFY_S, exit=True, file=_STDERR)
                notify_end(Path(self.run_dir), environ)
            if isinstance(error, ScriptFailed) and error.number is not None:
                os.kill(os.getpid(), error.number)
            raise
        if self.notifies and _likely_rank(os.environ) == 0:
            notify_end(Path(self.run_dir), environ)

    def _run(self, began_s: float, stop_signals: StopSignals | None, environ: Mapping[str, str]) -> None:
        run_dir = Path(self.run_dir)
        try:
            env = RankEnv.from_environ(os.environ)
            if self.folded:
                env = env.fold(self.nodes)
            description = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))
            if is_command(description):
                run = self._prepare_script(description, env, stop_signals)
            else:
                run = self._prepare_training(description, env, stop_signals)
            if self.resume is not None and env.rank == 0:
                begin_attempt(run_dir, str(env.job_id), self.resume, os.environ)
        except Exception as error:
            write_failure(run_dir, _likely_rank(os.environ), error)  # `run` writes its own failures
            raise
        try:
            run()
        except Stopped as stopped:
            if env.rank == 0:
                self._end_attempt(stopped, env, began_s, environ)

    def _prepare_training(
        self, description: Mapping[str, Any], env: RankEnv, stop_signals: StopSignals | None
    ) -> Callable[[], object]:
        """The call that trains a model of ours."""
        from disttrain.run import run  # a rank imports it, the login node never does

        setup = f"{self.nodes}x{self.gpus_per_node}"
        config = with_pinned(TrainConfig(**description["train"]), description, os.environ)
        config = dataclasses.replace(config, setup=setup)
        folders: Sequence[str] = ()
        if is_own_family(config.model):
            # Other runs must import nothing from them: libraries try optional packages, and a stray pydot.py next to
            # the sweep would be one.
            folders = description.get("import_path", ())

        def train() -> None:
            with _importing_from(folders):
                run(config, env, Path(self.run_dir), stop_signals)

        return train

    def _prepare_script(
        self, description: Mapping[str, Any], env: RankEnv, stop_signals: StopSignals | None
    ) -> Callable[[], object]:
        """The call that runs the user's own script."""
        from disttrain.command_run import run_command

        config = CommandConfig.from_run(description)
        warning = signal.SIGUSR2
        if self.resume is not None:
            warning = signal.Signals[f"SIG{self.resume.warning_signal}"]

        def run_script() -> None:
            run_command(
                config,
                env,
                Path(self.run_dir),
                gpus_per_node=self.gpus_per_node,
                warning=warning,
                stop_signals=stop_signals,
            )

        return run_script

    def _end_attempt(self, stopped: Stopped, env: RankEnv, began_s: float, environ: Mapping[str, str]) -> None:
        """Rank 0 of a run that has stopped: starts the next attempt, or leaves the reason why there is none."""
        try:
            if self.resume is None:
                assert isinstance(stopped, ScriptStopped)  # nothing warns a model of ours
                raise NotResumed(f"{ASKED_AGAIN} ({stopped.end}); without Slurm, sweep submit does that")
            end_attempt(stopped, Path(self.run_dir), str(env.job_id), self.resume, began_s, environ)
        except NotResumed as error:
            write_failure(Path(self.run_dir), env.rank, error)
            print(f"note: {error}", flush=True)
            sys.exit(STOPPED_STATUS)


@contextlib.contextmanager
def _importing_from(folders: Sequence[str]) -> Iterator[None]:
    """Lets Python search these folders last, so that they hide no installed package."""
    before = list(sys.path)
    sys.path.extend(folders)
    try:
        yield
    finally:
        sys.path[:] = before


def _likely_rank(environ: Mapping[str, str]) -> int:
    """The rank of a process whose environment has errors; 0 if no variable gives it."""
    rank = environ.get("SLURM_PROCID") or environ.get("SUBMITIT_LOCAL_GLOBALID") or ""
    return parse_count(rank) or 0


def _restore_signals() -> None:
    """Removes submitit's signal handlers, with which a rank ignores SIGTERM until Slurm sends SIGKILL 30 s later.

    USR2 warns of the time limit or of a preemption. With submitit's handler it would end only rank 0, in the middle of
    a step, and the other ranks would wait in an all-reduce.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGCONT, signal.SIG_DFL)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGQUIT, signal.SIG_IGN)  # sweep stacks sends it, also before `run` can write them
