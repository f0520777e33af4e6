"""Follows a sweep on the screen of a terminal until its runs have ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping

from rich.console import Console, Group
from rich.live import Live

from jobs.results.live.progress import read_progress
from jobs.results.live.screen import View, screen, shown_runs
from jobs.results.status import Status, read_status
from jobs.schedulers.states import watching_scheduler
from jobs.slurm.states import JobPhase
from jobs.storage.sweep_folder import SweepFolder

REFRESH_S = 1.0  # the interval at which the files of the runs that run are read


def follow(
    folder: SweepFolder,
    run_ids: Collection[str],
    console: Console,
    environ: Mapping[str, str],
    sleep: Callable[[float], None] = time.sleep,
) -> Status:
    """Shows the runs of a sweep until those to wait for have ended.

    Slurm is asked at most once each half minute, for all that follow the sweep. In between, the screen shows what the
    files of the runs say that run and are on the screen.

    Args:
        folder: The folder of the sweep.
        run_ids: The ids of the runs to wait for.
        console: The terminal.
        environ: The environment for sacct and squeue.
        sleep: A function that waits for some seconds.

    Returns:
        The status at the end.
    """
    plan = folder.plan()
    scheduler = watching_scheduler(plan.kind, environ)
    status = read_status(folder, environ, scheduler)
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while not _have_ended(status, run_ids):
            live.update(_screen(folder, f"{plan.sweep} on {plan.cluster}", status, console), refresh=True)
            sleep(REFRESH_S)
            if scheduler.has_news(folder):
                status = read_status(folder, environ, scheduler)
    return status


def _have_ended(status: Status, run_ids: Collection[str]) -> bool:
    return all(row.phase is JobPhase.FINISHED for row in status.results if row.run_id in run_ids)


def _screen(folder: SweepFolder, title: str, status: Status, console: Console) -> Group:
    """The screen now."""
    progress = {
        row.run_id: read_progress(folder.run(row.run_id), row.requested.world_size)
        for row in shown_runs(status.results, console.height)
    }
    notices = status.notices
    if status.asked_s is None and not status.is_current:
        notices = (*notices, "Slurm has not answered yet: the states are the last known ones")
    view = View(title, status.results, progress, status.queue, notices, time.time(), status.asked_s)
    return screen(view, console.width, console.height)
