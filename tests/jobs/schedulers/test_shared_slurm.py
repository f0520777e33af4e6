"""Commands that follow a sweep share the answers of Slurm: at most one question in each half minute."""

from __future__ import annotations

import itertools
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import jobs.schedulers.slurm_scheduler
from disttrain.records.atomic_write import write_text
from jobs.schedulers.shared_slurm import SharedSlurm
from jobs.schedulers.states import read_states, watching_scheduler
from jobs.slurm.attempts import AccountingRow
from jobs.slurm.sacct_table import AccountingUnavailable
from jobs.slurm.squeue import QueuedJob
from jobs.slurm.states import State
from jobs.storage import ledger
from jobs.storage.sweep_folder import SweepFolder


@dataclass
class Clock:
    """The time of `time.time`, which only `pass_s` moves."""

    now_s: float = 1_700_000_010.0

    def pass_s(self, seconds: float) -> None:
        self.now_s += seconds


@dataclass
class Shim:
    """Counts the questions to Slurm, by the half minutes in which they are asked, and answers them."""

    clock: Clock
    state: State = State.RUNNING
    sacct_error: str | None = None
    asked_s: list[tuple[str, float]] = field(default_factory=list)

    def sacct(self, job_ids: list[str], **_: Any) -> tuple[AccountingRow, ...]:
        self.asked_s.append(("sacct", self.clock.now_s))
        if self.sacct_error:
            raise AccountingUnavailable(self.sacct_error)
        return tuple(AccountingRow(job_id, state=self.state, submit_s=1, start_s=2) for job_id in job_ids)

    def squeue(self, *_: Any, **__: Any) -> dict[str, QueuedJob]:
        self.asked_s.append(("squeue", self.clock.now_s))
        return {"7_0": QueuedJob("7_0", self.state, "None", None, 1_700_000_900, 5)}

    def scontrol(self, **_: Any) -> str:
        self.asked_s.append(("scontrol", self.clock.now_s))
        return "site"

    def count(self, command: str) -> int:
        return sum(name == command for name, _ in self.asked_s)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "time", lambda: clock.now_s)
    return clock


