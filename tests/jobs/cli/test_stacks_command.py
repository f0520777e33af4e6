"""sweep stacks: what it refuses, and what it prints of ranks that answer and that do not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from disttrain.records.lifecycle.stacks import stacks_name
from jobs.schedulers.local_scheduler import LocalScheduler
from jobs.slurm.states import State
from jobs.storage.sweep_folder import SweepFolder
from jobs.submission import stack_requests
from tests.jobs.command import Sweep, note

pytestmark = pytest.mark.process

STACKS = 'Current thread 0x1 (most recent call first):\n  File "/a/images.py", line 7 in decode\n'


@pytest.fixture
def running(submitted: SweepFolder, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run of two ranks that runs."""
    note(submitted, State.COMPLETED, State.RUNNING)
    monkeypatch.setattr("jobs.schedulers.local_scheduler.is_queue_alive", lambda *_: True)
    monkeypatch.setattr(stack_requests, "_WAIT_S", 0.2)
    monkeypatch.setattr(stack_requests, "_POLL_S", 0.01)
    return submitted.run(submitted.planned_runs()[1]["run_id"])


def test_only_a_run_that_runs_is_asked(sweep: Sweep, running: Path) -> None:
    assert sweep("stacks").err == "error: sweep stacks needs the runs (sweep status shows their labels)\n"
    done = sweep("stacks", "1x1")
    assert done.exit_code == 2
    assert done.err.endswith("(1x1) does not run: it is COMPLETED\n")


def test_a_starting_run_is_not_asked(sweep: Sweep, running: Path) -> None:
    """Before a rank has its handler, the signal would end it."""
    (running / stacks_name(0)).touch()
    starting = sweep("stacks", "2x1")
    message = (
        f"error: {running.name} (2x1) is starting or ending: rank 1 takes no request (try again in some seconds)\n"
    )
    assert (starting.exit_code, starting.err) == (2, message)


def test_a_run_of_another_machine_is_not_reached(sweep: Sweep, running: Path) -> None:
    for rank in (0, 1):
        (running / stacks_name(rank)).touch()
    elsewhere = sweep("stacks", "2x1")
    message = "error: no process of the run is on this machine (run the command where the queue runs)\n"
    assert (elsewhere.exit_code, elsewhere.err) == (2, message)


def test_each_rank_has_a_line(sweep: Sweep, running: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for rank in (0, 1):
        (running / stacks_name(rank)).write_text(STACKS.replace("decode", "earlier"))

    def answer(*_: object) -> None:
        with (running / stacks_name(0)).open("a") as file:
            file.write(STACKS)

    monkeypatch.setattr(LocalScheduler, "request_stacks", answer)
    lines: Sequence[str] = sweep("stacks", "2x1").out.splitlines()
    assert lines == [
        f"{running.name} (2x1): stacks in {running}",
        "rank 0  images.decode  stacks-rank00000.txt",
        "rank 1  no answer  stacks-rank00001.txt",
    ]
