"""The queue of the local executor: which run starts when, and the end of a run of which one rank has failed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from disttrain.records import FAILURE_GLOB, SUMMARY_NAME
from jobs import ledger
from jobs.attempts import AccountingRow
from jobs.entry import RankTask
from jobs.environ import clean_environ
from jobs.folder import SweepFolder
from jobs.plan import Plan
from jobs.slurm_states import State

_POLL_S = 0.5
_WEEK_MIN = 7 * 24 * 60  # submitit's local executor wants a limit; a laptop has none
_KILL_WAIT_S = 5.0
_START_S = 10.0  # submitit's controller has started every rank by then
_MARK = "SWEEP_LOCAL_JOB"  # in the environment of every process of a run: the folder of its logs


@dataclass(frozen=True)
class QueuedRun:
    """One run as the queue sees it."""

    run_id: str
    job_id: str
    nodes: int
    gpus_per_node: int
    on_cpu: bool  # device: cpu

    @property
    def world_size(self) -> int:
        return self.nodes * self.gpus_per_node


@dataclass(frozen=True)
class Machine:
    """What this machine can carry."""

    cores: int
    gpus: tuple[str, ...]  # as in CUDA_VISIBLE_DEVICES


@dataclass(frozen=True)
class Placement:
    """Where one run goes."""

    visible_gpus: str
    threads: int  # of each rank


def this_machine(environ: Mapping[str, str]) -> Machine:
    """Cores that this process may use, and the GPUs that CUDA_VISIBLE_DEVICES leaves of those of the machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    shown = environ.get("CUDA_VISIBLE_DEVICES")
    if shown is not None:
        return Machine(cores, tuple(gpu for gpu in shown.split(",") if gpu not in ("", "-1", "NoDevFiles")))
    if shutil.which("nvidia-smi") is None:
        return Machine(cores, ())
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False, timeout=60)
    count = sum(line.startswith("GPU ") for line in listed.stdout.splitlines()) if listed.returncode == 0 else 0
    return Machine(cores, tuple(str(index) for index in range(count)))


def place(
    run: QueuedRun, running: Sequence[tuple[QueuedRun, Placement]], machine: Machine, max_ranks: int | None
) -> Placement | None:
    """Where the run can start now; None while it has to wait.

    Never more ranks at once than GPUs, or for runs without one than cores; a run that is larger than the machine waits
    until it is alone, and its ranks then share.

    Args:
        run: The next of the queue.
        running: What runs, with its placement.
        machine: What there is.
        max_ranks: Ranks at once, instead of the number of GPUs or cores.
    """
    uses_gpu = bool(machine.gpus) and not run.on_cpu
    rivals = [(other, spot) for other, spot in running if max_ranks or bool(spot.visible_gpus) == uses_gpu]
    capacity = max_ranks or (len(machine.gpus) if uses_gpu else machine.cores)
    busy = sum(other.world_size for other, _ in rivals)
    if rivals and busy + run.world_size > capacity:
        return None
    threads = max(1, machine.cores // max(capacity, run.world_size))
    if not uses_gpu:
        return Placement("", threads)
    # The least used first: with --max-parallel above their number they are shared.
    use = {gpu: sum(gpu in spot.visible_gpus.split(",") for _, spot in rivals) for gpu in machine.gpus}
    chosen = sorted(machine.gpus, key=lambda gpu: (use[gpu], machine.gpus.index(gpu)))[: run.world_size]
    return Placement(",".join(chosen), threads)


class LocalQueue:
    """Runs a list of runs on this machine, as many at once as it carries; notes what became of each, as sacct would."""

    def __init__(self, folder: SweepFolder, runs: Sequence[QueuedRun], max_ranks: int | None, submit_s: int) -> None:
        self._folder = folder
        self._waiting = list(runs)
        self._running: list[_RunningRun] = []
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
        # The default of SIGTERM would leave the ranks behind.
        with _handling({signal.SIGTERM: lambda *_: sys.exit(128 + signal.SIGTERM)}):
            try:
                with _machine_lock(tick):
                    while self._waiting or self._running:
                        self._start_what_fits()
                        tick()
                        time.sleep(_POLL_S)
                        self._reap()
            finally:
                # A second Ctrl-C of an impatient user must not stop what the first has begun.
                with _handling(dict.fromkeys((signal.SIGINT, signal.SIGTERM), signal.SIG_IGN)):
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
            running = _RunningRun(self._folder, run, spot)
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


class _RunningRun:
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

    def start(self) -> None:
        from submitit import LocalExecutor

        executor = LocalExecutor(folder=self._log_dir)
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
        failed = any(self._run_dir.glob(FAILURE_GLOB))
        complete = (self._run_dir / SUMMARY_NAME).exists() and self._finished_ranks() == self.run.world_size
        return State.COMPLETED if complete and not failed else State.FAILED

    def kill(self) -> None:
        """Ends every process of the run that is still there: submitit's controller, ranks, whatever these started."""
        deadline = time.monotonic() + _KILL_WAIT_S
        while (processes := self._processes()) and time.monotonic() < deadline:
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            time.sleep(0.02)

    def _processes(self) -> list[psutil.Process]:
        """The run's processes by their environment: one whose parent has died is nobody's child."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):  # gone, or another user's
                if process.environ().get(_MARK) == str(self._log_dir) and _is_alive(process):
                    found.append(process)
        return found

    def _rank_failed(self) -> bool:
        if any(self._run_dir.glob(FAILURE_GLOB)):
            return True
        alive = self._look()
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
        return sum(_is_alive(rank) for rank in ranks)

    def _finished_ranks(self) -> int:
        return sum(job.paths.result_pickle.exists() for job in map(self._job.task, range(self.run.world_size)))


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


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
            [sys.executable, "-m", "jobs.localqueue"],
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
        return abs(process.create_time() - queue.created_s) < 2 and _is_alive(process)
    except psutil.NoSuchProcess:
        return False


def _main() -> None:
    order = json.load(sys.stdin)
    runs = [QueuedRun(**run) for run in order["runs"]]
    LocalQueue(SweepFolder(Path(order["folder"])), runs, order["max_ranks"], order["submit_s"]).run()


if __name__ == "__main__":
    _main()
