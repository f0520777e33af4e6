"""The queue that submitit's local executor lacks: never more runs at once than this machine carries."""

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
from dataclasses import asdict
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from jobs.local.local_run import LocalRun, end_processes, is_alive
from jobs.local.machine import QueuedRun, place, this_machine
from jobs.planning.plan import Plan
from jobs.slurm.attempts import AccountingRow
from jobs.slurm.states import State
from jobs.storage import ledger
from jobs.storage.sweep_folder import SweepFolder

_POLL_S = 0.5


class LocalQueue:
    """Runs a list of runs on this machine, as many at once as it carries; notes what became of each, as sacct would."""

    def __init__(self, folder: SweepFolder, runs: Sequence[QueuedRun], max_ranks: int | None, submit_s: int) -> None:
        self._folder = folder
        self._waiting = list(runs)
        self._running: list[LocalRun] = []
        self._max_ranks = max_ranks
        self._submit_s = submit_s
        self._machine = this_machine(os.environ)
        folder.logs.mkdir(parents=True, exist_ok=True)

    def run(self, tick: Callable[[], None] = lambda: None) -> None:
        """Works until every run has ended; where it is itself ended before, it ends what runs.

        Args:
            tick: Called about twice a second.
        """
        for run in self._waiting:
            self._note(run, State.PENDING)
        # Their default would leave the ranks behind.
        with _handling(dict.fromkeys((signal.SIGTERM, signal.SIGHUP), lambda number, _: sys.exit(128 + number))):
            try:
                with _machine_lock(tick):
                    # With the lock in hand no other queue works here: what still runs of this sweep was left behind by
                    # one that was killed, and must not write beside what starts now.
                    end_processes(self._folder.logs)
                    while self._waiting or self._running:
                        self._start_what_fits()
                        tick()
                        time.sleep(_POLL_S)
                        self._reap()
            finally:
                # A second Ctrl-C of an impatient user must not stop what the first has begun.
                with _handling(dict.fromkeys((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), signal.SIG_IGN)):
                    self._end()

    def _end(self) -> None:
        for running in self._running:
            running.kill()
            self._note(running.run, State.CANCELLED, running.start_s)
        for run in self._waiting:
            self._note(run, State.CANCELLED)

    def _start_what_fits(self) -> None:
        while self._waiting:
            run = self._waiting[0]
            spot = place(run, [(other.run, other.placement) for other in self._running], self._machine, self._max_ranks)
            if spot is None:
                return  # in order: a large run is not starved by small ones that would fit
            # In the list before it starts: what interrupts the start finds it there, and ends it.
            running = LocalRun(self._folder, run, spot)
            self._running.append(running)
            del self._waiting[0]
            running.start()
            self._note(run, State.RUNNING, running.start_s)

    def _reap(self) -> None:
        for running in list(self._running):
            state = running.poll()
            if state is not None:
                self._running.remove(running)
                self._note(running.run, state, running.start_s, exit_code=0 if state.is_success else 1)

    def _note(self, run: QueuedRun, state: State, start_s: int | None = None, exit_code: int | None = None) -> None:
        end_s = int(time.time()) if state.is_finished else None
        row = AccountingRow(
            job_id=run.job_id,
            state=state,
            submit_s=self._submit_s,
            start_s=start_s,
            end_s=end_s,
            elapsed_s=end_s - start_s if end_s is not None and start_s is not None else None,
            exit_code=exit_code,
        )
        ledger.append_lines(self._folder.accounting_file, [json.dumps(row.to_json())])


@contextlib.contextmanager
def _handling(handlers: Mapping[signal.Signals, Callable[..., object] | signal.Handlers]) -> Iterator[None]:
    """Has these signals handled so."""
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _machine_lock(tick: Callable[[], None]) -> Iterator[None]:
    """One queue at a time works for a user on a machine, whatever its sweep: two would overload it."""
    lock = FileLock(Path(tempfile.gettempdir()) / f"sweep-local-{os.getuid()}.lock")
    while not lock.is_locked:
        with contextlib.suppress(Timeout):
            lock.acquire(timeout=_POLL_S)
        tick()
    with lock:
        lock.release()  # the context has counted a second acquisition
        yield


def send_to_local(plan: Plan, max_ranks: int | None, clock: Callable[[], float], *, here: bool) -> LocalQueue | None:
    """Queues every run of the plan on this machine, and records them in the ledger.

    Args:
        plan: Of the runs to send; their folders are prepared.
        max_ranks: Ranks at once; None: as many as there are GPUs, or cores.
        clock: Seconds since 1970.
        here: This process works through the queue; else one in the background, which outlives it.

    Returns:
        The queue that is left to run, if `here`.
    """
    folder = SweepFolder(plan.folder)
    submit_s = int(clock())
    runs = [
        QueuedRun(
            run.run_id,
            f"local-{submit_s}-{index}",
            run.allocation.nodes,
            run.allocation.gpus_per_node,
            run.config.device == "cpu",
        )
        for index, run in enumerate(plan.runs)
    ]
    jobs = {run.run_id: run.job_id for run in runs}
    if here:
        ledger.record(folder.path, jobs, clock(), _queue_process(psutil.Process()))
        return LocalQueue(folder, runs, max_ranks, submit_s)
    with (folder.logs / "queue.log").open("a") as log:
        worker = subprocess.Popen(
            [sys.executable, "-P", "-m", "jobs.local.local_queue"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C in this terminal is not meant for it
            text=True,
        )
    ledger.record(folder.path, jobs, clock(), _queue_process(psutil.Process(worker.pid)))
    assert worker.stdin is not None
    with worker.stdin as pipe:
        order = {"folder": str(folder.path), "max_ranks": max_ranks, "submit_s": submit_s}
        json.dump({**order, "runs": [asdict(run) for run in runs]}, pipe)
    return None


def _queue_process(process: psutil.Process) -> ledger.QueueProcess:
    return ledger.QueueProcess(socket.gethostname(), process.pid, process.create_time())


def is_queue_alive(queue: ledger.QueueProcess) -> bool:
    """Whether the process that works through a local queue is there; taken for alive when it is another host's."""
    if queue.host != socket.gethostname():
        return True
    try:
        # Start times differ by rounding between readings; a pid that was given out again by far more.
        process = psutil.Process(queue.pid)
        return abs(process.create_time() - queue.created_s) < 2 and is_alive(process)
    except psutil.NoSuchProcess:
        return False


def _main() -> None:
    order = json.load(sys.stdin)
    runs = [QueuedRun(**run) for run in order["runs"]]
    LocalQueue(SweepFolder(Path(order["folder"])), runs, order["max_ranks"], order["submit_s"]).run()


if __name__ == "__main__":
    _main()
