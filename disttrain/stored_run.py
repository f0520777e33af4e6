"""One rank of a run that is stored in a folder: what run.json says, from the start of an attempt to its end."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
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
from disttrain.environment.stop_signals import WARNING, StopSignals
from disttrain.environment.variables import parse_count
from disttrain.errors import (
    STOPPED_STATUS,
    BrokenNode,
    NewerAttempt,
    ScriptFailed,
    ScriptStopped,
    Stopped,
    UserError,
    exit_with_error,
)
from disttrain.records.json_values import damaged, read_object
from disttrain.records.lifecycle.attempt_log import ASKED_AGAIN, ATTEMPTS_NAME, POLICY, NotResumed, ResumePolicy
from disttrain.records.lifecycle.resumption import begin_attempt, end_attempt
from disttrain.records.record_files import RUN_NAME, write_failure

_PLACE = ("nodes", "gpus_per_node")
_HINT = "sweep plan --scripts --plain writes it"


@dataclass(frozen=True)
class StoredRun:
    """A run in its folder, and how its ranks are started.

    Args:
        run_dir: The absolute path of the folder.
        nodes: The number of nodes of the allocation.
        gpus_per_node: The number of ranks on each node.
        folded: Whether this one host stands for all nodes.
        resume: How the run resumes after its job was ended; None outside Slurm.
        chain: The command that submits the next job of a chain, as of `end_attempt`.
        by_hand: Whether a user submits each job: one that Slurm has not requeued begins with new budgets.
    """

    run_dir: Path
    nodes: int
    gpus_per_node: int
    folded: bool = False
    resume: ResumePolicy | None = None
    chain: Sequence[str] = ()
    by_hand: bool = False

    def run_rank(self) -> None:
        """Runs the rank of this process, and writes its records.

        Raises:
            ScriptFailed: The user's script has failed.
            SystemExit: The run has stopped. The status is `STOPPED_STATUS`.
            Exception: Any other failure. For each, the rank has written its failure record, if the folder can be
                written.
        """
        began_s = time.monotonic()
        # What a later job may get: the run changes its own, for example to the network of these nodes.
        environ = dict(os.environ)
        reset_signals()
        stop_signals = StopSignals() if self.resume is not None else None
        with recorded_failure(self.run_dir):
            env = RankEnv.from_environ(os.environ)
            if self.folded:
                env = env.fold(self.nodes)
            run = self._prepare(env, stop_signals)
            if self.resume is not None and env.rank == 0:
                if self.by_hand and env.restart_count == 0:
                    (self.run_dir / ATTEMPTS_NAME).unlink(missing_ok=True)
                begin_attempt(self.run_dir, str(env.job_id), self.resume, os.environ)
        try:
            run()  # it writes its own failures
        except Stopped as stopped:
            if env.rank == 0:
                self._end_attempt(stopped, env, began_s, environ)

    def _prepare(self, env: RankEnv, stop_signals: StopSignals | None) -> Callable[[], object]:
        """The call that runs what run.json describes."""
        description = _read_description(self.run_dir, _HINT if self.by_hand else "sweep submit writes it")
        if is_command(description):
            return self._prepare_script(description, env, stop_signals)
        return self._prepare_training(description, env, stop_signals)

    def _prepare_training(
        self, description: Mapping[str, Any], env: RankEnv, stop_signals: StopSignals | None
    ) -> Callable[[], object]:
        """The call that trains a model of ours."""
        from disttrain.run import run  # the rank of a script needs none of it

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
                run(config, env, self.run_dir, stop_signals)

        return train

    def _prepare_script(
        self, description: Mapping[str, Any], env: RankEnv, stop_signals: StopSignals | None
    ) -> Callable[[], object]:
        """The call that runs the user's own script."""
        from disttrain.command_run import run_command

        config = CommandConfig.from_run(description)
        warning = WARNING
        if self.resume is not None:
            warning = signal.Signals[f"SIG{self.resume.warning_signal}"]

        def run_script() -> None:
            run_command(
                config,
                env,
                self.run_dir,
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
            end_attempt(stopped, self.run_dir, str(env.job_id), self.resume, began_s, environ, self.chain)
        except NotResumed as error:
            write_failure(self.run_dir, env.rank, error)
            print(f"note: {error}", flush=True)
            sys.exit(STOPPED_STATUS)


@contextlib.contextmanager
def recorded_failure(run_dir: Path) -> Iterator[None]:
    """Writes the failure record of a rank that cannot start."""
    try:
        yield
    except Exception as error:
        write_failure(run_dir, likely_rank(os.environ), error)
        raise


def likely_rank(environ: Mapping[str, str]) -> int:
    """The rank of a process whose environment has errors; 0 if no variable gives it."""
    rank = environ.get("SLURM_PROCID") or environ.get("SUBMITIT_LOCAL_GLOBALID") or ""
    return parse_count(rank) or 0


def end_like_script(error: BaseException) -> None:
    """Ends this process by the signal that has ended the user's script, if it was one that Slurm says more about."""
    if isinstance(error, ScriptFailed) and error.number is not None:
        os.kill(os.getpid(), error.number)


def read_stored_run(run_dir: Path) -> StoredRun:
    """The run of a plain batch script, by its run.json.

    Raises:
        UserError: The file is missing or damaged.
    """
    description = _read_description(run_dir, _HINT)
    try:
        place = {name: parse_count(str(description.get(name))) for name in _PLACE}
        missing = [name for name, value in place.items() if not value]
        if missing:
            raise ValueError(f"{missing[0]} is {description.get(missing[0])!r}")
        if not isinstance(description.get("train"), dict):
            raise ValueError("it has no 'train'")
        policy = description.get(POLICY)
        resume = ResumePolicy.from_json(policy) if isinstance(policy, dict) else None
    except ValueError as error:
        raise damaged(run_dir / RUN_NAME, error, _HINT) from None
    return StoredRun(run_dir, place["nodes"] or 0, place["gpus_per_node"] or 0, resume=resume, by_hand=True)


def _read_description(run_dir: Path, hint: str) -> dict[str, Any]:
    description = read_object(run_dir / RUN_NAME, hint)
    if description is None:
        raise UserError(f"{str(run_dir)!r} has no {RUN_NAME}", hint=hint)
    return description


@contextlib.contextmanager
def _importing_from(folders: Sequence[str]) -> Iterator[None]:
    """Lets Python search these folders last, so that they hide no installed package."""
    before = list(sys.path)
    sys.path.extend(folders)
    try:
        yield
    finally:
        sys.path[:] = before


def reset_signals() -> None:
    """Removes submitit's signal handlers, with which a rank ignores SIGTERM until Slurm sends SIGKILL 30 s later.

    USR2 warns of the time limit or of a preemption. With submitit's handler it would end only rank 0, in the middle of
    a step, and the other ranks would wait in an all-reduce. Without any handler it would end each rank.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGCONT, signal.SIG_DFL)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGQUIT, signal.SIG_IGN)  # sweep stacks sends it, also before `run` can write them


def main(arguments: list[str]) -> None:
    """The command ``python -m disttrain.run RUN_DIR``: one rank of a run that a plain batch script starts.

    The exit status is 2 for a user's mistake, and 1 for a broken node or a newer attempt of the run.

    Args:
        arguments: The folder of the run.
    """
    parser = argparse.ArgumentParser("python -m disttrain.run", description="Runs one rank of a run of a sweep.")
    parser.add_argument("run_dir", metavar="RUN_DIR", help="folder of the run, with run.json")
    run_dir = Path(parser.parse_args(arguments).run_dir).absolute()
    try:
        with recorded_failure(run_dir):
            stored = read_stored_run(run_dir)
        stored.run_rank()
    except UserError as error:
        exit_with_error(error, status=2)
    except (BrokenNode, NewerAttempt) as error:
        exit_with_error(error, status=1)
    except ScriptFailed as error:
        end_like_script(error)
        raise
