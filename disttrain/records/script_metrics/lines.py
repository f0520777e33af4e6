"""The files of a script's metrics, one for each rank and attempt, and the lines in them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from disttrain.records.file_tail import read_tails

FOLDER = "script-metrics"
FILE_FORMAT = "rank%05d-attempt%03d.jsonl"  # also for printf of a shell
STEP = "step"
STEP_LIMIT = 2**63

_FILE = re.compile(r"rank(?P<rank>\d{5,})-attempt(?P<attempt>\d{3,})\.jsonl")
_MOST_TAIL_LINES = 1000  # are searched for the latest values, in a file that does not have them
_DECODER = json.JSONDecoder()  # unlike for `parse_json`, NaN is a value: a loss may be NaN


def metrics_file(run_dir: Path, rank: int, attempt: int) -> Path:
    """The file to which the script of a rank appends in an attempt."""
    return run_dir / FOLDER / (FILE_FORMAT % (rank, attempt))


def new_metrics_folder(run_dir: Path) -> Path:
    """Creates the folder of all files, if it does not exist.

    Raises:
        OSError: It cannot be created.
    """
    path = run_dir / FOLDER
    path.mkdir(parents=True, exist_ok=True)
    return path


def new_metrics_file(run_dir: Path, rank: int) -> Path:
    """Creates the empty file for the next attempt of a rank.

    Raises:
        OSError: It cannot be created.
    """
    latest = max(_attempts(run_dir).get(rank, {}), default=0)
    new_metrics_folder(run_dir)
    path = metrics_file(run_dir, rank, latest + 1)
    path.touch()
    return path


def metrics_files(run_dir: Path) -> dict[int, list[Path]]:
    """The files of each rank, of the latest attempt last; the lowest rank is first."""
    found = _attempts(run_dir)
    return {rank: [found[rank][attempt] for attempt in sorted(found[rank])] for rank in sorted(found)}


def _attempts(run_dir: Path) -> dict[int, dict[int, Path]]:
    """The files by rank and attempt."""
    found: dict[int, dict[int, Path]] = {}
    try:
        paths = list((run_dir / FOLDER).iterdir())
    except OSError:
        return found
    for path in paths:
        if match := _FILE.fullmatch(path.name):
            found.setdefault(int(match["rank"]), {})[int(match["attempt"])] = path
    return found


def last_step(run_dir: Path, rank: int) -> int | None:
    """The last step that the script of a rank has logged; None if it has logged none. Only ends of files are read."""
    for path in reversed(metrics_files(run_dir).get(rank, [])):
        step = latest_values(path, (STEP,)).get(STEP)
        if step is not None:
            return int(step)
    return None


def latest_values(path: Path, names: Collection[str]) -> dict[str, float]:
    """The last value of each of these names at the end of a file. Names that are not found there are left out.

    Damaged lines are left out, and so is a file that cannot be read.
    """
    found: dict[str, float] = {}
    try:
        for lines in read_tails(path):
            for values in filter(None, map(parse_line, reversed(lines))):
                for name in names:
                    value = step_of(values) if name == STEP else number(values.get(name))
                    if value is not None:
                        found.setdefault(name, value)
            if len(found) == len(names) or len(lines) > _MOST_TAIL_LINES:
                break
    except OSError:
        return {}
    return found


def parse_line(line: bytes) -> dict[str, Any] | None:
    """The JSON object of a line; None if it is none."""
    try:
        values = _DECODER.decode(line.decode())
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None


def step_of(values: Mapping[str, Any]) -> int | None:
    """The step of a line, also if it is written as 10.0; None if it has none, or something else under this name."""
    step = values.get(STEP)
    if type(step) is float and step.is_integer():
        step = int(step)
    return step if type(step) is int and 0 <= step < STEP_LIMIT else None


def number(value: Any) -> float | None:
    """A value of a line as a number, infinite if it is too large; None if it is none, such as true or a text."""
    if type(value) is float:
        return value
    if type(value) is not int:
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf
