"""The small file that says how far a run was exported, next to the files of the tool."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from disttrain.records.atomic_write import write_text
from disttrain.records.json_values import to_json
from disttrain.records.record_files import from_json, read_as
from jobs.exports.points import Position, Progress
from jobs.exports.writer import ExportedRun, Tool

FOLDER = ".sweep-export"


@dataclass
class ExportState:
    """How far a run was exported.

    Attributes:
        progress: What was read of it.
        handle: What names the run in the tool; None before the first export.
        has_ended: Whether the tool knows that the run has ended.
        origin: What identifies the first start of the run that was exported; None if it is not known.
    """

    progress: Progress
    handle: str | None = None
    has_ended: bool = False
    origin: str | None = None


def state_file(folder: Path, tool: Tool, run: ExportedRun) -> Path:
    """The file of a run: a folder may have the exports of several sweeps and tools."""
    return folder / FOLDER / f"{tool}-{run.sweep}-{run.cluster}-{run.run_id}.json"


def read_state(path: Path) -> ExportState:
    """The state of an earlier export; an empty one if there was none.

    Raises:
        DamagedFile: The file cannot be used.
    """
    return read_as(path, _state) or ExportState(Progress())


def write_state(path: Path, state: ExportState) -> None:
    """Writes the state, after the tool has the points."""
    path.parent.mkdir(parents=True, exist_ok=True)
    own = {"handle": state.handle, "has_ended": state.has_ended, "origin": state.origin}
    write_text(path, to_json({**own, **dataclasses.asdict(state.progress)}) + "\n")


def _state(values: dict[str, Any]) -> ExportState:
    positions, latest = values.get("positions"), values.get("latest")
    if not isinstance(positions, dict) or not isinstance(latest, dict):
        raise ValueError("it has no positions")
    read = {name: from_json(Position, position) for name, position in positions.items()}
    has_ended = values.get("has_ended") is True
    return ExportState(Progress(read, latest), values.get("handle"), has_ended, values.get("origin"))
