"""One run under submitit's local executor, which ends completely when one of its ranks fails."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import psutil

from disttrain.errors import UserError
from disttrain.records.record_files import FAILURE_GLOB, SUMMARY_NAME
from jobs.entry import RankTask
from jobs.environ import clean_environ
from jobs.local.machine import Placement, QueuedRun
from jobs.slurm.states import State
from jobs.storage.sweep_folder import SweepFolder

_WEEK_MIN = 7 * 24 * 60  # submitit's local executor requires a limit; a laptop has none
_KILL_WAIT_S = 5.0
_START_S = 10.0  # after this time submitit's controller has started every rank
_TRACEBACK_S = 3.0  # the longest time for a failed rank to write its traceback
_SCRIPT_END_S = 20.0  # the other ranks give their scripts 10 s after SIGTERM, and then kill them
_RANK = "SUBMITIT_LOCAL_GLOBALID"  # an environment variable of every rank, and of its children
_MARK = "SWEEP_LOCAL_JOB"  # an environment variable of every process of a run: the folder of its logs


class LocalRun:
    """One run under submitit's local executor, with a check on its ranks.

    submitit starts the ranks and waits for all of them. It does not end the others when one fails, and it does not
    notice that one was killed.
    """

    def __init__(self, folder: SweepFolder, run: QueuedRun, placement: Placement) -> None:
        self.run = run
        self.placement = placement
        self.start_s = int(time.time())
        self._run_dir = folder.run(run.run_id)
        # Each run has its own log folder: submitit names files after the process id, which the machine reuses.
        self._log_dir = folder.logs / run.job_id
        self._ranks_seen: set[int] = set()
        self._started = time.monotonic()
        self._failed_s: float | None = None

    def start(self) -> None:
        task = RankTask(
            run_dir=str(self._run_dir),
            nodes=self.run.nodes,
            gpus_per_node=self.run.gpus_per_node,
            folded=True,
            visible_gpus=self.placement.visible_gpus,
            threads=self.placement.threads,
        )
        self._job = start_ranks(task, self.run.tasks, self._log_dir)
        self._controller = psutil.Process(int(self._job.job_id))
        self._started = time.monotonic()

    def poll(self) -> State | None:
        """The final state of the run; None while it runs. If a rank has failed, this ends the run."""
        if not self._job.done() and not self._rank_failed():
            return None
        self.kill()
        self._job.done()  # reaps the controller
        failed = any(self._run_dir.glob(FAILURE_GLOB))
        complete = (self._run_dir / SUMMARY_NAME).exists() and self._finished_ranks() == self.run.tasks
        if complete and not failed:
            return State.COMPLETED
        return State.FAILED

    def kill(self) -> None:
        """Ends every remaining process of the run: submitit's controller, the ranks, and all their children."""
        end_processes(self._log_dir)

    def _rank_failed(self) -> bool:
        """Whether a rank has failed, and had time to end."""
        alive = self._count_living_ranks()
        has_failure = any(self._run_dir.glob(FAILURE_GLOB))
        # A rank may die between two polls, before it was ever seen.
        all_started = len(self._ranks_seen) == self.run.tasks or time.monotonic() - self._started > _START_S
        # A rank writes its result before it exits. If it has exited without a result, it was killed.
        if not has_failure and not (all_started and alive + self._finished_ranks() < self.run.tasks):
            return False
        self._failed_s = self._failed_s or time.monotonic()
        waited_s = time.monotonic() - self._failed_s
        if self.run.is_script:
            # The other ranks end by themselves, after their scripts.
            return not alive or waited_s > _SCRIPT_END_S
        # The failed rank may still be writing its traceback into the log; it then ends by itself.
        return not has_failure or alive < len(self._ranks_seen) or waited_s > _TRACEBACK_S

    def _count_living_ranks(self) -> int:
        """The number of living ranks; the process ids of all ranks are remembered."""
        try:
            ranks = self._controller.children()
        except psutil.NoSuchProcess:
            return 0
        self._ranks_seen.update(rank.pid for rank in ranks)
        return sum(is_alive(rank) for rank in ranks)

    def _finished_ranks(self) -> int:
        return sum(job.paths.result_pickle.exists() for job in map(self._job.task, range(self.run.tasks)))


def start_ranks(task: Callable[[], None], ranks: int, log_dir: Path) -> Any:
    """Starts ranks on this machine, and returns submitit's job of them. `end_processes` ends them.

    Args:
        task: What each rank calls.
        ranks: Their number.
        log_dir: The folder of their logs.
    """
    from submitit import LocalExecutor

    executor = LocalExecutor(folder=log_dir)
    executor.update_parameters(tasks_per_node=ranks, timeout_min=_WEEK_MIN)
    # As the flag -P, which submitit cannot give its controller: a queue.py in the working directory would end it.
    added = {_MARK: str(log_dir), "PYTHONSAFEPATH": "1"}
    with clean_environ(overruled=added):
        os.environ.update(added)
        try:
            return executor.submit(task)
        finally:
            for name in added:
                del os.environ[name]


def end_processes(logs: Path, spared: Collection[str] = ()) -> None:
    """Ends every process of the runs whose logs are in a folder or its subfolders, except for the spared jobs.

    The environment identifies the processes: after the death of its parent, a process is no longer among the children.
    """
    deadline = time.monotonic() + _KILL_WAIT_S
    while (processes := _processes_of(logs, spared)) and time.monotonic() < deadline:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(0.02)


def signal_ranks(logs: Path, number: signal.Signals) -> None:
    """Sends a signal to the ranks of a run, not to their children or to submitit's controller.

    Args:
        logs: The folder of the run's logs.
        number: The signal.

    Raises:
        UserError: No rank of the run is on this machine.
    """
    ranks = {process.pid: process for process in _processes_of(logs, ()) if _RANK in process.environ()}
    if not ranks:
        raise UserError("no process of the run is on this machine", hint="run the command where the queue runs")
    for process in ranks.values():
        if process.ppid() not in ranks:
            process.send_signal(number)


def _processes_of(logs: Path, spared: Collection[str]) -> list[psutil.Process]:
    processes = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):  # the process has exited, or belongs to another user
            mark = process.environ().get(_MARK)
            is_ours = mark and Path(mark).is_relative_to(logs) and Path(mark).name not in spared
            if is_ours and is_alive(process):
                processes.append(process)
    return processes


def is_alive(process: psutil.Process) -> bool:
    """Whether a process runs. A zombie, which has ended but was not reaped, does not."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
