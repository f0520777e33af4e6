"""Rows of results for the tests of what prints them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jobs.planning.labels import value_text
from jobs.results.collect import join
from jobs.results.result import Requested, Result, Scheduled
from jobs.results.run_records import RunRecords
from jobs.schedulers.conclude import Evidence, conclude, conclude_local
from jobs.slurm.attempts import AccountingRow, attempts_of
from jobs.storage.ledger import Ledger
from jobs.storage.run_facts import RunFacts

_SCHEDULED = {field.name for field in dataclasses.fields(Scheduled)}


def make_result(
    run_id: str = "1x1-0123456789ab",
    label: str = "1x1",
    *,
    varied: Mapping[str, Any] | None = None,
    dropped: bool = False,
    **columns: Any,
) -> Result:
    """A row with these columns; all others are unknown."""
    allocation = run_id.partition("-")[0]
    varied = varied or {}
    scheduled = {"state": "PENDING"} | {name: value for name, value in columns.items() if name in _SCHEDULED}
    return Result(
        requested=Requested(run_id=run_id, label=label, allocation=allocation, world_size=1, dropped=dropped),
        varied=varied,
        varied_texts={name: value_text(value) for name, value in varied.items()},
        config={"model": "bert", **varied},
        scheduled=Scheduled(**scheduled),
        figures={name: value for name, value in columns.items() if name not in _SCHEDULED},
    )


def joined(
    planned: Sequence[Mapping[str, Any]],
    ledger: Ledger,
    attempts: Mapping[str, Sequence[AccountingRow]],
    records: Mapping[str, RunRecords],
    *,
    local: bool = False,
    read_log: Callable[[str], str] = lambda job_id: "",
) -> tuple[Result, ...]:
    """The rows of planned runs by the accounting alone: squeue has not answered."""
    conclusions = {}
    for run in planned:
        jobs = ledger.jobs.get(run["run_id"], ())
        latest = attempts_of(jobs[-1].job_id, attempts) if jobs else ()
        if local:
            conclusions[run["run_id"]] = conclude_local(jobs, latest, RunFacts(has_summary=True), queue_lives=True)
        else:
            conclusions[run["run_id"]] = conclude(Evidence(jobs, latest, None, RunFacts(has_summary=True), now_s=2e9))
    return join(planned, ledger, attempts, records, conclusions, has_accounting=not local, read_log=read_log)
