"""What an interrupted submission has left is finished by sweep status too."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from jobs.slurm.interrupted import LATEST_ANSWER_S
from jobs.slurm.states import State
from jobs.storage import ledger
from jobs.storage.ledger import read_ledger, submission_lock
from jobs.storage.sweep_folder import SweepFolder
from jobs.submission.launch import launch
from jobs.submission.recovery import recover
from tests.jobs.submission.fake_slurm import LOADED, Slurm, plan_of

pytestmark = pytest.mark.process


@pytest.fixture
def folder(slurm: Slurm, tmp_path: Path) -> SweepFolder:
    """A sweep of two groups, of which the second was sent and not recorded."""
    plan = plan_of(tmp_path)
    slurm.refused = "2x1"
    with pytest.raises(Exception, match="sbatch refused it"):
        launch(plan, LOADED, max_ranks=None)
    slurm.refused = ""
    runs = [run.run_id for run in plan.groups[1].runs]
    ledger.intend(plan.folder, runs, time.time(), token="0123456789abcdef")
    return SweepFolder(plan.folder)


def test_what_was_not_recorded_is_cancelled(
    slurm: Slurm, folder: SweepFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    slurm.states["9_0"], slurm.tokens["9_0"] = State.PENDING, "0123456789abcdef"
    capsys.readouterr()
    recover(folder, {})
    assert slurm.states["9_0"] is State.CANCELLED
    assert capsys.readouterr().err == "note: cancelled what an interrupted submission has left on hold: 9\n"
    known = read_ledger(folder.path)
    assert (known.unconfirmed, dict(known.open_tokens)) == ((), {})


def test_a_token_stays_open_as_long_as_sbatch_may_run(
    slurm: Slurm, folder: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    recover(folder, {})
    assert set(read_ledger(folder.path).open_tokens) == {"0123456789abcdef"}
    later_s = time.time() + LATEST_ANSWER_S + 1
    monkeypatch.setattr("jobs.slurm.interrupted.time.time", lambda: later_s)
    recover(folder, {})
    assert not read_ledger(folder.path).open_tokens


def test_another_command_is_not_disturbed(folder: SweepFolder, capsys: pytest.CaptureFixture[str]) -> None:
    before = (folder.path / ledger.LEDGER_NAME).read_bytes()
    capsys.readouterr()
    with submission_lock(folder.path):
        recover(folder, {})
    error = "note: an interrupted submission is not finished yet: another sweep command is running in "
    assert capsys.readouterr().err.startswith(error)
    assert (folder.path / ledger.LEDGER_NAME).read_bytes() == before
