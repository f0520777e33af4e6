"""Writes runs of mlflow: into a folder of files, or to a tracking server."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from jobs.exports.points import Point
from jobs.exports.writer import ExportedRun, Target

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

T = TypeVar("T")

_MOST_METRICS, _MOST_PARAMS, _LONGEST_PARAM = 1000, 100, 500  # of one call, by mlflow's interface


def open_writer(target: Target, run: ExportedRun, handle: str | None) -> MlflowWriter:
    """Opens the run of an earlier export, or a new one in the experiment of its sweep."""
    return MlflowWriter(target, run, handle)


class MlflowWriter:
    """Writes the points of one run."""

    def __init__(self, target: Target, run: ExportedRun, handle: str | None) -> None:
        # Otherwise mlflow reports its use to a server, and writes an id for that to the home folder.
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
        from mlflow.tracking import MlflowClient

        uri = target.tracking_uri
        if uri is None:
            target.folder.mkdir(parents=True, exist_ok=True)
            uri = (target.folder.absolute() / "mlruns").as_uri()
            os.environ.setdefault(
                "MLFLOW_ALLOW_FILE_STORE", "true"
            )  # mlflow-skinny has no other store without a server
        self._client = MlflowClient(tracking_uri=uri)
        self._last_ms = int(time.time() * 1000)
        self.handle = handle
        self._id = handle or _create(self._client, run)
        self.handle = self._id

    def write(self, points: Sequence[Point]) -> None:
        from mlflow.entities import Metric

        metrics = []
        for point in points:
            if point.time_s is not None:
                self._last_ms = int(point.time_s * 1000)
            metrics += [Metric(name, value, self._last_ms, point.step) for name, value in point.values.items()]
        for part in _parts(metrics, _MOST_METRICS):
            self._client.log_batch(self._id, metrics=part)

    def close(self, succeeded: bool | None, /) -> None:
        if succeeded is not None:
            self._client.set_terminated(self._id, status="FINISHED" if succeeded else "FAILED")


def _create(client: MlflowClient, run: ExportedRun) -> str:
    """Creates a run, with its config as parameters."""
    from mlflow.entities import Param

    experiment = client.get_experiment_by_name(run.sweep)
    experiment_id = client.create_experiment(run.sweep) if experiment is None else experiment.experiment_id
    created = client.create_run(experiment_id, run_name=run.name, tags=run.tags)
    params = [Param(name, str(value)[:_LONGEST_PARAM]) for name, value in run.config.items()]
    for part in _parts(params, _MOST_PARAMS):
        client.log_batch(created.info.run_id, params=part)
    return str(created.info.run_id)


def _parts(values: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for begin in range(0, len(values), size):
        yield values[begin : begin + size]
