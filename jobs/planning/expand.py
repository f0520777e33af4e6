"""The runs of a sweep: every point of its axes on every allocation, each with its resolved config and its run id."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from disttrain.config.command.arguments import arguments
from disttrain.config.command.command_config import CommandConfig
from disttrain.config.command.command_text import check_script, placeholders
from disttrain.config.paths import absolute_paths, absolute_values
from disttrain.config.run_id import NOT_IDENTITY, run_id
from disttrain.config.train_config import TrainConfig, is_own_family
from disttrain.config.yaml_nodes import KeyPath
from disttrain.errors import FieldsError, UserError
from jobs.planning.allocation import Allocation
from jobs.planning.own_family import check_family
from jobs.planning.points import MAX_RUNS as MAX_RUNS
from jobs.planning.points import Cell, Point, points_of
from jobs.planning.run_keys import COMMAND
from jobs.planning.sweep_file import Sweep


@dataclass(frozen=True)
class RunSpec:
    """One run of a sweep.

    Args:
        run_id: The identity, ``<allocation>-<12 hex digits>``. It does not depend on the folder of the sweep file or of
            the data.
        allocation: The allocation of the run.
        config: The config, with the family's defaults, absolute paths and the seed; or the user's command.
        point: The values that differ between runs, for display: those of the axes, or of an entry of `include`.
        asked: Every value that the sweep file or ``--set`` gives the run, as written.
        index: The position in the sweep, from 0.
        import_error: Why this machine cannot import the user's own model; None if it can.
    """

    run_id: str
    allocation: Allocation
    config: TrainConfig | CommandConfig = field(hash=False)
    point: Mapping[str, Any] = field(hash=False)
    asked: Mapping[str, Any] = field(hash=False)
    index: int
    import_error: UserError | None = field(default=None, compare=False)

    @property
    def by_node(self) -> bool:
        """Whether each node gets one task, torchrun, which starts the ranks of the node."""
        return isinstance(self.config, CommandConfig) and self.config.uses_torchrun


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
        UserError: Fields contradict each other, two points are the same run, a `setup` differs from the allocation, the
            script of a command does not exist, or a placeholder has no value; an entry of `exclude` matches nothing, no
            run is left, there are more than `MAX_RUNS` runs, or `measure_link` is set and no allocation has more than
            one rank.
    """
    runs: list[RunSpec] = []
    seen: dict[str | tuple[str, ...], Point] = {}
    import_errors: dict[Cell, UserError | None] = {}
    for index, point in enumerate(points_of(sweep)):
        cell = point.cells[COMMAND if point.is_command else "model"]
        if cell not in import_errors:
            import_errors[cell] = _check_code(sweep, point)
        run = _run(sweep, point, index, import_errors[cell])
        for identity in _identities(run):
            twin = seen.setdefault(identity, point)
            if twin is not point:
                raise _same_run(sweep, twin, point)
        runs.append(run)
    return tuple(runs)


def _identities(run: RunSpec) -> Iterator[str | tuple[str, ...]]:
    """What no two runs may have in common."""
    # By absolute paths: ./data and /home/me/data may be the same folder, and then the same run.
    yield run_id(str(run.allocation), run.config)
    if isinstance(run.config, CommandConfig):
        yield (str(run.allocation), *arguments(run.config))  # 1 and "1" are the same argument


def expanded_ids(sweep: Sweep) -> frozenset[str]:
    """The ids of the runs of a sweep. In contrast to `expand`, no path needs to exist.

    Raises:
        UserError: The sweep contradicts itself.
    """
    return frozenset(run_id(str(point.allocation), _config(sweep, point)) for point in points_of(sweep))


def _check_code(sweep: Sweep, point: Point) -> UserError | None:
    """Checks that the script of a command exists.

    Returns:
        Why this machine cannot import the model of a point. The plan decides whether that matters.
    """
    if point.is_command:
        with _placed(sweep, point):
            check_script(point.cells[COMMAND].value, os.getcwd(), sweep.folder)
        return None
    model = point.cells["model"].value
    try:
        with _placed(sweep, point):
            if is_own_family(model):
                check_family(model, import_path(sweep))
    except UserError as error:
        return error
    return None


