"""The page docs/records.md, which ``python -m disttrain.records.record_docs`` prints."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Iterable
from typing import Any

from disttrain.records.figures import Figure, figures_of
from disttrain.records.lifecycle.hang_types import HangPosition
from disttrain.records.record_types import KINDS
from disttrain.records.summary_types import SUMMARY_FIGURES, Failure, RunInfo, Stage

_PAGE = """# Records

The files that a run writes, field by field. `python -m disttrain.records.record_docs` generates this page from the
annotations in `disttrain/records/`, in the files `*_types.py`.

Each line of `metrics-rank00000.jsonl` (rank 0) is one JSON object. Its first key, `kind`, names one of the record types
below. A missing value is null, never 0.

In the formulas, n is the number of ranks. A step's exchange is the all-reduce of all its gradient buckets.
"""

_SUMMARY = """## Summary

The measurements of a complete run: `summary.json`, written by rank 0.

Times cover the measured steps and are null if there are none. GPU and process figures cover rank 0's samples of the
last start, without the one before the first step; those over the ranks cover the same samples of every rank, and are
null if the figure of one rank is not known. Start-up times cover the last start.
"""


def records_page() -> str:
    """The text of the page."""
    sections = [_section(kind, f"{kind.__name__}: `{name}`") for name, kind in KINDS.items()]
    sections += [_section(kind, kind.__name__) for kind in (RunInfo, Failure, Stage, HangPosition)]
    return "\n".join([_PAGE, *sections, _SUMMARY, figure_table(SUMMARY_FIGURES.values())])


def _section(kind: type[Any], title: str) -> str:
    written = {field.name for field in dataclasses.fields(kind)}  # a property is only in the summary
    table = figure_table(figure for figure in figures_of(kind) if figure.name in written)
    return f"## {title}\n\n{inspect.cleandoc(kind.__doc__ or '')}\n\n{table}"


def figure_table(figures: Iterable[Figure]) -> str:
    """A Markdown table with one row for each figure."""
    rows = ["| field | type | unit | meaning, formula | source |", "|---|---|---|---|---|"]
    rows += [
        f"| `{figure.name}` | {_type(figure.type)} | {figure.unit} | {figure.meaning} | {figure.source.text} |"
        for figure in figures
    ]
    return "\n".join(rows) + "\n"


def _type(plain: Any) -> str:
    text = str(plain)
    if isinstance(plain, type) and not typing.get_args(plain):
        text = plain.__name__
    return text.replace("typing.", "").replace("|", "or").replace("None", "null")


if __name__ == "__main__":
    print(records_page(), end="")
