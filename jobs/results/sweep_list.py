"""The sweeps under a root, with the last known states of their runs."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from disttrain.errors import UserError
from jobs.results.status import LastKnown, last_known
from jobs.results.text_table import TextColumn, TextTable
from jobs.schedulers.answers import age_text
from jobs.slurm.states import State
from jobs.storage.sweep_folder import SweepFolder, modified_s


@dataclass(frozen=True)
class ListedSweep:
    """One sweep on one cluster.

    Attributes:
        folder: Its folder.
        known: The last known states of its runs.
        age_s: The age of these states in seconds; None if Slurm was never asked.
        error: Why the folder cannot be read.
    """

    folder: SweepFolder
    known: LastKnown
    age_s: float | None
    error: str | None = None

    @property
    def counts(self) -> dict[str, int]:
        """The number of runs in each state that occurs."""
        counts = Counter(self.known.states.values())
        return {state.value: counts[state] for state in State if counts[state]}


def listed_sweeps(root: Path) -> list[ListedSweep]:
    """The sweeps under the root, the one submitted last first."""
    plans = sorted(root.glob("*/*/plan.json"), key=modified_s, reverse=True)
    sweeps = []
    for plan in plans:
        folder = SweepFolder(plan.parent)
        try:
            known = last_known(folder)
        except (OSError, UserError) as error:  # one damaged or private folder must not hide the others
            sweeps.append(ListedSweep(folder, LastKnown({}, None), None, f"cannot be read: {error}"))
            continue
        age_s = None
        if known.known_s is not None:
            age_s = max(0.0, time.time() - known.known_s)
        sweeps.append(ListedSweep(folder, known, age_s))
    return sweeps


def sweeps_table(sweeps: Sequence[ListedSweep]) -> TextTable:
    """One row for each sweep and cluster."""
    rows = []
    for sweep in sweeps:
        counts = sweep.error or ", ".join(f"{count} {state}" for state, count in sweep.counts.items())
        age = "not asked yet"
        if sweep.age_s is not None:
            age = age_text(sweep.age_s)
        rows.append((sweep.folder.sweep_name, sweep.folder.cluster_name, str(len(sweep.known.states)), counts, age))
    columns = zip(("sweep", "cluster", "runs", "states", "age"), *rows, strict=True)
    return TextTable([TextColumn(name, cells) for name, *cells in columns], [""] * len(rows))


def list_json(sweeps: Sequence[ListedSweep]) -> list[dict[str, Any]]:
    """The sweeps as JSON."""
    return [
        {
            "sweep": sweep.folder.sweep_name,
            "cluster": sweep.folder.cluster_name,
            "folder": str(sweep.folder.path),
            "runs": len(sweep.known.states),
            "states": sweep.counts,
            "age_s": sweep.age_s,
            "error": sweep.error,
        }
        for sweep in sweeps
    ]
