"""The runs of a sweep: every point of its axes on every allocation, each with its resolved config and its run id."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from disttrain.config.paths import absolute_paths
from disttrain.config.run_id import NOT_IDENTITY, run_id
from disttrain.config.train_config import LINK, TrainConfig, is_own_family
from disttrain.config.yaml_nodes import KeyPath
from disttrain.errors import FieldsError, UserError
from jobs.planning.allocation import Allocation
from jobs.planning.own_family import check_family
from jobs.planning.sweep_file import Sweep
from jobs.planning.sweep_sections import Pattern, canonical

# Far more than a cluster accepts (MaxArraySize, MaxSubmitJobs). A larger number is a typo, found before runs are built.
MAX_RUNS = 100_000


@dataclass(frozen=True)
class RunSpec:
    """One run of a sweep.

    Args:
        run_id: The identity, ``<allocation>-<12 hex digits>``. It does not depend on the folder of the sweep file or of
            the data.
        allocation: The allocation of the run.
        config: The config, with the family's defaults, absolute paths and the seed.
        point: The values that differ between runs, for display: those of the axes, or of an entry of `include`.
        asked: Every value that the sweep file or ``--set`` gives the run, as written.
        index: The position in the sweep, from 0.
        import_error: Why this machine cannot import the user's own model; None if it can.
    """

    run_id: str
    allocation: Allocation
    config: TrainConfig = field(hash=False)
    point: Mapping[str, Any] = field(hash=False)
    asked: Mapping[str, Any] = field(hash=False)
    index: int
    import_error: UserError | None = field(default=None, compare=False)


class _Cell(NamedTuple):
    """The value of a field, and its place in the sweep file."""

    value: Any
    keys: KeyPath


@dataclass(frozen=True)
class _Point:
    """A run before its fields are checked together. `keys` is its entry in `include`, ("measure_link",), or ()."""

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

    The order of the runs:

    1. For each allocation, in file order: the product of the axes (the last one varies fastest), the rows of `zip` and
       the seeds, without the points that `exclude` matches.
    2. The points of `include`. Each is merged into `base`. An entry without allocations gets all allocations of the
       sweep, an entry without a seed gets all seeds.
    3. With `measure_link`: one link run for each remaining allocation of more than one rank.

    The function checks which paths exist, and reads the text of the user's own model, but does not import it.

    Raises:
        UserError: Fields contradict each other, two points are the same run, a `setup` differs from the allocation, an
            entry of `exclude` matches nothing, no run is left, there are more than `MAX_RUNS` runs, or `measure_link`
            is set and no allocation has more than one rank.
    """
    runs: list[RunSpec] = []
    seen: dict[str, _Point] = {}
    import_errors: dict[_Cell, UserError | None] = {}
    for index, point in enumerate(_points(sweep)):
        cell = point.cells["model"]
        if cell not in import_errors:
            import_errors[cell] = _import_error(sweep, point)
        run = _run(sweep, point, index, import_errors[cell])
        # Compared by absolute paths: ./data and /home/me/data may be the same folder, and then the same run.
        twin = seen.setdefault(run_id(str(run.allocation), run.config), point)
        if twin is not point:
            raise _same_run(sweep, twin, point)
        runs.append(run)
    return tuple(runs)


def expanded_ids(sweep: Sweep) -> frozenset[str]:
    """The ids of the runs of a sweep. In contrast to `expand`, no path needs to exist.

    Raises:
        UserError: The sweep contradicts itself.
    """
    return frozenset(run_id(str(point.allocation), _config(sweep, point)) for point in _points(sweep))


def _points(sweep: Sweep) -> list[_Point]:
    _check_count(sweep)
    points = [*_without_excluded(sweep, list(_product(sweep))), *_included(sweep)]
    if not points:
        raise UserError("no run is left", where=sweep.where("exclude"), hint="exclude removes all of them")
    if sweep.measure_link:
        points += _links(sweep, points)
    return points


def _steps(sweep: Sweep) -> list[list[dict[str, _Cell]]]:
    """The dimensions of the product, the slowest first. Each dimension is a list of steps; a step sets some cells."""
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
            hint = "an entry of include is merged into base, not into axes"
            raise UserError("model is missing", where=sweep.where(*keys), hint=hint)
        seed_steps = _seed_steps(sweep)
        if "seed" in own:
            seed_steps = [{}]
        for allocation in entry.allocations or sweep.allocations:
            for step in seed_steps:
                yield _Point(allocation, base | step | own, tuple(own | step), keys)


