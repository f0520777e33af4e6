"""One rank of a run that is the user's own script, from its environment to the summary; RankTask calls it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import signal
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from disttrain.command.channel import Channel, LostPeer, open_channel
from disttrain.command.rank_records import INTERVAL_S, recorded_ranks, write_samples
from disttrain.command.report import Report
from disttrain.command.script import Script
from disttrain.command.script_env import OUTPUT_NAME, base_environ, search_copy, torchrun_variables, worker_variables
from disttrain.command.script_failure import StderrMark, script_failure, worker_status
from disttrain.command.signals import WARNING, Signals, caught_endings, caught_signals, signals_to_forward
from disttrain.command.smoke_stop import smoke_stop
from disttrain.command.summary import summarise_reports
from disttrain.command.supervisor import PeerFailed, Supervisor
from disttrain.command.torchrun import torchrun_arguments
from disttrain.config.command.arguments import arguments
from disttrain.config.command.command_config import CommandConfig
from disttrain.environment.port_agreement import RENDEZVOUS_TIMEOUT_S, reserve_first
from disttrain.environment.rank_env import RankEnv
from disttrain.environment.stop_signals import StopSignals
from disttrain.errors import ScriptFailed, ScriptStopped, print_every_text
from disttrain.records import record_files
from disttrain.records.lifecycle.stage import RUNNING, end_stages, enter_stage
from disttrain.records.run_folder import remove_higher_ranks
from disttrain.records.script_metrics import (
    merge_ranks,
    new_metrics_file,
    new_metrics_folder,
    summarise_all,
    summarise_file,
)


def run_command(
    config: CommandConfig,
    env: RankEnv,
    run_dir: Path,
    *,
    gpus_per_node: int = 1,
    warning: signal.Signals = WARNING,
    stop_signals: StopSignals | None = None,
    timeout_s: float = RENDEZVOUS_TIMEOUT_S,
) -> None:
    """Runs the script of one rank, or torchrun on one node; rank 0 writes the summary.

    Args:
        config: The config of the run.
        env: The place of this process.
        run_dir: The folder of the run, on a file system that all ranks share.
        gpus_per_node: The number of ranks that torchrun starts on each node.
        warning: The signal that the script gets as a warning of the end of the job.
        stop_signals: The signals that have come before this call; None for none.
        timeout_s: The time in which all ranks must have started, in seconds.

    Raises:
        ScriptStopped: A script has saved its state and asks to be started again, and none has failed.
        ScriptFailed: The script of this rank or of another one has failed.
        UserError: The script cannot be started.
        Exception: Any other failure. For each, the rank has written its failure record, if the folder can be written.
    """
    print_every_text()
    (run_dir / record_files.failure_name(env.rank)).unlink(missing_ok=True)
    enter_stage(run_dir, env, "connecting", first=True)
    workers = None
    if config.uses_torchrun:
        workers = gpus_per_node
    rank = _Rank(config, env, run_dir, workers, warning)
    try:
        with caught_signals() as signals:
            warned = stop_signals is not None and stop_signals.warned  # later ones are in `signals`
            try:
                channel = open_channel(env, timeout_s)
            except Exception as error:
                record_files.write_failure(run_dir, env.rank, error)
                raise
            with caught_endings(), channel, _reported_failures(env, run_dir, channel):
                rank.run(signals, channel, warned=warned)
    finally:
        end_stages(run_dir, env)


@contextlib.contextmanager
def _reported_failures(env: RankEnv, run_dir: Path, channel: Channel) -> Iterator[None]:
    """Writes the failure record of this rank, and then reports the failure to the other ranks."""
    try:
        yield
    except LostPeer as error:
        record_files.write_failure(run_dir, env.rank, error)
        channel.send({"kind": "lost", "rank": error.rank})
        print(f"note: {error}", flush=True)
        raise ScriptFailed(1) from error
    except PeerFailed as error:
        channel.send({"kind": "failed", "rank": error.rank})
        print(f"note: {error}", flush=True)
        raise ScriptFailed(1) from error
    except ScriptFailed as error:
        if error.number is None:  # otherwise the others report that they have lost this rank
            channel.send({"kind": "failed", "rank": env.rank})
        raise
    except Exception as error:
        record_files.write_failure(run_dir, env.rank, error)
        channel.send({"kind": "failed", "rank": env.rank})
        raise


class _Rank:
    """One rank of a run."""

    def __init__(
        self, config: CommandConfig, env: RankEnv, run_dir: Path, workers: int | None, warning: signal.Signals
    ) -> None:
        self._config = config
        self._env = env
        self._run_dir = run_dir
        self._workers = workers  # that torchrun starts on this node
        self._warning = warning

    def run(self, signals: Signals, channel: Channel, *, warned: bool) -> None:
        """Runs the script, and returns when the scripts of all ranks have ended."""
        with self._agreed_port(channel) as port:
            if port is None:
                return
            with tempfile.TemporaryDirectory(prefix="sweep-") as folder:
                error_file = Path(folder) / "error.json"
                environ, words = self._prepare(port, error_file)
                stderr = StderrMark.now()
                is_enough = smoke_stop(self._run_dir, self._env.rank, self._config.stop_after_s)
                script = Script(words, Path(self._config.working_dir), environ, self._warning)
                with contextlib.closing(
                    Supervisor(
                        script,
                        channel,
                        signals,
                        warning=self._warning,
                        forwarded=signals_to_forward(os.environ),
                        warns_children=self._workers is not None,
                        warned=warned,
                        is_enough=is_enough,
                    )
                ) as supervisor:
                    report = self._wait(script, supervisor, environ, stderr, error_file)
                    self._conclude(report, supervisor, channel)

    @contextlib.contextmanager
    def _agreed_port(self, channel: Channel) -> Iterator[int | None]:
        """The port for the script's store, which rank 0 holds for the block; None if the run is already complete.

        That happens when a node fails at the very end, and the job is started again.
        """
        if self._env.rank != 0:
            yield channel.receive(0)["master_port"]
            return
        if self._env.restart_count > 0 and (self._run_dir / record_files.SUMMARY_NAME).exists():
            channel.send({"kind": "start", "master_port": None})
            yield None
            return
        # What the script has written stays.
        (self._run_dir / record_files.SUMMARY_NAME).unlink(missing_ok=True)
        remove_higher_ranks(self._run_dir, self._env.world_size * (self._workers or 1))
        with reserve_first(self._env.port_candidates()) as reserved:
            port: int = reserved.getsockname()[1]
            channel.send({"kind": "start", "master_port": port})
            yield port

    def _prepare(self, master_port: int, error_file: Path) -> tuple[dict[str, str], list[str]]:
        """The environment of the script, and its program with the arguments."""
        env, words = self._env, arguments(self._config)
        inherited = search_copy(os.environ, self._config)
        (self._run_dir / OUTPUT_NAME).mkdir(exist_ok=True)
        if self._workers is None:
            environ = base_environ(env, inherited, self._run_dir, new_metrics_file(self._run_dir, env.rank))
            return {**environ, **worker_variables(env, environ, master_port, error_file)}, words
        environ = base_environ(env, inherited, self._run_dir, new_metrics_folder(self._run_dir))
        words = torchrun_arguments(self._config, words, env, self._workers, master_port)
        return {**environ, **torchrun_variables(env, environ, self._workers, error_file)}, words

    def _wait(
        self, script: Script, supervisor: Supervisor, environ: Mapping[str, str], stderr: StderrMark, error_file: Path
    ) -> Report:
        """The report of this rank, when its script has ended.

        Raises:
            ScriptFailed: The script has failed, and its failure record is written.
        """
        enter_stage(self._run_dir, self._env, RUNNING)
        try:
            with recorded_ranks(self._env, self._run_dir, script.pid, environ, self._workers) as ranks:
                status = supervisor.wait_for_script(INTERVAL_S, functools.partial(write_samples, ranks))
        except BaseException:
            script.kill()
            raise
        if self._workers is not None:
            status = worker_status(
                status,
                stderr.text(),
                terminated=supervisor.terminated,
                warned=supervisor.warned_workers,
                restarted=supervisor.restarted,
            )
        if supervisor.terminated and status == 0:
            status = -signal.SIGTERM  # many scripts save at SIGTERM and end with 0, but they are not complete
        report = Report(status, warned=supervisor.warned, terminated=supervisor.terminated)
        if report.failed:
            failed = ScriptFailed(status, _same_signal(status, self._env))
            if failed.number is None:
                failure = script_failure(self._env.rank, status, error_file, stderr.text())
                record_files.save_failure(self._run_dir, failure)
            raise failed
        report = dataclasses.replace(report, ranks=tuple(rank.figures() for rank in ranks))
        if self._workers is not None:  # torchrun decides which ranks a node has: rank 0 reads all metrics at the end
            return report
        return dataclasses.replace(report, metrics=summarise_file(self._run_dir, self._env.rank))

    def _conclude(self, report: Report, supervisor: Supervisor, channel: Channel) -> None:
        """Waits for the other ranks. Rank 0 writes the summary, and then releases the others.

        So no process ends before all scripts have: srun ends a job two minutes after its first task.

        Raises:
            ScriptStopped: The run is to start again.
            ScriptFailed: The script was ended by Slurm's request.
        """
        stopped = False
        if self._env.rank == 0:
            reports = {0: report, **supervisor.wait_for_reports()}
            if self._workers is not None:
                reports[0] = dataclasses.replace(report, metrics=summarise_all(self._run_dir))
            stopped = any(other.stopped for other in reports.values())
            if all(other.status == 0 for other in reports.values()):
                records = record_files.read_records(self._run_dir / record_files.metrics_name(0))
                summary = summarise_reports(list(records), reports, self._env.num_nodes)
                record_files.write_json(self._run_dir / record_files.SUMMARY_NAME, summary)
            channel.send({"kind": "release", "stopped": stopped})
        else:
            reports = {self._env.rank: report}
            channel.send(report.to_message())
            stopped = supervisor.wait_for_release()
        if stopped:
            raise ScriptStopped(
                merge_ranks({rank: other.metrics for rank, other in reports.items()}).steps,
                terminated=any(other.terminated for other in reports.values()),
                warned=any(other.warned for other in reports.values()),
            )
        status = next((other.status for other in reports.values() if other.status), 0)
        if status:
            raise ScriptFailed(status, _same_signal(status, self._env))


def _same_signal(status: int, env: RankEnv) -> signal.Signals | None:
    """The signal by which this process ends as its script did, so that Slurm reports it; None to end with a status.

    Slurm says more about such an end than this process knows: that the node had no memory left, or who has ended it.
    """
    if env.launcher == "slurm" and status in (-signal.SIGKILL, -signal.SIGTERM):
        return signal.Signals(-status)
    return None
