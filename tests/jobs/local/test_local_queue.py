"""The local queue: every run ends, in whatever way its ranks end, and leaves no process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

import jobs.local.local_queue
import jobs.local.local_run
from disttrain.config.train_config import TrainConfig
from jobs.local.local_queue import LocalQueue, send_to_local
from jobs.local.machine import QueuedRun
from jobs.planning.allocation import Allocation
from jobs.planning.cluster import Cluster
from jobs.planning.expand import RunSpec
from jobs.planning.plan import make_plan
from jobs.slurm.attempts import AccountingRow, attempts_by_job, merge_history
from jobs.storage import ledger
from jobs.storage.ledger import read_lines
from jobs.storage.sweep_folder import SweepFolder

RANKS = '''
import json, os, signal, subprocess, sys, time
from pathlib import Path
from jobs import entry

class RankTask(entry.RankTask):
    def __call__(self):
        rank = int(os.environ["SUBMITIT_LOCAL_GLOBALID"])
        folder = Path(self.run_dir)
        (folder / f"pid-{rank}").write_text(str(os.getpid()))
        getattr(self, folder.name.split("-")[0])(rank, folder)

    def _wait_for_all(self, folder):
        while len(list(folder.glob("pid-*"))) < self.nodes * self.gpus_per_node:
            time.sleep(0.01)

    def succeeds(self, rank, folder):
        (folder / f"began-{rank}").write_text(str(time.time()))
        time.sleep(0.3)
        if rank == 0:
            (folder / "summary.json").write_text("{}")
        (folder / f"ended-{rank}").write_text(str(time.time()))

    def raises(self, rank, folder):
        if rank == 1:
            self._wait_for_all(folder)
            (folder / "failure-rank00001.json").write_text("{}")
            raise RuntimeError("lost its data")
        time.sleep(300)

    def killed(self, rank, folder):
        if rank == 1:
            self._wait_for_all(folder)
            time.sleep(0.7)  # longer than the queue's polling interval
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(300)

    def dies_unseen(self, rank, folder):
        self._wait_for_all(folder)
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(300)

    def exits(self, rank, folder):
        """Exits without a result, as after sys.exit(0) in a callback."""
        self._wait_for_all(folder)
        if rank == 1:
            sys.exit(0)
        time.sleep(300)

    def ignores_sigterm(self, rank, folder):
        """Ignores SIGTERM, and starts a child that is an orphan after the death of this rank."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        ignoring = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(300)"
        subprocess.Popen([sys.executable, "-c", ignoring], start_new_session=True)
        self.raises(rank, folder)

    def sleeps(self, rank, folder):
        time.sleep(300)

    def measures_nothing(self, rank, folder):
        """Ends without an error on every rank, and writes no summary."""
