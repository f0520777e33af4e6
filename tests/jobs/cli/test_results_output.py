"""The exit status of --check, and which runs are printed."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.slurm.states import State
from jobs.storage.sweep_folder import SweepFolder
from tests.jobs.command import SWEEP, Output, Sweep, note

pytestmark = pytest.mark.process


@pytest.mark.parametrize(
    ("states", "exit_code"),
    [
        ((), 0),
        ((State.COMPLETED, State.RUNNING), 0),
        ((State.COMPLETED, State.COMPLETED), 0),
        ((State.COMPLETED, State.FAILED), 1),
        ((State.CANCELLED, State.RUNNING), 1),
    ],
)
def test_with_check_the_exit_status_shows_a_failed_run(
    states: tuple[State, ...], exit_code: int, sweep: Sweep, submitted: SweepFolder
) -> None:
    note(submitted, *states)
    for command in (["status"], ["status", "--json"], ["collect"], ["collect", "s", "--csv"]):
        assert sweep(*command).exit_code == 0, command
        assert sweep(*command, "--check").exit_code == exit_code, command


def test_the_check_leaves_dropped_runs_out(sweep: Sweep, submitted: SweepFolder, dropped: str) -> None:
    note(submitted, State.COMPLETED, State.FAILED)
    for command in (["status"], ["collect"]):
        assert dropped in sweep(*command).out
        assert sweep(*command, "--check").exit_code == 0


@pytest.mark.parametrize(("seeds", "is_large"), [(20, False), (21, True)])
def test_a_sweep_larger_than_the_screen_is_not_printed_in_full(
    seeds: int, is_large: bool, sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe has the screen of 40 lines. collect and submit --wait print every run: their output is the result."""
    (tmp_path / "s.yaml").write_text(f"{SWEEP}seeds: {list(range(seeds))}\n")
    monkeypatch.setattr("jobs.schedulers.local_scheduler.send_to_local", lambda *_, **__: None)
    assert sweep("submit", "s.yaml", "--cluster", "local").exit_code == 0
    lines = {name: sweep(*name.split()).out.splitlines() for name in ("status", "status --all-runs", "collect")}
    assert lines["collect"] == lines["status --all-runs"]
    assert len(lines["collect"]) == 2 * seeds + 6
    assert (lines["status"] != lines["collect"]) == is_large
    assert len(lines["status"]) <= 40 + 6
    assert sweep("status", "--json").out.count('"run_id"') == 2 * seeds


def test_only_a_terminal_can_watch(sweep: Sweep, submitted: SweepFolder) -> None:
    note(submitted, State.COMPLETED, State.COMPLETED)
    output = sweep("status", "--watch")
    hint = "sweep wait prints a line for each change, sweep status the states now"
    assert output == Output(2, "", f"error: --watch: the output is no terminal ({hint})\n")


def test_a_sweep_that_has_ended_is_printed(
    sweep: Sweep, submitted: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    note(submitted, State.COMPLETED, State.FAILED)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    watched = sweep("status", "--watch")
    assert (watched.exit_code, "s on local: 2 runs, 1 COMPLETED, 1 FAILED" in watched.out) == (0, True)
    assert sweep("status", "--watch", "--check").exit_code == 1
