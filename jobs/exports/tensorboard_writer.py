"""Writes the event files of TensorBoard."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from disttrain.errors import UserError
from disttrain.records.json_values import to_json
from jobs.exports.points import Point
from jobs.exports.writer import ExportedRun, Target


def open_writer(target: Target, run: ExportedRun, handle: str | None) -> TensorboardWriter:
    """Opens a new event file in the folder of a run: TensorBoard reads all files of a folder as one run.

    Raises:
        UserError: The folder has files of something else.
    """
    # A later sweep file may give the run another label; its points stay in one folder.
    folder = target.folder / run.sweep / run.cluster / (handle or run.name.replace("/", "_"))
    if handle is None and folder.exists() and any(folder.iterdir()):
        raise UserError(f"{str(folder)!r} has files that this command did not write", hint="choose another -o FOLDER")
    return TensorboardWriter(folder, run, is_new=handle is None)


class TensorboardWriter:
    """Writes the points of one run."""

    def __init__(self, folder: Path, run: ExportedRun, *, is_new: bool) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self.handle: str | None = folder.name
        self._last_s = time.time()
        self._events = EventFileWriter(str(folder))
        if is_new:
            self._write_config(run)

    def write(self, points: Sequence[Point]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        for point in points:
            values = [Summary.Value(tag=name, simple_value=value) for name, value in point.values.items()]
            self._last_s = point.time_s or self._last_s
            self._events.add_event(Event(wall_time=self._last_s, step=point.step, summary=Summary(value=values)))
        self._events.flush()

    def close(self, _: bool | None, /) -> None:
        self._events.close()

    def _write_config(self, run: ExportedRun) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.text.metadata import create_summary_metadata
        from tensorboard.util.tensor_util import make_tensor_proto

        value = Summary.Value(
            tag="config",
            metadata=create_summary_metadata("config", ""),
            tensor=make_tensor_proto(to_json({**run.tags, **run.config}, indent=2).encode(), shape=(1,)),
        )
        self._events.add_event(Event(wall_time=self._last_s, step=0, summary=Summary(value=[value])))
