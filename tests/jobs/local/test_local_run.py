"""One local run: what its ranks start with, how it ends, and which processes end with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import jobs.local.local_run
from jobs.local.local_run import LocalRun, end_processes
from jobs.local.machine import Placement, QueuedRun
from jobs.slurm.states import State
from jobs.storage.sweep_folder import SweepFolder
from tests.jobs.sweeping import wait_for

pytestmark = pytest.mark.process

RANKS = """
import dataclasses, json, os
from pathlib import Path
from jobs import entry

class RankTask(entry.RankTask):
    def __call__(self):
        rank, folder = os.environ["SUBMITIT_LOCAL_GLOBALID"], Path(self.run_dir)
        seen = {"environ": dict(os.environ), "task": dataclasses.asdict(self)}
        (folder / f"seen-{rank}.json").write_text(json.dumps(seen))
        if rank == "0":
            (folder / "summary.json").write_text("{}")
        elif folder.name == "raises":
            (folder / "failure-rank00001.json").write_text("{}")
            raise RuntimeError("after the summary")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SweepFolder:
    """The folder of a sweep, whose ranks write what they see, in a working directory with unlucky file names."""
    (tmp_path / "modules").mkdir()
    name = f"ranks_{tmp_path.name}"
    (tmp_path / "modules" / f"{name}.py").write_text(RANKS)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    paths = [str(tmp_path / "modules"), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.setattr(jobs.local.local_run, "RankTask", __import__(name).RankTask)
    for module in ("submitit.py", "queue.py"):
        (tmp_path / module).write_text("raise SystemExit('a module of the user')\n")
    monkeypatch.chdir(tmp_path)
    return SweepFolder(tmp_path / "s" / "local")


def ended_run(folder: SweepFolder, name: str, gpus_per_node: int = 1, *, by_node: bool = False) -> State:
    """The final state of a run of two processes on two nodes; the first poll is after the results of both."""
    folder.run(name).mkdir(parents=True)
    queued = QueuedRun(name, "local-1-0", 2, gpus_per_node, on_cpu=True, by_node=by_node)
    run = LocalRun(folder, queued, Placement("", 3))
    run.start()
    try:
        results = (folder.logs / "local-1-0").glob
        wait_for(lambda: len(list(results("*_result.pkl"))) == 2, "result of both ranks", limit_s=20)
        return wait_for(run.poll, "end of the run", limit_s=20)
    finally:
        run.kill()


def test_a_rank_has_nothing_of_a_surrounding_launcher(folder: SweepFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """With these variables, each rank would believe that torchrun has started it, as rank 3 of 9."""
    launcher = {
        "RANK": "3",
        "LOCAL_RANK": "3",
        "WORLD_SIZE": "9",
        "MASTER_ADDR": "10.9.9.9",
        "TORCHELASTIC_RUN_ID": "x",
    }
    for name, value in {**launcher, "HF_HOME": "/hf"}.items():
        monkeypatch.setenv(name, value)
    assert ended_run(folder, "succeeds") is State.COMPLETED
    for rank in range(2):
        seen = json.loads((folder.run("succeeds") / f"seen-{rank}.json").read_text())
        assert not launcher.keys() & seen["environ"].keys()
        assert seen["environ"]["HF_HOME"] == "/hf"
        assert seen["task"] == {
            "run_dir": str(folder.run("succeeds")), "nodes": 2, "gpus_per_node": 1, "folded": True,
            "visible_gpus": "", "threads": 3, "resume": None, "notifies": False,
        }  # fmt: skip
    assert os.environ["RANK"] == "3"


def test_torchrun_starts_once_for_each_node(folder: SweepFolder) -> None:
    assert ended_run(folder, "by-node", 3, by_node=True) is State.COMPLETED
    seen = [json.loads(path.read_text()) for path in sorted(folder.run("by-node").glob("seen-*.json"))]
    assert [rank["environ"]["SUBMITIT_LOCAL_NTASKS"] for rank in seen] == ["2", "2"]
    assert {rank["task"]["gpus_per_node"] for rank in seen} == {3}


def test_a_failure_after_the_summary_fails_the_run(folder: SweepFolder) -> None:
    assert ended_run(folder, "raises") is State.FAILED
    assert (folder.run("raises") / "summary.json").exists()


@contextmanager
def process_of(logs: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that a run with these logs has started."""
    environ = {**os.environ, jobs.local.local_run._MARK: str(logs)}
    command = [sys.executable, "-c", "print(flush=True); input()"]
    process = subprocess.Popen(command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout
    process.stdout.readline()  # before its start, its environment is still that of this process
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_ends_the_processes_of_one_run_only(tmp_path: Path) -> None:
    with process_of(tmp_path / "local-1-1") as first, process_of(tmp_path / "local-1-10") as other:
        end_processes(tmp_path / "local-1-1")
        assert first.wait(timeout=10) != 0
        assert other.poll() is None
        end_processes(tmp_path)  # what a killed queue has left of all its runs
        assert other.wait(timeout=10) != 0
