"""Writes runs of Weights & Biases: offline files, which `wandb sync` sends, or to its server."""

from __future__ import annotations

import os
from collections.abc import Sequence

from jobs.exports.points import Point
from jobs.exports.writer import ExportedRun, Target


def open_writer(target: Target, run: ExportedRun, handle: str | None) -> WandbWriter:
    """Opens the run. A later export has the same id, so that wandb adds to the run."""
    return WandbWriter(target, run, handle)


class WandbWriter:
    """Writes the points of one run."""

    def __init__(self, target: Target, run: ExportedRun, handle: str | None) -> None:
        _stay_in_folder(target)
        import wandb

        target.folder.mkdir(parents=True, exist_ok=True)
        self.handle = handle or f"{run.sweep}-{run.cluster}-{run.run_id}"
        self._run = wandb.init(
            project=run.sweep,
            name=run.name,
            group=run.sweep,
            tags=[run.cluster],
            id=self.handle,
            config={**run.config, "run_id": run.run_id},
            dir=str(target.folder),
            mode="online" if target.online else "offline",
            resume="allow" if target.online else None,
            reinit="create_new",
            # Nothing of this machine: the run was elsewhere.
            settings=wandb.Settings(
                silent=True, console="off", disable_git=True, save_code=False, x_disable_stats=True, x_disable_meta=True
            ),
        )
        # The axis is a value: wandb's own steps may not go back, and series of a script may.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, points: Sequence[Point]) -> None:
        for point in points:
            values = {"step": point.step, **point.values}
            if point.time_s is not None:
                values["_timestamp"] = point.time_s
            self._run.log(values)

    def close(self, succeeded: bool | None, /) -> None:
        self._run.finish(exit_code=1 if succeeded is False else 0)


def _stay_in_folder(target: Target) -> None:
    """Sets what wandb reads when it is loaded: no reports of its errors to a server, no files in the home folder."""
    os.environ["WANDB_ERROR_REPORTING"] = "false"
    os.environ.setdefault("WANDB_CACHE_DIR", str(target.folder / "wandb" / "cache"))
    os.environ.setdefault("WANDB_DATA_DIR", str(target.folder / "wandb" / "data"))
    if not target.online:  # online, the folder of the settings may have the user's server
        os.environ.setdefault("WANDB_CONFIG_DIR", str(target.folder / "wandb" / "config"))