@pytest.fixture
def shim(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Shim:
    shim = Shim(clock)
    monkeypatch.setattr(jobs.schedulers.slurm_scheduler, "query_sacct", shim.sacct)
    monkeypatch.setattr(jobs.schedulers.slurm_scheduler, "query_squeue", shim.squeue)
    monkeypatch.setattr(jobs.schedulers.slurm_scheduler, "cluster_name", shim.scontrol)
    return shim


@pytest.fixture
def folder(tmp_path: Path, clock: Clock) -> SweepFolder:
    folder = SweepFolder(tmp_path / "s" / "site")
    folder.create()
    folder.run("a").mkdir(parents=True)
    ledger.intend(folder.path, ["a"], 1.0)
    ledger.record(folder.path, {"a": "7_0"}, 1.0, cluster="site")
    return folder


class Watcher:
    """A command that follows the sweep: it asks each second if there may be news."""

    def __init__(self, folder: SweepFolder) -> None:
        self.folder = folder
        self.scheduler = watching_scheduler("slurm", {})
        self.state: State | None = None
        self.notices: tuple[str, ...] = ()
        self.reads = 0

    def look(self) -> State | None:
        if self.state is None or self.scheduler.has_news(self.folder):
            self.reads += 1
            states = read_states(self.folder, "s", self.scheduler, ledger.read_ledger(self.folder.path), ["a"])
            self.state, self.notices = states.conclusions["a"].state, states.answers.notices
        return self.state


def follow(watchers: list[Watcher], clock: Clock, seconds: int) -> None:
    for _ in range(seconds):
        for watcher in watchers:
            watcher.look()
        clock.pass_s(1.0)


@pytest.mark.parametrize("number", [1, 2, 5])
def test_all_watchers_ask_once_in_each_half_minute(number: int, shim: Shim, clock: Clock, folder: SweepFolder) -> None:
    watchers = [Watcher(folder) for _ in range(number)]
    follow(watchers, clock, 300)
    for command in ("sacct", "squeue", "scontrol"):
        times = [time_s for name, time_s in shim.asked_s if name == command]
        assert len(times) == 10
        assert min(after - before for before, after in itertools.pairwise(times)) >= 30
    assert {watcher.state for watcher in watchers} == {State.RUNNING}
    assert max(watcher.reads for watcher in watchers) <= 20, "and each reads the answer once, or when it is due"
    shim.state = State.TIMEOUT
    follow(watchers, clock, 32)
    assert {watcher.state for watcher in watchers} == {State.TIMEOUT}


def test_a_watcher_that_comes_later_uses_the_answer(shim: Shim, clock: Clock, folder: SweepFolder) -> None:
    follow([Watcher(folder)], clock, 5)
    later = Watcher(folder)
    assert later.look() is State.RUNNING
    assert (shim.count("sacct"), shim.count("squeue")) == (1, 1)
    assert folder.watch_file.stat().st_mode & 0o777 == 0o600


def test_no_other_watcher_asks_while_slurm_is_slow(shim: Shim, clock: Clock, folder: SweepFolder) -> None:
    """An answer may take longer than until the next half minute of the clock."""
    first, second = Watcher(folder), Watcher(folder)
    clock.now_s = 1_700_000_009.0  # a half minute of the clock ends in one second

    def slow(job_ids: list[str], **__: Any) -> tuple[AccountingRow, ...]:
        for _ in range(25):
            clock.pass_s(1.0)
            assert second.look() is State.PENDING, "nothing is known yet"
        return shim.sacct(job_ids)

    with pytest.MonkeyPatch().context() as patch:
        patch.setattr(jobs.schedulers.slurm_scheduler, "query_sacct", slow)
        assert first.look() is State.RUNNING
    assert second.look() is State.RUNNING
    assert shim.count("sacct") == 1


def test_of_watchers_that_want_to_ask_at_once_one_does(
    shim: Shim, folder: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SharedSlurm, "_is_fresh", lambda *_: False)
    assert [Watcher(folder).look() for _ in range(3)] == [State.RUNNING] * 3
    assert (shim.count("sacct"), shim.count("squeue")) == (1, 1)


def test_another_user_asks_for_himself(
    shim: Shim, clock: Clock, folder: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """He may not write, and cannot read what is private."""
    before = sorted(folder.path.rglob("*"))
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    follow([Watcher(folder)], clock, 300)
    assert (shim.count("sacct"), shim.count("squeue")) == (10, 10)
    assert sorted(folder.path.rglob("*")) == before


def test_where_nothing_can_be_written_each_asks_for_himself(
    shim: Shim, clock: Clock, folder: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device", str(path))

    real = os.open

    def refuse_claims(path: Any, *arguments: Any, **options: Any) -> int:
        if ".watch-" in str(path):
            refuse(Path(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr("jobs.schedulers.shared_slurm.write_text", refuse)
    monkeypatch.setattr("jobs.schedulers.answers.write_text", refuse)
    monkeypatch.setattr(os, "open", refuse_claims)
    watchers = [Watcher(folder), Watcher(folder)]
    follow(watchers, clock, 300)
    assert (shim.count("sacct"), shim.count("squeue")) == (20, 20)
    assert watchers[0].notices == (
        f"what was seen could not be saved: {folder.query_time_file}: No space left on device",
    )


@pytest.mark.parametrize(
    "text", ["", "[]", '{"asked_s": "x"}', '{"asked_s": 1, "more": 2}', '{"asked_s": 1, "queue": {"7_0": 3}}',
             '{"asked_s": 1e300, "answered_s": 1e300, "queue": {"7_0": []}}'],
)  # fmt: skip
def test_a_damaged_file_is_written_again(text: str, shim: Shim, folder: SweepFolder) -> None:
    write_text(folder.watch_file, text)
    assert Watcher(folder).look() is State.RUNNING
    assert Watcher(folder).look() is State.RUNNING
    assert shim.count("sacct") == 1


def test_notices_are_shared(shim: Shim, clock: Clock, folder: SweepFolder) -> None:
    shim.sacct_error = "sacct failed: no database"
    first, second = Watcher(folder), Watcher(folder)
    follow([first, second], clock, 3)
    assert (first.state, second.state) == (State.RUNNING, State.RUNNING)
    assert first.notices == second.notices
    assert first.notices[0].startswith("sacct failed: no database; squeue says what waits and runs")


def test_old_claims_are_removed(shim: Shim, clock: Clock, folder: SweepFolder) -> None:
    follow([Watcher(folder), Watcher(folder)], clock, 95)
    assert len(list(folder.path.glob(".watch-*"))) == 1


def test_what_squeue_says_survives_the_file(shim: Shim, folder: SweepFolder) -> None:
    watchers = [Watcher(folder), Watcher(folder)]
    answers = [
        read_states(folder, "s", watcher.scheduler, ledger.read_ledger(folder.path), ["a"]).answers
        for watcher in watchers
    ]
    assert isinstance(watchers[1].scheduler, SharedSlurm)
    assert answers[0].queue == answers[1].queue == shim.squeue()
    assert (answers[0].asked_s, answers[0].here) == (answers[1].asked_s, answers[1].here)
