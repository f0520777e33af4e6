"""docs/records.md agrees with the record types."""

from __future__ import annotations

import dataclasses
import re
import typing
from pathlib import Path
from typing import Any

import pytest
from annotated_types import Unit

from disttrain.records.record_docs import records_page
from disttrain.records.record_types import KINDS
from disttrain.records.summary_types import Failure, RunInfo, Summary

UNITS = {
    "_ms": "ms",
    "_s": "s",
    "_mib": "MiB",
    "_bytes": "bytes",
    "_percent": "%",
    "_w": "W",
    "_c": "deg C",
    "_mhz": "MHz",
    "_j": "J",
}


def test_the_page_is_generated(repository: Path) -> None:
    assert (repository / "docs" / "records.md").read_text(encoding="utf-8") == records_page(), (
        "python -m disttrain.records.record_docs > docs/records.md"
    )


@pytest.mark.parametrize("kind", [*KINDS.values(), RunInfo, Failure, Summary])
def test_a_unit_suffix_matches_the_unit(kind: type[Any]) -> None:
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        unit = next((item.unit for item in typing.get_args(hints[field.name]) if isinstance(item, Unit)), "")
        ending = re.search(r"_[a-z]+$", field.name)
        if ending and ending[0] in UNITS and field.name != "samples_per_s":
            assert unit.split(" ")[0] in (UNITS[ending[0]].split(" ")[0], "1/s", "10^9"), (
                f"{kind.__name__}.{field.name}"
            )
