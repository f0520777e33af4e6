"""Waits for the end of a sweep: prints a line for every change of a run's state, and a progress bar on a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from jobs.results.result import Result
from jobs.results.status import Status, read_status
from jobs.schedulers.scheduler import Scheduler
from jobs.slurm.states import JobPhase, State
from jobs.storage.sweep_folder import SweepFolder


class Watch(AbstractContextManager["Watch"]):
    """Follows some runs of a sweep until they have ended.

    Args:
        folder: The folder of the sweep.
        run_ids: The ids of the runs: those of one plan, not of other submissions.
        console: The console for the output.
        environ: The environment for sacct.
        poll_s: The interval between two queries in seconds; sites request at most one or two sacct calls a minute.
        scheduler: A scheduler that shares its answers, and is asked whenever it has news; None for one that is asked
            for this command alone, at this interval.
    """

    def __init__(
        self,
        folder: SweepFolder,
        run_ids: Collection[str],
        console: Console,
        environ: Mapping[str, str],
        poll_s: float,
        scheduler: Scheduler | None = None,
    ) -> None:
        self._folder = folder
        self._run_ids = run_ids
        self._console = console
        self._environ = environ
        self._poll_s = poll_s
        self._scheduler = scheduler
        self._last_query_s = float("-inf")
        self._states: dict[str, str] = {}
        self._notices: set[str] = set()
        self._status: Status | None = None  # the last answer
        self._progress = Progress(
            TextColumn("runs done"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("{task.fields[now]}"), console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        self._bar = self._progress.add_task("", total=None, now="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def say(self, line: str) -> None:
        """Prints one line above the progress bar."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    @property
    def finished(self) -> bool:
        """Whether every run had ended at the last query."""
        return self._status is not None and all(result.phase is JobPhase.FINISHED for result in self._awaited)

    @property
    def _awaited(self) -> list[Result]:
        results = self._status.results if self._status is not None else ()
        return [result for result in results if result.run_id in self._run_ids]

    def tick(self) -> None:
        """Queries the status if the interval is over or there is news, and prints the changes."""
        if not self._is_due():
            return
        self._last_query_s = time.monotonic()
        self._status = read_status(self._folder, self._environ, self._scheduler)
        for notice in self._status.notices:
            if notice not in self._notices:
                self._notices.add(notice)
                self.say(f"note: {notice}")
        for result in self._awaited:
            if self._states.get(result.run_id) != result.state:
                self._states[result.run_id] = result.state
                self.say(change_line(result))
        running = [result for result in self._awaited if result.phase is JobPhase.RUNNING]
        done = sum(result.phase is JobPhase.FINISHED for result in self._awaited)
        now = "  ".join(f"{result.label} {result.progress_text}".rstrip() for result in running[:3])
        self._progress.update(self._bar, total=len(self._awaited), completed=done, now=now)

    def _is_due(self) -> bool:
        if self._scheduler is not None and self._status is not None:
            return self._scheduler.has_news(self._folder)
        return time.monotonic() - self._last_query_s >= self._poll_s

    def wait_for_room(self, unsent: Collection[str], sleep: Callable[[float], None] = time.sleep) -> None:
        """Queries the status until a tenth of the sent runs have ended, for ten intervals at most.

        Args:
            unsent: The ids of the runs that were not sent.
            sleep: A function that waits for some seconds.
        """
        self._last_query_s = float("-inf")
        self.tick()
        before, start = self._count_active(unsent), time.monotonic()
        while True:
            waited_s = time.monotonic() - start
            # The limit may also be free again because other jobs of the user have ended.
            has_room = before > 0 and self._count_active(unsent) <= before * 9 // 10
            if waited_s >= (self._poll_s if has_room else 10 * self._poll_s):
                return
            sleep(min(self._poll_s, 0.5))
            self.tick()

    def leave_out_unsent(self) -> frozenset[str]:
        """Queries the status, and follows the runs that have no job no longer. Returns their ids."""
        self._last_query_s = float("-inf")
        self.tick()
        unsent = frozenset(result.run_id for result in self._awaited if result.state is State.NOT_SUBMITTED)
        self._run_ids = frozenset(self._run_ids) - unsent
        return unsent

    def _count_active(self, unsent: Collection[str]) -> int:
        """The number of runs that were sent and have not ended."""
        return sum(result.phase is not JobPhase.FINISHED and result.run_id not in unsent for result in self._awaited)

    def wait(self, sleep: Callable[[float], None] = time.sleep) -> None:
        """Queries the status until every run has ended."""
        self._last_query_s = float("-inf")  # the last answer may be from before a submission
        while True:
            self.tick()
            if self.finished:
                return
            sleep(min(self._poll_s, 0.5))


def change_line(result: Result) -> str:
    """One line about a run whose state has changed."""
    line = f"{result.name}  {result.state}"
    if result.scheduled.reason:
        return f"{line}: {result.scheduled.reason}"
    speed, accuracy = (result.figures.get(name) for name in ("samples_per_s", "eval_accuracy"))
    if speed is not None:
        line += f"  {speed:.1f} samples/s"
        if accuracy is not None:
            line += f", accuracy {accuracy:.3f}"
    return line
