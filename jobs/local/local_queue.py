"""The queue of the local executor, which submitit lacks: it limits how many runs share this machine."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from filelock import FileLock, Timeout

from disttrain.config.command.command_config import CommandConfig
from disttrain.config.train_config import TrainConfig
from disttrain.records.json_values import to_json
from jobs.local.local_run import LocalRun, end_processes
from jobs.local.machine import QueuedRun, place, require_gpus, this_machine
from jobs.local.queue_process import LOST_S, beating, heartbeat_file, identify, is_queue_alive
from jobs.planning.plan import Plan
from jobs.slurm.attempts import AccountingRow
from jobs.slurm.states import State
from jobs.storage import ledger
from jobs.storage.ending_signals import Handler, exiting_handlers, signal_handlers
from jobs.storage.sweep_folder import SweepFolder

_POLL_S = 0.5
# A folder of this machine, the same in every shell: $TMPDIR may differ.
_LOCK_FOLDER = Path("/tmp")  # noqa: S108


class LocalQueue:
    """Runs a list of runs on this machine, as many at a time as fit, and records their states as sacct would.

    Args:
        folder: The folder of the sweep.
        runs: The runs, in the order in which they start.
        max_ranks: The number of ranks at a time; None for the number of GPUs or cores.
        submit_s: The submission time in seconds since 1970.
    """

    def __init__(self, folder: SweepFolder, runs: Sequence[QueuedRun], max_ranks: int | None, submit_s: int) -> None:
        self._folder = folder
        self._waiting = list(runs)
        self._running: list[LocalRun] = []
        self._max_ranks = max_ranks
        self._submit_s = submit_s
        self._ledger_bytes = 0
        self._machine = this_machine(os.environ)
        self._awake_s = time.time()
        folder.logs.mkdir(parents=True, exist_ok=True)

    def run(self, tick: Callable[[], None] = lambda: None) -> None:
        """Works until every run has ended. If a signal ends the queue earlier, the queue ends the running runs first.

        Args:
            tick: A function that is called about twice a second.
        """
        ending = _ending_signals()
        heartbeat = heartbeat_file(identify(os.getpid()), self._folder.logs)
        with signal_handlers(ending), beating(heartbeat):
            try:
                for run in self._waiting:
                    self._record(run, State.PENDING)
                with _machine_lock(lambda: self._poll(tick)):
                    self._end_orphans()
                    while self._waiting or self._running:
                        self._leave_lost_runs()
                        self._poll(tick)
                        self._start_fitting_runs()
                        time.sleep(_POLL_S)
                        self._record_ended_runs()
            finally:
                # A second Ctrl-C of an impatient user must not interrupt the cleanup after the first.
                with signal_handlers(dict.fromkeys(ending, signal.SIG_IGN)):
                    self._cancel_all()

    def _poll(self, tick: Callable[[], None]) -> None:
        self._cancel_requested()
        tick()

    def _end_orphans(self) -> None:
        """Ends what killed queues have left: it must not write to the same files as the runs that start now."""
        logs = self._folder.logs
        jobs = [job for job in ledger.read_ledger(self._folder.path).all_jobs() if job.queue]
        alive = {queue for queue in {job.queue for job in jobs} if queue and is_queue_alive(queue, logs)}
        end_processes(logs, {job.job_id for job in jobs if job.queue in alive})

    def _leave_lost_runs(self) -> None:
        """Ends the runs that were submitted again elsewhere while this process was stopped, or its machine asleep."""
        now_s = time.time()
        if now_s - self._awake_s < LOST_S:
            self._awake_s = now_s
            return
        try:
            jobs_by_run = ledger.read_ledger(self._folder.path).jobs
        except OSError:
            return  # the disk is not back yet
        if not ledger.size_bytes(self._folder.path):
            return  # nor is it mounted yet
        self._awake_s = now_s
        latest = {run_id: jobs[-1].job_id for run_id, jobs in jobs_by_run.items()}
        self._waiting = [run for run in self._waiting if latest.get(run.run_id) == run.job_id]
        for running in list(self._running):
            if latest.get(running.run.run_id) != running.run.job_id:
                running.kill()
                self._running.remove(running)
                self._record(running.run, State.CANCELLED, running.start_s)

    def _cancel_all(self) -> None:
        for running in self._running:
            running.kill()
            self._record(running.run, State.CANCELLED, running.start_s)
        for run in self._waiting:
            self._record(run, State.CANCELLED)

    def _cancel_requested(self) -> None:
        """Ends the runs that `sweep cancel` has noted in the ledger since the last look."""
        try:
            size_bytes = (self._folder.path / ledger.LEDGER_NAME).stat().st_size
            if size_bytes == self._ledger_bytes:
                return
            cancelled = ledger.read_ledger(self._folder.path).cancelled
        except OSError:
            return  # a shared disk that is away for a moment
        self._ledger_bytes = size_bytes
        for running in [running for running in self._running if running.run.run_id in cancelled]:
            running.kill()
            self._running.remove(running)
            self._record(running.run, State.CANCELLED, running.start_s)
        for run in [run for run in self._waiting if run.run_id in cancelled]:
            self._waiting.remove(run)
            self._record(run, State.CANCELLED)

    def _start_fitting_runs(self) -> None:
        while self._waiting:
            run = self._waiting[0]
            occupied = [(running.run, running.placement) for running in self._running]
            placement = place(run, occupied, self._machine, self._max_ranks)
            if placement is None:
                return  # keeps the order: small runs that would fit must not delay a large one forever
            # The run is in the list before it starts: after an interrupted start `_cancel_all` still ends it.
            running = LocalRun(self._folder, run, placement)
            self._running.append(running)
            del self._waiting[0]
            running.start()
            self._record(run, State.RUNNING, running.start_s)

    def _record_ended_runs(self) -> None:
        for running in list(self._running):
            state = running.poll()
            if state is not None:
                self._running.remove(running)
                self._record(running.run, state, running.start_s, exit_code=int(not state.is_success))

    def _record(self, run: QueuedRun, state: State, start_s: int | None = None, exit_code: int | None = None) -> None:
        row = AccountingRow(
            job_id=run.job_id, state=state, submit_s=self._submit_s, start_s=start_s, exit_code=exit_code
        )
        if state.is_finished:
            row = replace(row, end_s=int(time.time()))
        if row.start_s is not None and row.end_s is not None:
            row = replace(row, elapsed_s=row.end_s - row.start_s)
        ledger.append_lines(self._folder.accounting_file, [to_json(row.to_json())])


def _ending_signals() -> dict[signal.Signals, Handler]:
    """The signals that end a queue, with handlers that let it end its runs first.

    SIGINT needs Python's handler: in a process that a script has started in the background it is ignored, children
    inherit this, and Python then does not install its handler.
    """
    return {signal.SIGINT: signal.default_int_handler, **exiting_handlers()}


@contextlib.contextmanager
def _machine_lock(tick: Callable[[], None]) -> Iterator[None]:
    """Lets only one queue of a user work at a time, because two would overload the machine."""
    lock = FileLock(_LOCK_FOLDER / f"sweep-local-{os.getuid()}.lock")
    while not lock.is_locked:
        with contextlib.suppress(Timeout):
            lock.acquire(timeout=_POLL_S)
        tick()
    with lock:
        lock.release()  # undoes the second acquisition by the `with` statement
        yield


def send_to_local(
    plan: Plan, overrides: Mapping[str, str], max_ranks: int | None, clock: Callable[[], float], *, in_process: bool
) -> LocalQueue | None:
    """Queues every run of the plan on this machine, and records the runs in the ledger.

    Args:
        plan: The plan of the runs to submit; their folders are prepared.
        overrides: The texts of ``--set``, for the ledger.
        max_ranks: The number of ranks at a time; None for the number of GPUs or cores.
        clock: A function that returns the seconds since 1970.
        in_process: Whether this process runs the queue. If not, a background process does, which outlives this one.

    Returns:
        The queue that the caller has to run, if `in_process`.

    Raises:
        UserError: A run of a script has more ranks than this machine has GPUs.
    """
    folder = SweepFolder(plan.folder)
    submit_s = int(clock())
    queue_id = f"local-{submit_s}-{secrets.token_hex(3)}"  # two queues may begin in one second
    runs = [
        QueuedRun(
            run_id=run.run_id,
            job_id=f"{queue_id}-{index}",
            nodes=run.allocation.nodes,
            gpus_per_node=run.allocation.gpus_per_node,
            on_cpu=isinstance(run.config, TrainConfig) and run.config.device == "cpu",
            by_node=run.by_node,
            is_script=isinstance(run.config, CommandConfig),
        )
        for index, run in enumerate(plan.runs)
    ]
    if any(run.is_script for run in runs):
        machine = this_machine(os.environ)
        for run in runs:
            require_gpus(run, machine)
    jobs = {run.run_id: run.job_id for run in runs}
    worker = None if in_process else _start_worker(folder)
    queue = identify(worker.pid if worker else os.getpid())
    heartbeat_file(queue, folder.logs).touch()  # it is alive before it can show it
    ledger.record(folder.path, jobs, clock(), queue, overrides)
    if worker is None:
        return LocalQueue(folder, runs, max_ranks, submit_s)
    assert worker.stdin is not None
    with worker.stdin as pipe:
        request = {"folder": str(folder.path), "max_ranks": max_ranks, "submit_s": submit_s}
        json.dump({**request, "runs": [asdict(run) for run in runs]}, pipe)
    return None


def _start_worker(folder: SweepFolder) -> subprocess.Popen[str]:
    """Starts the background process of a queue. It reads its request from stdin."""
    with (folder.logs / "queue.log").open("a") as log:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "jobs.local.local_queue"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C in this terminal must not reach the queue
            text=True,
        )


def _main() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also while it waits for its request
    request = json.load(sys.stdin)
    runs = [QueuedRun(**run) for run in request["runs"]]
    LocalQueue(SweepFolder(Path(request["folder"])), runs, request["max_ranks"], request["submit_s"]).run()


if __name__ == "__main__":
    _main()
