"""sweep debug: one run again in this process, and what is not as in the recorded run."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from disttrain.errors import UserError
from jobs.storage.code_state import git_state
from jobs.storage.sweep_folder import SweepFolder
from jobs.submission.debug_run import Setting, debug_run, differences
from jobs.submission.launch import launch
from tests.jobs.submission.fake_slurm import LOADED, Slurm, plan_of

pytestmark = pytest.mark.process

CLEAN, DIRTY = {"commit": "a" * 40, "dirty": False}, {"commit": "a" * 40, "dirty": True}


@pytest.fixture
def folder(slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SweepFolder:
    """A submitted sweep; temporary files are in tmp_path/scratch."""
    plan = plan_of(tmp_path)
    launch(plan, LOADED, max_ranks=None)
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return SweepFolder(plan.folder)


def write_start(run_dir: Path, **changes: Any) -> None:
    """Adds the record of a start to those of rank 0."""
    record = {
        "kind": "start", "time_s": 1.0, "rank": 0, "world_size": 2, "local_rank": 0, "node_rank": 0, "host": "node17",
        "pid": 1, "job_id": "7", "restart_count": 0, "first_step": 1, "device": "cuda:0", "device_name": "NVIDIA H200",
        "backend": "nccl", "shared_gpu": False, "folded": False, "threads": 1, "versions": {"torch": "1.0"},
        "parameters": 1, "train_examples": 1, "eval_examples": 1, "notices": [], **changes,
    }  # fmt: skip
    with (run_dir / "metrics-rank00000.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n" + json.dumps({"kind": "step", "step": 1}) + "\n")


def test_a_run_is_repeated_in_a_scratch_folder(
    folder: SweepFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[dict[str, Any]] = []

    class Task:
        def __init__(self, run_dir: str, nodes: int, gpus_per_node: int) -> None:
            self.run_dir = run_dir
            assert (nodes, gpus_per_node) == (1, 1)

        def __call__(self) -> None:
            calls.append(json.loads((Path(self.run_dir) / "run.json").read_text()) | {"folder": self.run_dir})

    monkeypatch.setattr("jobs.local.debug.RankTask", Task)
    run_id = next(run["run_id"] for run in folder.planned_runs() if run["allocation"] == "2x1")
    # It resumed on another node: the last start counts.
    write_start(folder.run(run_id), host="node16", device_name="NVIDIA A100")
    write_start(folder.run(run_id))
    before = {path: path.stat().st_mtime_ns for path in folder.path.rglob("*")}
    capsys.readouterr()
    debug_run(folder, run_id, "the run")
    ((started),) = calls
    recorded = json.loads((folder.run(run_id) / "run.json").read_text())
    assert {name: started[name] for name in recorded if name != "git"} == {
        name: value for name, value in recorded.items() if name != "git"
    }
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"debug: the run as one rank, in {started['folder']}"
    assert lines[1:4] == [
        "  ranks: 2 recorded, 1 here",
        f"  host: node17 recorded, {socket.gethostname()} here",
        "  device: NVIDIA H200 recorded, CPU here",
    ]
    assert lines[4].startswith("  torch: 1.0 recorded, ")
    assert Path(started["folder"]).is_relative_to(folder.path.parents[1] / "scratch")
    assert {path: path.stat().st_mtime_ns for path in folder.path.rglob("*")} == before


@pytest.mark.parametrize(
    ("recorded", "here", "lines"),
    [
        (Setting(1, "n1", "CPU", CLEAN, {"torch": "2"}), Setting(1, "n1", "CPU", CLEAN, {"torch": "2", "x": "1"}), []),
        (Setting(1, versions={"torch": "2"}), Setting(1), ["torch: 2 recorded, not installed here"]),
        # Nothing is known of a run that never started, nor of a GPU without a name.
        (Setting(1), Setting(1, "n1", "NVIDIA H200", CLEAN), []),
        (Setting(1, "n1", "NVIDIA H200"), Setting(1, "n1", None), []),
        (Setting(1, git=CLEAN), Setting(1), ["code: commit aaaaaaaaaaaa recorded, no checkout here"]),
        (
            Setting(1, git=CLEAN),
            Setting(1, git=DIRTY),
            ["code: commit aaaaaaaaaaaa recorded, commit aaaaaaaaaaaa with uncommitted changes here"],
        ),
        # The changes may be others now.
        (
            Setting(1, git=DIRTY),
            Setting(1, git=DIRTY),
            [
                "code: commit aaaaaaaaaaaa with uncommitted changes recorded,"
                " commit aaaaaaaaaaaa with uncommitted changes here"
            ],
        ),
    ],
)
def test_what_differs(recorded: Setting, here: Setting, lines: list[str]) -> None:
    assert differences(recorded, here) == lines


def test_the_code_is_that_of_the_working_directory(
    folder: SweepFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("jobs.submission.debug_run.run_in_debugger", lambda *_: None)
    run_id = folder.planned_runs()[0]["run_id"]
    path = folder.run(run_id) / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"git": {"commit": "b" * 40, "dirty": False}}))
    debug_run(folder, run_id, "the run")
    state = git_state(Path(os.getcwd()))
    text = f"commit {state['commit'][:12]}" if state else "no checkout"
    assert f"  code: commit bbbbbbbbbbbb recorded, {text}" in capsys.readouterr().out


def test_what_cannot_be_repeated(folder: SweepFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = folder.planned_runs()[0]["run_id"]
    path = folder.run(run_id) / "run.json"
    written = json.loads(path.read_text())

    def refused() -> str:
        with pytest.raises(UserError) as error:
            debug_run(folder, run_id, "the run")
        return str(error.value)

    path.write_text(json.dumps({**written, "train": {**written["train"], "model": "link"}}))
    assert refused() == "the run times the link between ranks, and here is one rank (choose another run)"
    path.write_text(json.dumps({**written, "train": {**written["train"], "later_field": 1}}))
    assert refused().startswith("the run was planned by another release: ")
    path.write_text(json.dumps({**written, "world_size": "2"}))
    assert f"{str(path)!r} is damaged" in refused() or "run.json is damaged" in refused()
    path.write_text(json.dumps(written))
    monkeypatch.setattr("jobs.submission.debug_run.find_spec", lambda _: None)
    assert refused().startswith("sweep debug trains in this process, and torch is not installed here")
    path.unlink()
    assert refused().startswith("the run was never submitted: it has no run.json")
    assert list((folder.path.parents[1] / "scratch").iterdir()) == []
