"""Exports the runs of a sweep to a tool, during the runs or after them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from disttrain.config.command.command_config import is_command
from disttrain.errors import UserError
from jobs.exports.export_state import ExportState, read_state, state_file, write_state
from jobs.exports.points import Point, new_points, origin
from jobs.exports.writer import ExportedRun, OpenWriter, Target, Tool, Writer, writer_of
from jobs.planning.labels import Variation
from jobs.slurm.states import State
from jobs.storage.sweep_folder import SweepFolder

_BATCH = 1000  # points are in memory, and are repeated if the export is killed between the tool and its state


@dataclass
class Exporter:
    """Exports the new points of runs each time that it is asked. Writers stay open until their run has ended.

    Attributes:
        folder: The folder of the sweep.
        tool: The tool.
        target: Where the export goes.
        planned: The runs to export.
        say: A function for notes: a run whose records are damaged is left out.
    """

    folder: SweepFolder
    tool: Tool
    target: Target
    planned: Sequence[Mapping[str, Any]]
    say: Callable[[str], None]
    _writers: dict[str, Writer] = field(default_factory=dict)
    _damaged: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._open: OpenWriter = writer_of(self.tool)
        self._runs = exported_runs(self.folder, self.planned)

    def export(self, states: Mapping[str, State], *, stays: bool) -> dict[str, int]:
        """Exports what is new.

        Args:
            states: The states of the runs, asked before their records are read.
            stays: Whether it will be asked again.

        Returns:
            The number of new points of each run that has been exported, now or earlier, by its run id.
        """
        counts = {}
        for run in self.planned:
            run_id = run["run_id"]
            if run_id in self._damaged:
                continue
            state = states.get(run_id, State.NOT_SUBMITTED)
            try:
                count = self._export_run(run, None if not state.is_finished else state.is_success, stays=stays)
            except (UserError, OSError) as error:
                self._damaged.add(run_id)
                self.say(f"run {self._runs[run_id].name} is not exported: {error}")
                continue
            if count is not None:
                counts[run_id] = count
        return counts

    def close(self) -> None:
        """Closes all writers, also of runs that have not ended."""
        for run_id in list(self._writers):
            self._writers.pop(run_id).close(None)

    def _export_run(self, run: Mapping[str, Any], succeeded: bool | None, *, stays: bool) -> int | None:
        """The number of new points of a run; None if it never had one."""
        exported = self._runs[run["run_id"]]
        path = state_file(self.target.folder, self.tool, exported)
        state, count = read_state(path), 0
        started = origin(self.folder.run(exported.run_id))
        if state.origin is not None and started is not None and started != state.origin:
            # The tool has steps of the earlier run under the same numbers; it would show a mixture of both.
            raise UserError("it was done again since its last export", hint="export to another folder: -o FOLDER")
        state.origin = started or state.origin
        try:
            points = new_points(self.folder.run(exported.run_id), state.progress, is_command=is_command(run))
            for batch in _batches(points):
                writer = self._writer(exported, state)
                writer.write(batch)
                state.handle = writer.handle
                write_state(path, state)
                count += len(batch)
            if state.handle is not None and state.has_ended != (succeeded is not None):
                self._writer(exported, state)  # the tool learns of the end, or of a new attempt, without new points
                state.has_ended = succeeded is not None
                write_state(path, state)
        finally:
            if exported.run_id in self._writers and (succeeded is not None or not stays):
                self._writers.pop(exported.run_id).close(succeeded)
        return None if state.handle is None else count

    def _writer(self, run: ExportedRun, state: ExportState) -> Writer:
        if run.run_id not in self._writers:
            self._writers[run.run_id] = self._open(self.target, run, state.handle)
        return self._writers[run.run_id]


def exported_runs(folder: SweepFolder, planned: Sequence[Mapping[str, Any]]) -> dict[str, ExportedRun]:
    """The runs as a tool has them, by run id. A label that several runs have gets the id."""
    variation, plan = Variation(folder.planned_runs()), folder.plan()
    labels = [variation.label(run) for run in folder.planned_runs()]
    runs = {}
    for run in planned:
        label = variation.label(run)
        name = label if labels.count(label) == 1 else f"{label} {run['run_id']}"
        config = {"allocation": run["allocation"], "world_size": run["world_size"], **run["train"]}
        runs[run["run_id"]] = ExportedRun(run["run_id"], name, plan.sweep, plan.cluster, config)
    return runs


def check_target(tool: Tool, target: Target) -> None:
    """Checks that the options fit the tool.

    Raises:
        UserError: They do not.
    """
    if target.online and tool is not Tool.WANDB:
        raise UserError(f"{tool} has no online mode here", where="--online", hint="it is an option of --to wandb")
    if target.tracking_uri is not None and tool is not Tool.MLFLOW:
        raise UserError(f"{tool} has no tracking server", where="--tracking-uri", hint="it is one of --to mlflow")


def _batches(points: Iterator[Point]) -> Iterator[list[Point]]:
    """The points in groups. A group ends before the progress of its last point is passed."""
    batch: list[Point] = []
    for point in points:
        batch.append(point)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
