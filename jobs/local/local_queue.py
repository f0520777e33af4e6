"""The queue of the local executor, which submitit lacks: it limits how many runs share this machine."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
from filelock import FileLock, Timeout

from disttrain.records.json_values import to_json
from jobs.local.local_run import LocalRun, end_processes, is_alive
from jobs.local.machine import QueuedRun, place, this_machine
from jobs.planning.plan import Plan
from jobs.slurm.attempts import AccountingRow
from jobs.slurm.states import State
from jobs.storage import ledger
from jobs.storage.sweep_folder import SweepFolder

_POLL_S = 0.5
_Handler = Callable[[int, FrameType | None], Any] | signal.Handlers


def _exit_on_signal(number: int, _: object) -> None:
    sys.exit(128 + number)


# The signals that end a queue. The default action of SIGTERM and SIGHUP would end it without a cleanup, and its ranks
# would continue. SIGINT needs Python's handler: in a process that a script has started in the background it is ignored,
# children inherit this, and Python then does not install its handler.
_ENDING_SIGNALS: Mapping[signal.Signals, _Handler] = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: _exit_on_signal,
    signal.SIGHUP: _exit_on_signal,
}


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
        folder.logs.mkdir(parents=True, exist_ok=True)

    def run(self, tick: Callable[[], None] = lambda: None) -> None:
        """Works until every run has ended. If a signal ends the queue earlier, the queue ends the running runs first.

        Args:
            tick: A function that is called about twice a second.
        """
        with _signal_handlers(_ENDING_SIGNALS):
            try:
                for run in self._waiting:
                    self._record(run, State.PENDING)
                with _machine_lock(tick):
                    # Only the queue with the lock starts runs. If a process of this sweep still exists, its queue was
                    # killed, and it must not write to the same files as the runs that start now.
                    end_processes(self._folder.logs)
                    while self._waiting or self._running:
                        self._cancel_requested()
                        self._start_fitting_runs()
                        tick()
                        time.sleep(_POLL_S)
                        self._record_ended_runs()
            finally:
                # A second Ctrl-C of an impatient user must not interrupt the cleanup after the first.
                with _signal_handlers(dict.fromkeys(_ENDING_SIGNALS, signal.SIG_IGN)):
                    self._cancel_all()

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
        except OSError:
            return  # a shared disk that is away for a moment
        if size_bytes == self._ledger_bytes:
            return
        self._ledger_bytes = size_bytes
        cancelled = ledger.read_ledger(self._folder.path).cancelled
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


@contextlib.contextmanager
def _signal_handlers(handlers: Mapping[signal.Signals, _Handler]) -> Iterator[None]:
    """Installs these signal handlers, and restores the earlier ones at the end."""
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _machine_lock(tick: Callable[[], None]) -> Iterator[None]:
    """Lets only one queue of a user work at a time, because two would overload the machine."""
    lock = FileLock(Path(tempfile.gettempdir()) / f"sweep-local-{os.getuid()}.lock")
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
    """
    folder = SweepFolder(plan.folder)
    submit_s = int(clock())
    runs = [
        QueuedRun(
            run_id=run.run_id,
            job_id=f"local-{submit_s}-{index}",
            nodes=run.allocation.nodes,
            gpus_per_node=run.allocation.gpus_per_node,
            on_cpu=run.config.device == "cpu",
        )
        for index, run in enumerate(plan.runs)
    ]
    jobs = {run.run_id: run.job_id for run in runs}
    if in_process:
        ledger.record(folder.path, jobs, clock(), _queue_process(psutil.Process()), overrides)
        return LocalQueue(folder, runs, max_ranks, submit_s)
    worker = _start_worker(folder)
    ledger.record(folder.path, jobs, clock(), _queue_process(psutil.Process(worker.pid)), overrides)
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


def _queue_process(process: psutil.Process) -> ledger.QueueProcess:
    return ledger.QueueProcess(socket.gethostname(), process.pid, process.create_time())


def is_queue_alive(queue: ledger.QueueProcess) -> bool:
    """Whether the process of a local queue exists; assumed for a process on another host."""
    if queue.host != socket.gethostname():
        return True
    try:
        # Two readings of one start time differ by rounding. The start time of a process that reuses the pid differs
        # by far more.
        process = psutil.Process(queue.pid)
        return abs(process.create_time() - queue.created_s) < 2 and is_alive(process)
    except psutil.NoSuchProcess:
        return False


def _main() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also while it waits for its request
    request = json.load(sys.stdin)
    runs = [QueuedRun(**run) for run in request["runs"]]
    LocalQueue(SweepFolder(Path(request["folder"])), runs, request["max_ranks"], request["submit_s"]).run()


if __name__ == "__main__":
    _main()