def import_path(sweep: Sweep) -> tuple[str, str]:
    """Where the user's own model family is: in the folder of the sweep file or in the working directory."""
    return (sweep.folder, os.getcwd())


def _run(sweep: Sweep, point: Point, index: int, import_error: UserError | None) -> RunSpec:
    config = _config(sweep, point)
    absolute = config
    if isinstance(config, TrainConfig):
        with _placed(sweep, point):
            absolute = absolute_paths(config, sweep.folder)
    elif not sweep.commands.own_keys:
        # Its keys are the fields of our models, and a path is the same file for both.
        absolute = dataclasses.replace(config, values=absolute_values(config.values, sweep.folder))
    asked = {name: cell.value for name, cell in point.cells.items()}
    identity = run_id(str(point.allocation), config)
    return RunSpec(identity, point.allocation, absolute, point.values, asked, index, import_error)


def _config(sweep: Sweep, point: Point) -> TrainConfig | CommandConfig:
    """The resolved config of a point, with paths as they are written."""
    if point.is_command:
        return _command_config(sweep, point)
    _check_setup(sweep, point)
    with _placed(sweep, point):
        config = TrainConfig(**{name: cell.value for name, cell in point.cells.items() if name != "setup"}).resolved()
        config.check_world_size(point.allocation.world_size)
        return config


def _command_config(sweep: Sweep, point: Point) -> CommandConfig:
    values = {name: cell.value for name, cell in point.cells.items() if name != COMMAND}
    config = CommandConfig(
        command=point.cells[COMMAND].value,
        values=values,
        flags=sweep.commands.flags,
        switches=sweep.commands.switches,
        launcher=sweep.commands.launcher,
        working_dir=os.getcwd(),
    )
    with _placed(sweep, point):
        for name in placeholders(config.command, list(dict.fromkeys((*values, *sweep.names)))):
            if name not in values:
                message = f"the command has the placeholder {{{name}}}, and {name} is not set for this run"
                raise FieldsError((COMMAND, name), message, hint="give it a value, or drop the placeholder")
    return config


@contextmanager
def _placed(sweep: Sweep, point: Point) -> Iterator[None]:
    """Adds the place in the sweep file to a mistake in the values of a point."""
    try:
        yield
    except FieldsError as error:
        message = error.message
        if len(error.fields) > 1:
            message += f", in {point}"
        raise UserError(message, where=sweep.where(*_blamed(sweep, point, error.fields)), hint=error.hint) from None


def _check_setup(sweep: Sweep, point: Point) -> None:
    """Checks that `setup`, if given, equals the allocation. The config of the run does not use it."""
    setup = point.cells.get("setup")
    if setup and setup.value is not None and Allocation.parse(setup.value) != point.allocation:
        message = f"setup {setup.value!r} differs from the allocation {point.allocation}"
        raise UserError(message, where=sweep.where(*setup.keys), hint="drop setup; the allocation replaces it")


def _blamed(sweep: Sweep, point: Point, fields: tuple[str, ...]) -> KeyPath:
    """The most specific place that sets one of these fields: --set, then include, then a list, then base."""

    def specificity(keys: KeyPath) -> tuple[int, int]:
        line = sweep.document.line(*keys)
        if keys[0] == "base" and keys[1] in sweep.overrides:
            return 3, line
        return {"include": 2, "base": 0}.get(str(keys[0]), 1), line

    places = [point.cells[name].keys for name in fields if name in point.cells]
    return max(places, key=specificity, default=point.keys)


def _same_run(sweep: Sweep, first: Point, second: Point) -> UserError:
    place, other = _differing_places(first, second)
    message = f"{second} is the same run as {first} on line {sweep.document.line(*other)}"
    hint = f"drop one, or change a field other than {', '.join(sorted(NOT_IDENTITY))}"
    if second.is_command:
        hint = "they have the same arguments: drop one, or change a value"
    return UserError(message, where=sweep.where(*place), hint=hint)


def _differing_places(first: Point, second: Point) -> tuple[KeyPath, KeyPath]:
    """The places to name for two points that are the same run: that of the second point, then that of the first."""
    pairs = [(second.cells[name].keys, first.cells[name].keys) for name in second.varied if name in first.cells]
    place, other = next(((a, b) for a, b in pairs if a != b), (second.keys, first.keys or ("base",)))
    return second.keys or place, first.keys or other
