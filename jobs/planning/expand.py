"""A sweep's runs: every point of its axes on every allocation, each with its resolved config and its identity."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from disttrain.config.paths import absolute_paths
from disttrain.config.run_id import NOT_IDENTITY, run_id
from disttrain.config.train_config import LINK, TrainConfig
from disttrain.errors import FieldsError, UserError
from jobs.planning.allocation import Allocation
from jobs.planning.sweep_file import Pattern, Sweep, canonical
from jobs.planning.yaml_file import KeyPath

# Far above what a cluster takes (MaxArraySize, MaxSubmitJobs): more is a typo, refused before it is built.
MAX_RUNS = 100_000


@dataclass(frozen=True)
class RunSpec:
    """One run of a sweep.

    Args:
        run_id: Its identity, ``<allocation>-<12 hex digits>``; the same wherever the sweep file and its data lie.
        allocation: The shape it runs on.
        config: What it trains: the family's defaults filled in, paths absolute, its seed set.
        point: What sets it apart from others, for display: the values of its axes, or of its entry in `include`.
        index: Its place in the sweep, from 0.
    """

    run_id: str
    allocation: Allocation
    config: TrainConfig = field(hash=False)
    point: Mapping[str, Any] = field(hash=False)
    index: int


class _Cell(NamedTuple):
    """A field's value, and the place in the sweep file that gave it."""

    value: Any
    keys: KeyPath


@dataclass(frozen=True)
class _Point:
    """A run before its fields are checked together; `keys` is its entry in `include`, measure_link, or ()."""

    allocation: Allocation
    cells: Mapping[str, _Cell]
    varied: tuple[str, ...]
    keys: KeyPath = ()

    @property
    def values(self) -> dict[str, Any]:
        return {name: self.cells[name].value for name in self.varied}

    def __str__(self) -> str:
        return " ".join([str(self.allocation), *(f"{name}={value}" for name, value in self.values.items())])


def expand(sweep: Sweep) -> tuple[RunSpec, ...]:
    """The runs of a sweep.

    For each allocation, in file order, the product of the axes (the last one fastest), the rows of `zip` and the seeds;
    without the points that `exclude` matches; then the points of `include`, each laid over `base` and run on its own
    allocations (else on all) and with its own seed (else with all); with `measure_link`, the runs that measure the link
    of each allocation that is left. Of the outside world it looks only at which paths exist.

    Raises:
        UserError: Fields that do not go together, two points that are the same run, a `setup` that contradicts the
            allocation, an entry of `exclude` that matches nothing, no run at all, or more than `MAX_RUNS`; a link to be
            measured where no allocation has one.
    """
    _check_count(sweep)
    points = [*_without_excluded(sweep, list(_product(sweep))), *_included(sweep)]
    if not points:
        raise UserError("no run is left", where=sweep.where("exclude"), hint="exclude drops them all")
    if sweep.measure_link:
        points += _links(sweep, points)
    runs: list[RunSpec] = []
    seen: dict[str, _Point] = {}
    for index, point in enumerate(points):
        run = _run(sweep, point, index)
        # By absolute paths: ./data and /home/me/data may be one folder, whose run would be named twice.
        twin = seen.setdefault(run_id(str(run.allocation), run.config), point)
        if twin is not point:
            raise _same_run(sweep, twin, point)
        runs.append(run)
    return tuple(runs)


def _steps(sweep: Sweep) -> list[list[dict[str, _Cell]]]:
    """The dimensions of the product, the slowest first: for each the cells that each of its steps sets."""
    steps = [
        [{name: _Cell(value, ("axes", name, index))} for index, value in enumerate(values)]
        for name, values in sweep.axes.items()
    ]
    if sweep.zip:
        rows = range(len(next(iter(sweep.zip.values()))))
        steps.append([{name: _Cell(sweep.zip[name][row], ("zip", name, row)) for name in sweep.zip} for row in rows])
    return [*steps, _seed_steps(sweep)]


def _seed_steps(sweep: Sweep) -> list[dict[str, _Cell]]:
    if sweep.seeds is None:
        return [{}]
    return [{"seed": _Cell(seed, ("seeds", index))} for index, seed in enumerate(sweep.seeds)]


def _base(sweep: Sweep) -> dict[str, _Cell]:
    return {name: _Cell(value, ("base", name)) for name, value in sweep.base.items()}


def _product(sweep: Sweep) -> Iterator[_Point]:
    base = _base(sweep)
    for allocation, *steps in itertools.product(sweep.allocations, *_steps(sweep)):
        varied = {name: cell for step in steps for name, cell in step.items()}
        yield _Point(allocation, base | varied, tuple(varied))


def _included(sweep: Sweep) -> Iterator[_Point]:
    base = _base(sweep)
    for index, entry in enumerate(sweep.include):
        keys = ("include", index)
        own = {name: _Cell(value, (*keys, name)) for name, value in entry.values.items()}
        if "model" not in base | own:
            raise UserError(
                "model is missing", where=sweep.where(*keys), hint="an entry is laid over base, not over axes"
            )
        for allocation in entry.allocations or sweep.allocations:
            for step in [{}] if "seed" in own else _seed_steps(sweep):
                yield _Point(allocation, base | step | own, tuple(own | step), keys)


