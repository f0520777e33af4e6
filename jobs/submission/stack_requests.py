"""Requests the Python stacks of the ranks of runs that run, and reads where each rank is."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from disttrain.config.command.command_config import is_command
from disttrain.errors import UserError
from disttrain.records.lifecycle.stacks import last_frame, stacks_name
from jobs.planning.labels import Variation
from jobs.schedulers.states import read_states, scheduler_for
from jobs.slurm.states import State
from jobs.storage.ledger import read_ledger
from jobs.storage.run_lookup import find_runs
from jobs.storage.sweep_folder import SweepFolder
from jobs.submission.messages import note, say

_WAIT_S = 10.0  # the most time for the ranks to write; a shared file system may show it late
_POLL_S = 0.5


def request_stacks(folder: SweepFolder, texts: Sequence[str]) -> None:
    """Makes the ranks of runs write their stacks, and prints where each rank is.

    Args:
        folder: The folder of the sweep.
        texts: What the user typed for each run.

    Raises:
        UserError: A text names no run, a run is that of a command or does not run, or its ranks cannot be reached.
    """
    folder.require_owner("only its owner can signal its ranks")
    plan = folder.plan()
    runs = find_runs(plan.runs, texts)
    variation = Variation(plan.runs)
    for run in runs:
        if is_command(run):  # the signal would end it
            message = f"{variation.name(run)} runs a script of yours, which does not write its stacks for sweep stacks"
            raise UserError(message, hint="py-spy dump on its node, or faulthandler.register in the script, shows them")
    scheduler = scheduler_for(plan.kind, os.environ)
    ledger = read_ledger(folder.path)
    states = read_states(folder, plan.sweep, scheduler, ledger, [run["run_id"] for run in runs])
    for notice in (*states.damage, *states.answers.notices):
        note(notice)
    for run in runs:
        state = states.conclusions[run["run_id"]].state
        if state is not State.RUNNING:
            raise UserError(f"{variation.name(run)} does not run: it is {state}")
        files = _files(folder, run, variation.name(run))
        before = list(map(_size_bytes, files))
        job = ledger.jobs[run["run_id"]][-1]
        scheduler.check_here([job])
        scheduler.request_stacks(folder, job)
        _wait(files, before)
        say(f"{variation.name(run)}: stacks in {files[0].parent}")
        for rank, (file, size_bytes) in enumerate(zip(files, before, strict=True)):
            say(f"rank {rank}  {_place(file, size_bytes)}  {file.name}")


def _files(folder: SweepFolder, run: Mapping[str, Any], name: str) -> list[Path]:
    """The files of the ranks. A rank without one would be ended by the signal.

    Raises:
        UserError: A rank has none yet.
    """
    files = [folder.run(run["run_id"]) / stacks_name(rank) for rank in range(run["world_size"])]
    late = [rank for rank, file in enumerate(files) if not file.exists()]
    if late:
        message = f"{name} is starting or ending: rank {late[0]} takes no request"
        raise UserError(message, hint="try again in some seconds")
    return files


def _wait(files: Sequence[Path], before: Sequence[int]) -> None:
    """Waits until all files have grown and grow no more, at most for `_WAIT_S`."""
    deadline_s = time.monotonic() + _WAIT_S
    last = list(before)
    while time.monotonic() < deadline_s:
        time.sleep(_POLL_S)
        sizes = list(map(_size_bytes, files))
        if sizes == last and all(now > then for now, then in zip(sizes, before, strict=True)):
            return
        last = sizes


def _place(file: Path, before_bytes: int) -> str:
    """Where a rank is, by what it has written."""
    try:
        with file.open("rb") as opened:
            opened.seek(before_bytes)
            written = opened.read().decode(errors="replace")
    except OSError:
        written = ""
    if not written:
        return "no answer"
    return last_frame(written) or "in a library"


def _size_bytes(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:  # the rank has just ended
        return 0
