"""Fixtures for tests of the `sweep` command: the command, and a submitted sweep."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from jobs import cli
from jobs.slurm.states import State
from jobs.storage import ledger
from jobs.storage.sweep_folder import SweepFolder
from tests.jobs.command import SWEEP, Output, Sweep, note


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Sweep:
    """The command, in a folder with s.yaml, on a machine without Slurm."""
    (tmp_path / "s.yaml").write_text(SWEEP)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in ("SWEEP_CLUSTER", "SWEEP_ROOT"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str) -> Output:
        monkeypatch.setattr(sys, "argv", ["sweep", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        output = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Output(ended.value.code, output.out, output.err)

    return run


@pytest.fixture
def submitted(sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SweepFolder:
    """The folder of s after `sweep submit s.yaml --cluster local`, with a queue that has started no run."""
    monkeypatch.setattr("jobs.schedulers.local_scheduler.send_to_local", lambda *_, **__: None)
    assert sweep("submit", "s.yaml", "--cluster", "local").exit_code == 0
    folder = SweepFolder(tmp_path / "runs" / "s" / "local")
    runs = [run["run_id"] for run in folder.planned_runs()]
    ledger.intend(folder.path, runs, 1.0)
    ledger.record(folder.path, {run_id: f"local-1-{index}" for index, run_id in enumerate(runs)}, 1.0)
    return folder


@pytest.fixture
def dropped(sweep: Sweep, submitted: SweepFolder, tmp_path: Path) -> str:
    """The id of the 2x1 run, after a submission of s.yaml without this allocation."""
    note(submitted, State.COMPLETED, State.RUNNING)
    (tmp_path / "s.yaml").write_text(SWEEP.replace("1x1, 2x1", "1x1"))
    output = sweep("submit", "s.yaml", "--cluster", "local")
    _, run_id = (run["run_id"] for run in submitted.planned_runs())
    assert isinstance(run_id, str)
    assert output.err.splitlines() == [
        "note: 1 run is no longer in the sweep file; sweep forget removes it",
        f"note: 1 of the dropped runs still waits or runs; sweep cancel --dropped ends it: {run_id}",
    ]
    return run_id