def _links(sweep: Sweep, points: Sequence[_Point]) -> list[_Point]:
    """For each allocation of more than one rank the run that measures its link, on the same device."""
    keys = ("measure_link",)
    shapes = [shape for shape in dict.fromkeys(point.allocation for point in points) if shape.world_size > 1]
    if not shapes:
        hint = "name an allocation of more than one rank, or drop it"
        raise UserError("no allocation has a link", where=sweep.where(*keys), hint=hint)
    device = {name: cell for name, cell in _base(sweep).items() if name == "device"}
    return [_Point(shape, device | {"model": _Cell(LINK, keys)}, ("model",), keys) for shape in shapes]


def _check_count(sweep: Sweep) -> None:
    seeds = len(sweep.seeds or (None,))
    count = len(sweep.allocations) * math.prod(len(steps) for steps in _steps(sweep))
    for entry in sweep.include:
        count += len(entry.allocations or sweep.allocations) * (1 if "seed" in entry.values else seeds)
    if count > MAX_RUNS:
        raise UserError(f"stands for {count} runs, more than {MAX_RUNS}", where=sweep.where(), hint="shorten its lists")


def _without_excluded(sweep: Sweep, points: list[_Point]) -> list[_Point]:
    dropped: set[int] = set()
    for index, entry in enumerate(sweep.exclude):
        matched = {position for position, point in enumerate(points) if _matches(entry, point)}
        if not matched:
            raise _matches_nothing(sweep, points, index)
        dropped |= matched
    return [point for position, point in enumerate(points) if position not in dropped]


def _matches(entry: Pattern, point: _Point) -> bool:
    if entry.allocations is not None and point.allocation not in entry.allocations:
        return False
    return all(_has(point, name, value) for name, value in entry.values.items())


def _has(point: _Point, name: str, value: Any) -> bool:
    return name in point.cells and canonical(point.cells[name].value) == canonical(value)


def _matches_nothing(sweep: Sweep, points: list[_Point], index: int) -> UserError:
    entry = sweep.exclude[index]
    for name, value in entry.values.items():
        if not any(_has(point, name, value) for point in points):
            hint = "write a value that the sweep gives it, or drop the entry"
            return UserError(f"no run has {name} {value!r}", where=sweep.where("exclude", index, name), hint=hint)
    if not set(entry.allocations or sweep.allocations) & set(sweep.allocations):
        shapes, hint = ", ".join(map(str, entry.allocations or ())), "name one of the sweep's allocations"
        return UserError(f"no run is on {shapes}", where=sweep.where("exclude", index, "allocation"), hint=hint)
    hint = "each value has runs, but none has all of them; loosen the entry or drop it"
    return UserError("no run matches this entry", where=sweep.where("exclude", index), hint=hint)


def _run(sweep: Sweep, point: _Point, index: int) -> RunSpec:
    _check_setup(sweep, point)
    try:
        config = TrainConfig(**{name: cell.value for name, cell in point.cells.items() if name != "setup"}).resolved()
        config.check_world_size(point.allocation.world_size)
        absolute = absolute_paths(config, sweep.folder)
    except FieldsError as error:
        message = f"{error.message}, in {point}" if len(error.fields) > 1 else error.message
        raise UserError(message, where=sweep.where(*_blamed(sweep, point, error.fields)), hint=error.hint) from None
    return RunSpec(run_id(str(point.allocation), config), point.allocation, absolute, point.values, index)


def _check_setup(sweep: Sweep, point: _Point) -> None:
    """A setup may only repeat the allocation; the run gets its shape from there alone."""
    setup = point.cells.get("setup")
    if setup and setup.value is not None and Allocation.parse(setup.value) != point.allocation:
        message = f"setup {setup.value!r} contradicts the allocation {point.allocation}"
        raise UserError(message, where=sweep.where(*setup.keys), hint="drop setup: a run's shape is its allocation")


def _blamed(sweep: Sweep, point: _Point, fields: tuple[str, ...]) -> KeyPath:
    """Of the places that gave these fields, the most specific one: --set, then include, then a list, then base."""

    def specificity(keys: KeyPath) -> tuple[int, int]:
        overridden = keys[0] == "base" and keys[1] in sweep.overrides
        rank = 3 if overridden else {"include": 2, "base": 0}.get(str(keys[0]), 1)
        return rank, sweep.document.line(*keys)

    places = [point.cells[name].keys for name in fields if name in point.cells]
    return max(places, key=specificity, default=point.keys)


def _same_run(sweep: Sweep, first: _Point, second: _Point) -> UserError:
    place, other = _apart(first, second)
    message = f"{second} is the same run as {first} of line {sweep.document.line(*other)}"
    hint = f"drop one, or let them differ in more than {', '.join(sorted(NOT_IDENTITY))}"
    return UserError(message, where=sweep.where(*place), hint=hint)


def _apart(first: _Point, second: _Point) -> tuple[KeyPath, KeyPath]:
    """The places to name for two points that are one run: where the second came from, and where the first did."""
    pairs = [(second.cells[name].keys, first.cells[name].keys) for name in second.varied if name in first.cells]
    place, other = next(((a, b) for a, b in pairs if a != b), (second.keys, first.keys or ("base",)))
    return second.keys or place, first.keys or other
