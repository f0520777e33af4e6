"""Which of the failed runs a retry sends: those of a state, and those of a reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from disttrain.errors import UserError, suggest_name
from jobs.results.status import read_rows
from jobs.schedulers.scheduler import Scheduler
from jobs.schedulers.states import States
from jobs.slurm.states import State
from jobs.storage.ledger import Ledger
from jobs.storage.sweep_folder import SweepFolder


@dataclass(frozen=True)
class FailedRuns:
    """What the failed runs must have to be sent. Without a value, all of them are sent.

    Args:
        state: Their state.
        reason: A part of their reason as `sweep status` shows it; upper and lower case are the same.
    """

    state: State | None = None
    reason: str | None = None

    def __str__(self) -> str:
        """The condition as the end of a sentence; empty if there is none."""
        parts = []
        if self.state is not None:
            parts.append(f" with state {self.state}")
        if self.reason is not None:
            parts.append(f" with {self.reason!r} in its reason")
        return " and".join(parts)

    def among(
        self,
        folder: SweepFolder,
        runs: Sequence[Mapping[str, Any]],
        ledger: Ledger,
        scheduler: Scheduler,
        states: States,
    ) -> list[Mapping[str, Any]]:
        """The runs that meet the condition. Their records are only read for a reason.

        Args:
            folder: The folder of the sweep.
            runs: The runs that failed, as plan.json has them.
            ledger: The ledger of the sweep.
            scheduler: Its scheduler.
            states: The states of these runs.
        """
        if self.state is not None:
            runs = [run for run in runs if states.conclusions[run["run_id"]].state is self.state]
        if self.reason is None:
            return list(runs)
        part = self.reason.casefold()
        rows = read_rows(folder, runs, ledger, scheduler, states)
        matching = {row.run_id for row in rows if part in (row.scheduled.reason or "").casefold()}
        return [run for run in runs if run["run_id"] in matching]


ALL_FAILED = FailedRuns()


def failed_state(text: str) -> State:
    """The state that a user names; upper and lower case are the same.

    Raises:
        UserError: A run that failed or was cancelled cannot have this state.

    Example:
        >>> failed_state("timeout")
        <State.TIMEOUT: 'TIMEOUT'>
    """
    known = [state.value for state in State if state.is_finished and not state.is_success]
    if text.upper() not in known:
        hint = f"{suggest_name(text.upper(), known, '')} known: {', '.join(known)}".strip()
        raise UserError(f"{text!r} is no state of a failed or cancelled run", where="--state", hint=hint)
    return State(text.upper())
