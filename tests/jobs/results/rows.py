"""Rows of results for the tests of what prints them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jobs.planning.labels import value_text
from jobs.results.result import Requested, Result, Scheduled

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