'''


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SweepFolder:
    """The folder of a sweep, with ranks that execute the method named like their run."""
    module = f"ranks_{tmp_path.name}"
    (tmp_path / f"{module}.py").write_text(RANKS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(jobs.local.local_run, "RankTask", __import__(module).RankTask)
    monkeypatch.setattr(jobs.local.local_queue, "_POLL_S", 0.1)
    monkeypatch.setattr(jobs.local.local_queue, "_LOCK_FOLDER", tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return SweepFolder(tmp_path / "s" / "local")


def queued(folder: SweepFolder, *names: str, ranks: int = 2) -> list[QueuedRun]:
    for name in names:
        folder.run(name).mkdir(parents=True)
    return [QueuedRun(name, f"local-{index}", 1, ranks, True) for index, name in enumerate(names)]


def final_states(folder: SweepFolder) -> list[str]:
    """The last recorded state of each job, in the order of the job ids."""
    rows = [AccountingRow.from_json(values) for values in read_lines(folder.accounting_file)]
    return [attempts[-1].state.value for _, attempts in sorted(attempts_by_job(merge_history((), rows)).items())]


def remaining_processes(folder: SweepFolder) -> list[list[str]]:
    """The command lines of the living processes with the sweep's folder in their environment."""
    commands = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and str(folder.path) in " ".join(process.environ().values()):
                commands.append(process.cmdline())
        except psutil.Error:
            continue
    return [command for command in commands if command]


def delay_checks(pid_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Delays the queue's checks of its processes until the process of this file has ended and was reaped."""
    count_living_ranks = jobs.local.local_run.LocalRun._count_living_ranks

    def count_late(running: Any) -> int:
        while not (pid_file.exists() and pid_file.read_text() and not psutil.pid_exists(int(pid_file.read_text()))):
            time.sleep(0.01)
        return count_living_ranks(running)

    monkeypatch.setattr(jobs.local.local_run.LocalRun, "_count_living_ranks", count_late)
    monkeypatch.setattr(jobs.local.local_run, "_START_S", 0.5)


@pytest.mark.process
@pytest.mark.parametrize(
    ("run", "state"),
    [
        ("succeeds", "COMPLETED"),
        ("raises", "FAILED"),
        ("killed", "FAILED"),
        ("dies_unseen", "FAILED"),
        ("exits", "FAILED"),
        ("ignores_sigterm", "FAILED"),
        ("measures_nothing", "FAILED"),
    ],
)
def test_every_run_ends_soon(run: str, state: str, sweep: SweepFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    if run == "dies_unseen":
        delay_checks(sweep.run(run) / "pid-1", monkeypatch)
    began = time.monotonic()
    LocalQueue(sweep, queued(sweep, run), None, 1).run()
    assert time.monotonic() - began < 30  # much less than the 300 s of its other rank
    assert (final_states(sweep), remaining_processes(sweep)) == ([state], [])
    assert {path.name for path in sweep.run(run).glob("pid-*")} == {"pid-0", "pid-1"}  # both ranks have run
    last = AccountingRow.from_json(read_lines(sweep.accounting_file)[-1])
    assert (last.submit_s, last.exit_code) == (1, 0 if state == "COMPLETED" else 1)
    assert last.start_s is not None
    assert last.end_s is not None
    assert last.elapsed_s == last.end_s - last.start_s


@pytest.mark.process
def test_queue_continues_after_a_failed_run(sweep: SweepFolder) -> None:
    ticks: list[float] = []
    LocalQueue(sweep, queued(sweep, "raises", "succeeds"), 2, 1).run(lambda: ticks.append(time.monotonic()))
    assert final_states(sweep) == ["FAILED", "COMPLETED"]
    assert len(ticks) > 3


@pytest.mark.process
def test_large_run_has_the_machine_alone(sweep: SweepFolder) -> None:
    runs = queued(sweep, "succeeds-a", "succeeds-b", ranks=1) + queued(sweep, "succeeds-large", ranks=3)
    runs = [QueuedRun(run.run_id, f"local-{index}", 1, run.gpus_per_node, True) for index, run in enumerate(runs)]
    LocalQueue(sweep, runs, 2, 1).run()
    assert final_states(sweep) == ["COMPLETED"] * 3

    def times(name: str, what: str) -> list[float]:
        return [float(path.read_text()) for path in sweep.run(name).glob(f"{what}-*")]

    small = [time_s for name in ("succeeds-a", "succeeds-b") for time_s in times(name, "ended")]
    assert len(times("succeeds-large", "began")) == 3
    assert max(small) < min(times("succeeds-large", "began"))


# Runs in a separate process, because a signal ends it.
QUEUE = """
import os, sys
from pathlib import Path
import jobs.local.local_queue
from jobs.local import queue_process
from jobs.storage import ledger
from jobs.storage.sweep_folder import SweepFolder
jobs.local.local_queue._LOCK_FOLDER = Path(sys.argv[1])
queue_process.BEAT_S, queue_process.LOST_S, jobs.local.local_queue.LOST_S = 0.1, 2.0, 2.0
jobs.local.local_run.RankTask = __import__(sys.argv[2]).RankTask
runs = [jobs.local.machine.QueuedRun(name, "local-" + name, 1, 2, True) for name in ("sleeps", "succeeds")]
folder = SweepFolder(Path(sys.argv[3]))
folder.logs.mkdir(parents=True, exist_ok=True)
identity = queue_process.identify(os.getpid())
ledger.record(folder.path, {run.run_id: run.job_id for run in runs}, 1.0, identity)
jobs.local.local_queue.LocalQueue(folder, runs, 2, 1).run()
"""


QUEUE_MODULE = ["-P", "-m", "jobs.local.local_queue"]
# Executes a command with SIGINT ignored, as a script does for a command that it starts in the background.
IGNORE_SIGINT = [
    sys.executable,
    "-c",
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])",
]


def started_queue(
    sweep: SweepFolder, tmp_path: Path, ready: Callable[[], bool], prefix: Sequence[str] = ()
) -> subprocess.Popen[str]:
    """A queue of two runs in a new process, at the moment when it is ready. The prefix starts its command."""
    queued(sweep, "sleeps", "succeeds")
    command = [*prefix, sys.executable, "-c", QUEUE, str(tmp_path), f"ranks_{tmp_path.name}", str(sweep.path)]
    queue = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not ready():
        assert queue.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return queue


def catches_sigint(process: psutil.Process) -> bool:
    """Whether the process of a queue has a handler for SIGINT, from the signal mask that Linux shows."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    (mask,) = (int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:"))
    # IGNORE_SIGINT, which becomes the queue, has other arguments.
    return process.cmdline()[1:] == QUEUE_MODULE and bool(mask >> (signal.SIGINT - 1) & 1)


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("early", [False, True], ids=["while it runs", "while it starts"])
def test_ended_queue_ends_its_runs(number: signal.Signals, early: bool, sweep: SweepFolder, tmp_path: Path) -> None:
    """Ctrl-C, or kill without options, while a run is running or starting."""
    files = sweep.logs / "local-sleeps" if early else sweep.run("sleeps") / "pid-1"
    queue = started_queue(sweep, tmp_path, files.exists)
    queue.send_signal(number)
    time.sleep(0.05)
    queue.send_signal(number)  # an impatient user repeats it
    queue.communicate(timeout=30)
    assert queue.returncode != 0
    assert (final_states(sweep), remaining_processes(sweep)) == (["CANCELLED", "CANCELLED"], [])


@pytest.mark.process
def test_sigint_ends_a_queue_started_with_sigint_ignored(sweep: SweepFolder, tmp_path: Path) -> None:
    """The children of a background job inherit that SIGINT is ignored."""
    queue = started_queue(sweep, tmp_path, (sweep.run("sleeps") / "pid-1").exists, IGNORE_SIGINT)
    queue.send_signal(signal.SIGINT)
    _, errors = queue.communicate(timeout=30)
    assert queue.returncode == -signal.SIGINT
    assert errors.endswith("KeyboardInterrupt\n")
    assert (final_states(sweep), remaining_processes(sweep)) == (["CANCELLED", "CANCELLED"], [])


@pytest.mark.process
def test_background_queue_ends_on_sigint(sweep: SweepFolder, tmp_path: Path) -> None:
    """The module as the background process, which has SIGINT ignored and still waits for its request."""
    command = [*IGNORE_SIGINT, sys.executable, *QUEUE_MODULE]
    queue = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process = psutil.Process(queue.pid)
    deadline = time.monotonic() + 60
    while not catches_sigint(process):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    queue.send_signal(signal.SIGINT)
    queue.communicate(timeout=30)
    assert queue.returncode == -signal.SIGINT


@pytest.mark.process
def test_background_queue_is_not_of_this_terminal(sweep: SweepFolder) -> None:
    """A terminal sends Ctrl-C, and its end, to the processes of its session."""
    sweep.logs.mkdir(parents=True)
    queue = jobs.local.local_queue._start_worker(sweep)
    try:
        assert os.getsid(queue.pid) == queue.pid
    finally:
        queue.kill()
        queue.communicate(timeout=30)


@pytest.mark.process
def test_a_queue_ends_what_a_killed_one_has_left(sweep: SweepFolder, tmp_path: Path) -> None:
    """SIGKILL lets a queue clean nothing. Its ranks would write to the files of the runs that start now."""
    queue = started_queue(sweep, tmp_path, (sweep.run("sleeps") / "pid-1").exists)
    queue.kill()
    queue.wait(timeout=30)  # its ranks still have its stderr
    assert remaining_processes(sweep) != []
    try:
        LocalQueue(sweep, queued(sweep, "succeeds-again"), None, 2).run()
        assert remaining_processes(sweep) == []
    finally:
        jobs.local.local_run.end_processes(sweep.logs)
        queue.communicate(timeout=30)


@pytest.mark.process
def test_second_queue_waits_for_the_first(sweep: SweepFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever their TMPDIR. The second queue can be ended while it waits."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "s"))
    queue = started_queue(sweep, tmp_path, (sweep.run("sleeps") / "pid-1").exists)
    second = SweepFolder(tmp_path / "t" / "local")

    def give_up() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        LocalQueue(second, queued(second, "succeeds"), None, 1).run(give_up)
    assert (final_states(second), list(second.run("succeeds").iterdir())) == (["CANCELLED"], [])
    queue.terminate()
    queue.communicate(timeout=30)
    assert remaining_processes(sweep) == []


@pytest.mark.process
def test_a_queue_spares_the_runs_of_a_living_queue(
    sweep: SweepFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends what a killed queue has left, of the same sweep. Here the two have no common lock."""
    rank = sweep.run("sleeps") / "pid-1"
    queue = started_queue(sweep, tmp_path, rank.exists)
    monkeypatch.setattr(jobs.local.local_queue, "_LOCK_FOLDER", sweep.path)
    LocalQueue(sweep, [QueuedRun("succeeds", "local-other", 1, 2, True)], None, 1).run()
    assert psutil.pid_exists(int(rank.read_text()))
    queue.kill()
    queue.wait()
    LocalQueue(sweep, [QueuedRun("succeeds", "local-third", 1, 2, True)], None, 1).run()
    assert (final_states(sweep)[0], remaining_processes(sweep)) == ("COMPLETED", [])


@pytest.mark.process
def test_nohup_protects_a_queue(sweep: SweepFolder, tmp_path: Path) -> None:
    queue = started_queue(sweep, tmp_path, (sweep.run("sleeps") / "pid-1").exists, ["nohup"])
    queue.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert queue.poll() is None
    queue.terminate()
    queue.communicate(timeout=30)
    assert (final_states(sweep), remaining_processes(sweep)) == (["CANCELLED", "CANCELLED"], [])


@pytest.mark.process
@pytest.mark.usefixtures("default_sighup")
def test_the_end_of_its_terminal_ends_a_queue(sweep: SweepFolder, tmp_path: Path) -> None:
    queue = started_queue(sweep, tmp_path, (sweep.run("sleeps") / "pid-1").exists)
    queue.send_signal(signal.SIGHUP)
    queue.communicate(timeout=30)
    assert queue.returncode == 128 + signal.SIGHUP
    assert (final_states(sweep), remaining_processes(sweep)) == (["CANCELLED", "CANCELLED"], [])


@pytest.mark.process
def test_a_queue_that_slept_leaves_runs_that_were_submitted_again(sweep: SweepFolder, tmp_path: Path) -> None:
    """As the queue of a laptop that was closed, while its user went on from another machine."""
    queue = started_queue(sweep, tmp_path, (sweep.run("sleeps") / "pid-1").exists)
    queue.send_signal(signal.SIGSTOP)
    time.sleep(2.1)
    ledger.record(sweep.path, {"sleeps": "local-elsewhere-0"}, 2.0, ledger.QueueProcess("other", 1, 1.0))
    queue.send_signal(signal.SIGCONT)
    queue.communicate(timeout=30)
    assert queue.returncode == 0
    assert (final_states(sweep), remaining_processes(sweep)) == (["CANCELLED", "COMPLETED"], [])


@pytest.mark.process
@pytest.mark.parametrize(("cancelled", "end"), [(["sleeps"], "COMPLETED"), (["succeeds", "sleeps"], "CANCELLED")])
def test_cancelled_runs_end(cancelled: list[str], end: str, sweep: SweepFolder, tmp_path: Path) -> None:
    """`sweep cancel` writes to the ledger. The queue ends a run that runs; one that waits never starts."""
    queue = started_queue(sweep, tmp_path, (sweep.run("sleeps") / "pid-1").exists)
    ledger.cancel(sweep.path, cancelled, 2.0)
    queue.communicate(timeout=60)
    assert queue.returncode == 0
    assert (final_states(sweep), remaining_processes(sweep)) == (["CANCELLED", end], [])
    assert (sweep.run("succeeds") / "pid-1").exists() == (end == "COMPLETED")


def test_two_submissions_in_one_second_have_different_jobs(tmp_path: Path) -> None:
    run = RunSpec("a", Allocation(1, 1), TrainConfig(model="bert").resolved(), {}, {}, 0)
    plan = make_plan("s", [run], Cluster("local", "local"), tmp_path)
    SweepFolder(plan.folder).create()
    for _ in range(2):
        send_to_local(plan, {}, None, lambda: 1700000000.25, in_process=True)
    first, second = ledger.read_ledger(plan.folder).jobs["a"]
    assert first.job_id != second.job_id
