"""Runs of a user's own script, as plan.json and run.json have them, and what the script logs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from disttrain.records.record_files import write_json
from disttrain.records.script_metrics import new_metrics_file
from jobs.storage.sweep_folder import SweepFolder


def script_run(
    run_id: str = "1x1-0123456789ab", *, launcher: str = "ranks", dropped: bool = False, **values: Any
) -> dict[str, Any]:
    """A run of `python train.py` with these values."""
    nodes, _, gpus = run_id.partition("-")[0].partition("x")
    run = {
        "run_id": run_id,
        "allocation": f"{nodes}x{gpus}",
        "nodes": int(nodes),
        "gpus_per_node": int(gpus),
        "world_size": int(nodes) * int(gpus),
        "point": values,
        "asked": values,
        "train": {"command": "python train.py", **values},
        "script": {"flags": "--{key} {value}", "switches": [], "launcher": launcher, "working_dir": "/work"},
    }
    return run | ({"dropped": True} if dropped else {})


def make_scripts(folder: SweepFolder, **section: Any) -> None:
    """Makes the runs of a submitted sweep those of a script. Their ids, and so their folders and jobs, stay."""
    runs = [script_run(run["run_id"], **section) for run in folder.planned_runs()]
    folder.write_plan({**json.loads(folder.plan_file.read_text()), "runs": runs})
    for run in runs:
        write_json(folder.run(run["run_id"]) / "run.json", {**run, "versions": {}})


def log(run_dir: Path, lines: Sequence[Mapping[str, Any]], rank: int = 0) -> Path:
    """Writes what a rank logs in its next attempt."""
    path = new_metrics_file(run_dir, rank)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
