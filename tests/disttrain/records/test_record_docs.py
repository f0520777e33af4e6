"""docs/records.md agrees with the record types."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from disttrain.records.lifecycle.hang_types import HangPosition
from disttrain.records.record_docs import records_page
from disttrain.records.record_types import KINDS
from disttrain.records.summary_types import SUMMARY_FIGURES, Failure, RunInfo, Stage


def test_the_page_is_generated(repository: Path) -> None:
    assert (repository / "docs" / "records.md").read_text(encoding="utf-8") == records_page(), (
        "python -m disttrain.records.record_docs > docs/records.md"
    )


def test_the_page_has_every_written_field() -> None:
    """A property of a record type is not in the file, so only the summary has it."""
    sections = re.split(r"^## ", records_page(), flags=re.MULTILINE)[1:]
    names = [re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE) for section in sections]
    written = [
        [field.name for field in dataclasses.fields(kind)]
        for kind in (*KINDS.values(), RunInfo, Failure, Stage, HangPosition)
    ]
    assert names == [*written, list(SUMMARY_FIGURES)]
