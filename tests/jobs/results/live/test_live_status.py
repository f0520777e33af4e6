"""Following a sweep: the screen changes with the files of the runs, and the end is that of the last run."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

import jobs.results.live.live_status
from jobs.planning.cluster import Kind
from jobs.results.live.live_status import follow
from jobs.results.status import Status
from jobs.storage.plan_check import StoredPlan
from jobs.storage.sweep_folder import SweepFolder
from tests.jobs.results.live.test_stalls import START, step_line, write_run
from tests.jobs.results.rows import make_result

RUNS, WAITS = (make_result(run_id, run_id, state=state) for run_id, state in (("a", "RUNNING"), ("b", "PENDING")))
DONE = make_result("a", "a", state="COMPLETED", steps=200)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[Status]:
    """The next answers of the scheduler."""
    answers: list[Status] = []
    kind: Kind = "local"
    plan = StoredPlan("s", "site", kind, [])
    monkeypatch.setattr(SweepFolder, "plan", lambda _: plan)
    monkeypatch.setattr(jobs.results.live.live_status, "read_status", lambda *_: answers.pop(0))
    return answers


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=100, height=30, color_system=None)


def text_of(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_steps_are_shown_between_answers(
    answers: list[Status], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, console = SweepFolder(tmp_path), terminal()
    folder.run("a").parent.mkdir()
    answers += [Status((RUNS, WAITS), ()), Status((DONE, WAITS), ())]
    slept: list[float] = []
    shown: list[str] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        shown.append(text_of(console))
        write_run(folder.run("a"), {0: START + step_line(len(slept))}, 0.0)

    monkeypatch.setattr("jobs.schedulers.local_scheduler.LocalScheduler.has_news", lambda *_: len(slept) == 4)
    status = follow(folder, {"a"}, console, {}, sleep)
    assert (status.results, answers) == ((DONE, WAITS), [])
    assert slept == [1.0] * 4
    assert "1/200" not in shown[0]
    for number in (1, 2, 3):
        assert f" {number}/200 " in shown[number]
    assert shown[0].startswith("\x1b[?25l"), "the cursor is hidden"
    end = text_of(console)[len(shown[-1]) :]
    assert end.count("\x1b[2K") >= 6, "the screen is removed"
    assert "\x1b[?25h" in end, "and the cursor is shown again"


def test_a_sweep_that_has_ended_has_no_screen(answers: list[Status], tmp_path: Path) -> None:
    answers.append(Status((DONE, WAITS), ("a note",)))
    console = terminal()
    assert follow(SweepFolder(tmp_path), {"a"}, console, {}).notices == ("a note",)
    assert "RUNNING" not in text_of(console)


def test_ctrl_c_restores_the_terminal(answers: list[Status], tmp_path: Path) -> None:
    answers.append(Status((RUNS,), ()))
    console = terminal()

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        follow(SweepFolder(tmp_path), {"a"}, console, {}, interrupt)
    assert "\x1b[?25h" in text_of(console)


def test_states_without_an_answer_are_called_so(answers: list[Status], tmp_path: Path) -> None:
    """Another watcher has just asked."""
    answers += [Status((WAITS,), (), is_current=False), Status((DONE,), ())]
    console = terminal()
    follow(SweepFolder(tmp_path), {"a", "b"}, console, {}, lambda _: None)
    assert "note: Slurm has not answered yet: the states are the last known ones" in text_of(console)
