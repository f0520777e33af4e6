"""The part of docs/gpu.md that `make gpu` writes; the rest of the page stays."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.gpu.wheels import Unpacked

if TYPE_CHECKING:
    from tests.gpu.machine import Machine

BEGIN, END = "<!-- make gpu: begin -->", "<!-- make gpu: end -->"
_SPEED = ("run", "data", "forward", "backward", "optimizer", "step", "examples/s", "MFU")


@dataclass(frozen=True)
class Row:
    """The outcome of a check: passes, FAILS or not run."""

    name: str
    state: str
    result: str


def write_page(
    path: Path,
    machine: Machine,
    unpacked: Unpacked,
    rows: Sequence[Row],
    speeds: Sequence[Sequence[str]],
    tables: Sequence[str],
    elapsed_s: float,
) -> None:
    """Replaces the part between the two marks, or appends it to the page."""
    part = render(machine, unpacked, rows, speeds, tables, elapsed_s, datetime.date.today())
    before, after = "# On a GPU\n\n", ""
    if path.exists():
        text = path.read_text(encoding="utf-8")
        before, found, rest = text.partition(BEGIN)
        after = rest.partition(END)[2] if found else ""
    path.write_text(f"{before.rstrip()}\n\n{part}{after or chr(10)}", encoding="utf-8")


def render(
    machine: Machine,
    unpacked: Unpacked,
    rows: Sequence[Row],
    speeds: Sequence[Sequence[str]],
    tables: Sequence[str],
    elapsed_s: float,
    date: datetime.date,
) -> str:
    """The part as Markdown, with its two marks."""
    facts = [f"- date: {date}; `make gpu` took {elapsed_s:.0f} s", *(f"- {fact}" for fact in machine.facts)]
    lacking = [f"{name} ({reason})" for name, reason in machine.missing.items()]
    for text, names in (
        ("from gpu-wheels", unpacked.done),
        ("in gpu-wheels for another Python or CPU", unpacked.unfit),
        ("missing", lacking),
    ):
        if names:
            facts.append(f"- {text}: {', '.join(names)}")
    checks = _table(("check", "outcome", "result"), [(row.name, row.state, row.result) for row in rows])
    blocks = ["\n".join(facts), checks]
    if speeds:
        blocks.append(
            "Medians of the second half of the steps, in ms. Batch 16, one rank.\n\n" + _table(_SPEED, speeds)
        )
    # The benchmark's headings are below this section's.
    blocks += [table.strip().replace("\n#", "\n###").removeprefix("# ") for table in tables]
    return "\n\n".join((BEGIN, *blocks, END))


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *([cell.replace("|", "/") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
