"""One run under submitit's local executor, and the watch that ends all of it when one of its ranks has failed."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import time
from pathlib import Path

import psutil

from disttrain.records.record_files import FAILURE_GLOB, SUMMARY_NAME
from jobs.entry import RankTask
from jobs.environ import clean_environ
from jobs.local.machine import Placement, QueuedRun
from jobs.slurm.states import State
from jobs.storage.sweep_folder import SweepFolder

_WEEK_MIN = 7 * 24 * 60  # submitit's local executor wants a limit; a laptop has none
_KILL_WAIT_S = 5.0
_START_S = 10.0  # submitit's controller has started every rank by then
_LAST_WORDS_S = 3.0  # that a rank which has failed has for them, at most
_MARK = "SWEEP_LOCAL_JOB"  # in the environment of every process of a run: the folder of its logs


class LocalRun:
    """One run under submitit's local executor, and the watch over its ranks.

    submitit starts the ranks and waits for all of them: it neither ends the others when one has failed, nor sees that
    one was killed.
    """

    def __init__(self, folder: SweepFolder, run: QueuedRun, placement: Placement) -> None:
        self.run = run
        self.placement = placement
        self.start_s = int(time.time())
        self._run_dir = folder.run(run.run_id)
        # A folder of its own: submitit names files after the process id, which the machine gives out again.
        self._log_dir = folder.logs / run.job_id
        self._ranks_seen: set[int] = set()
        self._started = time.monotonic()
        self._failed_s: float | None = None

    def start(self) -> None:
        from submitit import LocalExecutor

        executor = LocalExecutor(folder=self._log_dir, python=f"{shlex.quote(sys.executable)} -P")
        executor.update_parameters(tasks_per_node=self.run.world_size, timeout_min=_WEEK_MIN)
        task = RankTask(
            run_dir=str(self._run_dir),
            nodes=self.run.nodes,
            gpus_per_node=self.run.gpus_per_node,
            folded=True,
            visible_gpus=self.placement.visible_gpus,
            threads=self.placement.threads,
        )
        with clean_environ():
            os.environ[_MARK] = str(self._log_dir)
            try:
                self._job = executor.submit(task)
            finally:
                del os.environ[_MARK]
        self._controller = psutil.Process(int(self._job.job_id))
        self._started = time.monotonic()

    def poll(self) -> State | None:
        """How the run ended; None while it runs. Ends it where a rank has failed."""
        ended = self._job.done()
        if not ended and self._rank_failed():
            ended = True
        if not ended:
            return None
        self.kill()
        self._job.done()  # reaps the controller
        failed = any(self._run_dir.glob(FAILURE_GLOB))
        complete = (self._run_dir / SUMMARY_NAME).exists() and self._finished_ranks() == self.run.world_size
        return State.COMPLETED if complete and not failed else State.FAILED

    def kill(self) -> None:
        """Ends every process of the run that is still there: submitit's controller, ranks, whatever these started."""
        end_processes(self._log_dir)

    def _rank_failed(self) -> bool:
        alive = self._look()
        if any(self._run_dir.glob(FAILURE_GLOB)):
            self._failed_s = self._failed_s or time.monotonic()
            # The rank that says so has yet to write its traceback into the log, and ends then by itself.
            return alive < len(self._ranks_seen) or time.monotonic() - self._failed_s > _LAST_WORDS_S
        # A rank may die between two looks, before it was ever seen.
        all_started = len(self._ranks_seen) == self.run.world_size or time.monotonic() - self._started > _START_S
        # A rank writes its result before it exits: one that is gone without was killed.
        return all_started and alive + self._finished_ranks() < self.run.world_size

    def _look(self) -> int:
        """Notes the ranks of the run; how many of them live."""
        try:
            ranks = self._controller.children()
        except psutil.NoSuchProcess:
            return 0
        self._ranks_seen.update(rank.pid for rank in ranks)
        return sum(is_alive(rank) for rank in ranks)

    def _finished_ranks(self) -> int:
        return sum(job.paths.result_pickle.exists() for job in map(self._job.task, range(self.run.world_size)))


def end_processes(logs: Path) -> None:
    """Ends every process of the runs whose logs are in a folder, or below it.

    By their environment: one whose parent has died is nobody's child.
    """
    deadline = time.monotonic() + _KILL_WAIT_S
    while (processes := _marked(logs)) and time.monotonic() < deadline:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(0.02)


def _marked(logs: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):  # gone, or another user's
            mark = process.environ().get(_MARK)
            if mark and Path(mark).is_relative_to(logs) and is_alive(process):
                found.append(process)
    return found


def is_alive(process: psutil.Process) -> bool:
    """Whether a process runs; a zombie that nobody has reaped does not."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
