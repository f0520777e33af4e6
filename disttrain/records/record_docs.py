"""The page docs/records.md, which ``python -m disttrain.records.record_docs`` prints."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from typing import Any

from annotated_types import DocInfo, Unit

from disttrain.records.figure_sources import Source
from disttrain.records.record_types import KINDS
from disttrain.records.summary_types import Failure, RunInfo, Summary

_PAGE = """# Records

The files that a run writes, field by field. `python -m disttrain.records.record_docs` generates this page from the
annotations in `record_types.py`, `timing_types.py` and `summary_types.py` in `disttrain/records/`.

Each line of `metrics-rank00000.jsonl` (rank 0) is one JSON object. Its first key, `kind`, names one of the record types
below. A missing value is null, never 0.

In the formulas, n is the number of ranks. A step's exchange is the all-reduce of all its gradient buckets.
"""


def records_page() -> str:
    """The text of the page."""
    sections = [_section(kind, f"{kind.__name__}: `{name}`") for name, kind in KINDS.items()]
    sections += [_section(kind, kind.__name__) for kind in (RunInfo, Failure, Summary)]
    return "\n".join([_PAGE, *sections])


def _section(kind: type[Any], title: str) -> str:
    hints = typing.get_type_hints(kind, include_extras=True)
    rows = ["| field | type | unit | meaning, formula | source |", "|---|---|---|---|---|"]
    for field in dataclasses.fields(kind):
        plain, *metadata = typing.get_args(hints[field.name])
        unit = next((item.unit for item in metadata if isinstance(item, Unit)), "")
        meaning = next(item.documentation for item in metadata if isinstance(item, DocInfo))
        source = next(item.text for item in metadata if isinstance(item, Source))
        rows.append(f"| `{field.name}` | {_type(plain)} | {unit} | {meaning} | {source} |")
    return f"## {title}\n\n{inspect.cleandoc(kind.__doc__ or '')}\n\n" + "\n".join(rows) + "\n"


def _type(plain: Any) -> str:
    text = str(plain)
    if isinstance(plain, type) and not typing.get_args(plain):
        text = plain.__name__
    return text.replace("typing.", "").replace("|", "or").replace("None", "null")


if __name__ == "__main__":
    print(records_page(), end="")
