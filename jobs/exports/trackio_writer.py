"""Writes the database of trackio."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime

from jobs.exports.points import Point
from jobs.exports.writer import ExportedRun, Target


def open_writer(target: Target, run: ExportedRun, _: str | None) -> TrackioWriter:
    """Opens the run in the database of its sweep."""
    return TrackioWriter(target, run)


class TrackioWriter:
    """Writes the points of one run. The database refuses a point that it has, by its id."""

    def __init__(self, target: Target, run: ExportedRun) -> None:
        target.folder.mkdir(parents=True, exist_ok=True)
        # trackio reads the variable when its storage is loaded, which is below.
        os.environ["TRACKIO_DIR"] = str(target.folder)
        # Its libraries can report their use to servers.
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1"}
        self.handle: str | None = f"{run.cluster}-{run.run_id}"
        self._run = run
        self._last_s = datetime.now(UTC).timestamp()

    def write(self, points: Sequence[Point]) -> None:
        from trackio.sqlite_storage import SQLiteStorage

        SQLiteStorage.bulk_log(
            project=self._run.sweep,
            run=self._run.name,
            run_id=self.handle,
            metrics_list=[dict(point.values) for point in points],
            steps=[point.step for point in points],
            timestamps=[self._time(point) for point in points],
            config={**self._run.config, **self._run.tags, "_Group": self._run.sweep},
            log_ids=[f"{self.handle}:{point.step}:{point.order}:{'|'.join(sorted(point.values))}" for point in points],
        )

    def close(self, _: bool | None, /) -> None:
        """Nothing is open."""

    def _time(self, point: Point) -> str:
        self._last_s = point.time_s or self._last_s
        return datetime.fromtimestamp(self._last_s, UTC).isoformat()
