"""Which submitted runs a sweep file no longer yields."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from disttrain.errors import UserError
from jobs.planning.expand import expanded_ids
from jobs.planning.sweep_file import Sweep, parse_sweep


def dropped_runs(
    sweep: Sweep, planned_ids: Collection[str], submitted: Mapping[str, Mapping[str, str] | None]
) -> frozenset[str]:
    """The ids of the submitted runs that are dropped.

    A run is dropped if the present file, with the ``--set`` of the run's own submission, no longer yields it. So a
    submission with other overrides drops nothing.

    Args:
        sweep: The sweep that is about to be submitted.
        planned_ids: The ids of its runs.
        submitted: The overrides of the latest submission of each run, by run id (`Ledger.overrides`). None if they are
            not known, for a run of the former release: then it is not dropped.
    """
    planned = frozenset(planned_ids)
    yielded = {_key(sweep.overrides): planned}
    dropped: set[str] = set()
    for run_id, overrides in submitted.items():
        if run_id in planned or overrides is None:
            continue
        key = _key(overrides)
        if key not in yielded:
            yielded[key] = _run_ids(sweep, overrides)
        if run_id not in yielded[key]:
            dropped.add(run_id)
    return frozenset(dropped)


def _key(overrides: Mapping[str, str]) -> frozenset[tuple[str, str]]:
    return frozenset(overrides.items())


def _run_ids(sweep: Sweep, overrides: Mapping[str, str]) -> frozenset[str]:
    """The runs of the file with these overrides; none if they contradict the file, for example a new axis."""
    try:
        # Data that is gone does not drop a run: its results are still those of the file.
        return expanded_ids(parse_sweep(sweep.document, sweep.folder, overrides))
    except UserError:
        return frozenset()