def _links(sweep: Sweep, points: Sequence[_Point]) -> list[_Point]:
    """One link run for each allocation of more than one rank, on the device of `base`."""
    keys = ("measure_link",)
    allocations = [a for a in dict.fromkeys(point.allocation for point in points) if a.world_size > 1]
    if not allocations:
        hint = "a link connects ranks; add an allocation such as 2x1, or drop measure_link"
        raise UserError("no allocation has more than one rank", where=sweep.where(*keys), hint=hint)
    device = {name: cell for name, cell in _base(sweep).items() if name == "device"}
    return [_Point(allocation, device | {"model": _Cell(LINK, keys)}, ("model",), keys) for allocation in allocations]


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
            hint = "write a value that occurs in the sweep, or drop the entry"
            return UserError(f"no run has {name} {value!r}", where=sweep.where("exclude", index, name), hint=hint)
    if not set(entry.allocations or sweep.allocations) & set(sweep.allocations):
        message = f"no run has allocation {', '.join(map(str, entry.allocations or ()))}"
        hint = "write an allocation of the sweep"
        return UserError(message, where=sweep.where("exclude", index, "allocation"), hint=hint)
    hint = "each value occurs, but no run has all of them; drop a value or the entry"
    return UserError("no run matches this entry", where=sweep.where("exclude", index), hint=hint)


def _import_error(sweep: Sweep, point: _Point) -> UserError | None:
    """Why this machine cannot import the model of a point. The plan decides whether that matters."""
    model = point.cells["model"].value
    try:
        with _placed(sweep, point):
            if is_own_family(model):
                check_family(model, (sweep.folder, os.getcwd()))
    except UserError as error:
        return error
    return None


def _run(sweep: Sweep, point: _Point, index: int, import_error: UserError | None) -> RunSpec:
    config = _config(sweep, point)
    with _placed(sweep, point):
        absolute = absolute_paths(config, sweep.folder)
    asked = {name: cell.value for name, cell in point.cells.items()}
    identity = run_id(str(point.allocation), config)
    return RunSpec(identity, point.allocation, absolute, point.values, asked, index, import_error)


def _config(sweep: Sweep, point: _Point) -> TrainConfig:
    """The resolved config of a point, with paths as they are written."""
    _check_setup(sweep, point)
    with _placed(sweep, point):
        config = TrainConfig(**{name: cell.value for name, cell in point.cells.items() if name != "setup"}).resolved()
        config.check_world_size(point.allocation.world_size)
        return config


@contextmanager
def _placed(sweep: Sweep, point: _Point) -> Iterator[None]:
    """Adds the place in the sweep file to a mistake in the fields of a point."""
    try:
        yield
    except FieldsError as error:
        message = error.message
        if len(error.fields) > 1:
            message += f", in {point}"
        raise UserError(message, where=sweep.where(*_blamed(sweep, point, error.fields)), hint=error.hint) from None


def _check_setup(sweep: Sweep, point: _Point) -> None:
    """Checks that `setup`, if given, equals the allocation. The config of the run does not use it."""
    setup = point.cells.get("setup")
    if setup and setup.value is not None and Allocation.parse(setup.value) != point.allocation:
        message = f"setup {setup.value!r} differs from the allocation {point.allocation}"
        raise UserError(message, where=sweep.where(*setup.keys), hint="drop setup; the allocation replaces it")


def _blamed(sweep: Sweep, point: _Point, fields: tuple[str, ...]) -> KeyPath:
    """The most specific place that sets one of these fields: --set, then include, then a list, then base."""

    def specificity(keys: KeyPath) -> tuple[int, int]:
        line = sweep.document.line(*keys)
        if keys[0] == "base" and keys[1] in sweep.overrides:
            return 3, line
        return {"include": 2, "base": 0}.get(str(keys[0]), 1), line

    places = [point.cells[name].keys for name in fields if name in point.cells]
    return max(places, key=specificity, default=point.keys)


def _same_run(sweep: Sweep, first: _Point, second: _Point) -> UserError:
    place, other = _differing_places(first, second)
    message = f"{second} is the same run as {first} on line {sweep.document.line(*other)}"
    hint = f"drop one, or change a field other than {', '.join(sorted(NOT_IDENTITY))}"
    return UserError(message, where=sweep.where(*place), hint=hint)


def _differing_places(first: _Point, second: _Point) -> tuple[KeyPath, KeyPath]:
    """The places to name for two points that are the same run: that of the second point, then that of the first."""
    pairs = [(second.cells[name].keys, first.cells[name].keys) for name in second.varied if name in first.cells]
    place, other = next(((a, b) for a, b in pairs if a != b), (second.keys, first.keys or ("base",)))
    return second.keys or place, first.keys or other
