"""The `sweep` command in this process: what it prints, a small sweep, and the states of its runs."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass

from jobs.slurm.attempts import AccountingRow
from jobs.slurm.states import State
from jobs.storage import ledger
from jobs.storage.sweep_folder import SweepFolder

SWEEP = """\
name: s
allocations: [1x1, 2x1]
base: {model: bert, max_steps: 3}
slurm: {time: 00:30:00}
"""


@dataclass(frozen=True)
class Output:
    """The exit status and the output of a command."""

    exit_code: int
    out: str
    err: str


Sweep = Callable[..., Output]


def note(folder: SweepFolder, *states: State) -> None:
    """Writes the states of the jobs, and the summary of each run that is done."""
    run_ids = {jobs[-1].job_id: run_id for run_id, jobs in ledger.read_ledger(folder.path).jobs.items()}
    for index, state in enumerate(states):
        if state is State.COMPLETED:
            (folder.run(run_ids[f"local-1-{index}"]) / "summary.json").write_text('{"steps": 3}')
    rows = [AccountingRow(f"local-1-{index}", state=state, submit_s=1) for index, state in enumerate(states)]
    ledger.append_lines(folder.accounting_file, [json.dumps(row.to_json()) for row in rows])


class Terminal(io.StringIO):
    """A terminal at which a user types this text."""

    def isatty(self) -> bool:
        return True
