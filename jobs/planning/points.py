"""The points of a sweep on its allocations: which values a run has, and where each is in the sweep file."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from disttrain.config.train_config import LINK
from disttrain.config.yaml_nodes import KeyPath
from disttrain.errors import UserError, suggest_name
from jobs.planning.allocation import Allocation
from jobs.planning.run_keys import COMMAND
from jobs.planning.sweep_file import Sweep
from jobs.planning.sweep_sections import Pattern, canonical

# Far more than a cluster accepts (MaxArraySize, MaxSubmitJobs). A larger number is a typo, found before runs are built.
MAX_RUNS = 100_000

_MODEL = "model"
# What the runs of our models have, and a command has not: it replaces the model, and takes no part in our checks.
_NOT_OF_COMMANDS = (_MODEL, "setup")


class Cell(NamedTuple):
    """The value of a key, and its place in the sweep file."""

    value: Any
    keys: KeyPath


@dataclass(frozen=True)
class Point:
    """A run before its values are checked together. `keys` is its entry in `include`, ("measure_link",), or ()."""

    allocation: Allocation
    cells: Mapping[str, Cell]
    varied: tuple[str, ...]
    keys: KeyPath = ()

    @property
    def is_command(self) -> bool:
        return COMMAND in self.cells

    @property
    def values(self) -> dict[str, Any]:
        return {name: self.cells[name].value for name in self.varied}

    def __str__(self) -> str:
        return " ".join([str(self.allocation), *(f"{name}={value}" for name, value in self.values.items())])


def points_of(sweep: Sweep) -> list[Point]:
    """The points in the order of `expand`.

    Raises:
        UserError: A point has neither a model nor a command, or both; an entry of `exclude` matches nothing; no point
            is left, or too many are; or `measure_link` is set and no allocation has more than one rank.
    """
    _check_count(sweep)
    points = [*_without_excluded(sweep, list(_product(sweep))), *_included(sweep)]
    if not points:
        raise UserError("no run is left", where=sweep.where("exclude"), hint="exclude removes all of them")
    if sweep.measure_link:
        points += _links(sweep, points)
    return points


def _steps(sweep: Sweep) -> list[list[dict[str, Cell]]]:
    """The dimensions of the product, the slowest first. Each dimension is a list of steps; a step sets some cells."""
    steps = [
        [{name: Cell(value, ("axes", name, index))} for index, value in enumerate(values)]
        for name, values in sweep.axes.items()
    ]
    if sweep.zip:
        rows = range(len(next(iter(sweep.zip.values()))))
        steps.append([_zip_row(sweep, row) for row in rows])
    return [*steps, _seed_steps(sweep)]


def _zip_row(sweep: Sweep, row: int) -> dict[str, Cell]:
    """A row of `zip`. Where it has commands, null means that the row has no command, or no model."""
    cells = {name: Cell(values[row], ("zip", name, row)) for name, values in sweep.zip.items()}
    if COMMAND not in cells or sweep.commands.own_keys:
        return cells
    cells = {name: cell for name, cell in cells.items() if cell.value is not None or name not in (COMMAND, _MODEL)}
    if COMMAND not in cells and not any(_MODEL in values for values in (cells, sweep.base, sweep.axes)):
        where = sweep.where("zip", COMMAND, row)
        raise UserError("this row has neither a command nor a model", where=where, hint="write one of them")
    return cells


def _seed_steps(sweep: Sweep) -> list[dict[str, Cell]]:
    if sweep.seeds is None:
        return [{}]
    return [{"seed": Cell(seed, ("seeds", index))} for index, seed in enumerate(sweep.seeds)]


def _base(sweep: Sweep) -> dict[str, Cell]:
    base = {name: Cell(value, ("base", name)) for name, value in sweep.base.items()}
    if sweep.commands.command is not None:
        return {COMMAND: Cell(sweep.commands.command, (COMMAND,))} | base
    return base


def _product(sweep: Sweep) -> Iterator[Point]:
    base = _base(sweep)
    for allocation, *steps in itertools.product(sweep.allocations, *_steps(sweep)):
        varied = {name: cell for step in steps for name, cell in step.items()}
        cells = _run_cells(sweep, base | varied)
        yield Point(allocation, cells, tuple(name for name in varied if name in cells))


def _included(sweep: Sweep) -> Iterator[Point]:
    base = _base(sweep)
    for index, entry in enumerate(sweep.include):
        keys = ("include", index)
        own = {name: Cell(value, (*keys, name)) for name, value in entry.values.items()}
        missing = COMMAND if sweep.commands.own_keys else _MODEL
        if not {missing, COMMAND} & {*base, *own}:
            hint = "an entry of include is merged into base, not into axes"
            if missing == COMMAND:
                hint = "an entry of include is merged into base, not into zip"
            raise UserError(f"{missing} is missing", where=sweep.where(*keys), hint=hint)
        seed_steps = _seed_steps(sweep)
        if "seed" in own:
            seed_steps = [{}]
        for allocation in entry.allocations or sweep.allocations:
            for step in seed_steps:
                yield Point(allocation, _run_cells(sweep, base | step | own), tuple(own | step), keys)


def _run_cells(sweep: Sweep, cells: dict[str, Cell]) -> dict[str, Cell]:
    """The values of one run. Where the keys are our fields, a command replaces the model under `base`."""
    if COMMAND not in cells or sweep.commands.own_keys:
        return cells
    model = cells.get(_MODEL)
    if model is not None and model.keys[0] != "base":
        hint = f"drop one; to have both in a sweep, write null in the lists {_MODEL} and {COMMAND} under zip"
        where = sweep.where(*cells[COMMAND].keys)
        raise UserError(f"a run has either a command or a model, and {model.value!r} is set", where=where, hint=hint)
    return {name: cell for name, cell in cells.items() if name not in _NOT_OF_COMMANDS or cell.keys[0] == "include"}


def _links(sweep: Sweep, points: Sequence[Point]) -> list[Point]:
    """One link run for each allocation of more than one rank, on the device of `base`."""
    keys = ("measure_link",)
    allocations = [a for a in dict.fromkeys(point.allocation for point in points) if a.world_size > 1]
    if not allocations:
        hint = "a link connects ranks; add an allocation such as 2x1, or drop measure_link"
        raise UserError("no allocation has more than one rank", where=sweep.where(*keys), hint=hint)
    device = {}
    if not sweep.commands.own_keys:
        device = {name: cell for name, cell in _base(sweep).items() if name == "device"}
    return [Point(allocation, device | {"model": Cell(LINK, keys)}, ("model",), keys) for allocation in allocations]


def _check_count(sweep: Sweep) -> None:
    count = len(sweep.allocations) * math.prod(len(steps) for steps in _steps(sweep))
    for entry in sweep.include:
        added = len(entry.allocations or sweep.allocations)
        if sweep.seeds and "seed" not in entry.values:
            added *= len(sweep.seeds)
        count += added
    if count > MAX_RUNS:
        message = f"the sweep has {count} runs, more than {MAX_RUNS}"
        raise UserError(message, where=sweep.where(), hint="shorten its lists")


def _without_excluded(sweep: Sweep, points: list[Point]) -> list[Point]:
    dropped: set[int] = set()
    for index, entry in enumerate(sweep.exclude):
        matched = {position for position, point in enumerate(points) if _matches(entry, point)}
        if not matched:
            raise _matches_nothing(sweep, points, index)
        dropped |= matched
    return [point for position, point in enumerate(points) if position not in dropped]


def _matches(entry: Pattern, point: Point) -> bool:
    if entry.allocations is not None and point.allocation not in entry.allocations:
        return False
    return all(_has(point, name, value) for name, value in entry.values.items())


def _has(point: Point, name: str, value: Any) -> bool:
    return name in point.cells and canonical(point.cells[name].value) == canonical(value)


def _matches_nothing(sweep: Sweep, points: list[Point], index: int) -> UserError:
    entry = sweep.exclude[index]
    for name, value in entry.values.items():
        if not any(_has(point, name, value) for point in points):
            hint = "write a value that occurs in the sweep, or drop the entry"
            if sweep.commands.own_keys:  # nothing else knows the names of the keys
                hint = suggest_name(name, () if name in sweep.names else sweep.names, hint)
            return UserError(f"no run has {name} {value!r}", where=sweep.where("exclude", index, name), hint=hint)
    if not set(entry.allocations or sweep.allocations) & set(sweep.allocations):
        message = f"no run has allocation {', '.join(map(str, entry.allocations or ()))}"
        hint = "write an allocation of the sweep"
        return UserError(message, where=sweep.where("exclude", index, "allocation"), hint=hint)
    hint = "each value occurs, but no run has all of them; drop a value or the entry"
    return UserError("no run matches this entry", where=sweep.where("exclude", index), hint=hint)
