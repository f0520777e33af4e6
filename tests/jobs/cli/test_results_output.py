"""The exit status of --check."""

from __future__ import annotations

import pytest

from jobs.slurm.states import State
from jobs.storage.sweep_folder import SweepFolder
from tests.jobs.command import Sweep, note

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
