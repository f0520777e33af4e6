"""The folder of a sweep on one cluster: every file name in it, and what a submission lays down before it sends."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from disttrain.errors import UserError
from disttrain.records.atomic_write import write_text
from disttrain.records.record_files import CHECKPOINTS_NAME, SUMMARY_NAME, failure_name, metrics_name
from disttrain.records.versions import versions
from jobs.storage.code_state import git_state

_LAST = ".last"  # in the root: the sweep submitted last, for commands that name none


@dataclass(frozen=True)
class SweepFolder:
    """Paths of one sweep on one cluster: ``<root>/<sweep>/<cluster>``; all relative to `path`, so it can be moved."""

    path: Path

    @property
    def sweep_name(self) -> str:
        return self.path.parent.name

    @property
    def cluster_name(self) -> str:
        return self.path.name

    @property
    def sweep_file(self) -> Path:
        return self.path / "sweep.yaml"

    @property
    def plan_file(self) -> Path:
        return self.path / "plan.json"

    @property
    def accounting_file(self) -> Path:
        return self.path / "accounting.jsonl"

    @property
    def results_file(self) -> Path:
        return self.path / "results.csv"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    def run(self, run_id: str) -> Path:
        return self.path / "runs" / run_id

    def planned_runs(self) -> list[dict[str, Any]]:
        """Every run that was ever submitted here, as `plan.run_json` wrote it, in order."""
        if not self.plan_file.exists():
            return []
        runs: list[dict[str, Any]] = json.loads(self.plan_file.read_text(encoding="utf-8"))["runs"]
        return runs

    def is_owner(self) -> bool:
        """Whether the folder is this user's; others only read, even where a group or root could write."""
        return self.path.stat().st_uid == os.geteuid() and os.access(self.path, os.W_OK)


def prepare(
    folder: SweepFolder,
    sweep_text: str,
    plan: Mapping[str, Any],
    runs: Sequence[Mapping[str, Any]],
    sent: Collection[str] = (),
    import_path: Sequence[str] = (),
) -> None:
    """Lays down what the ranks and later commands read, before anything is sent.

    Args:
        folder: Where; made if it is not there.
        sweep_text: The sweep's YAML as submitted.
        plan: The whole plan as JSON.
        runs: The runs that are about to be sent, as in the plan; what an earlier attempt of them said of itself is
            removed, or a new attempt would be taken for a finished one.
        sent: Ids of the runs of earlier submissions: those that the plan no longer names are kept behind its own. One
            that was planned and never sent is not: nobody would ever send it.
        import_path: Folders in which the ranks look for a model family of the user's own.
    """
    folder.logs.mkdir(parents=True, exist_ok=True)
    named = {run["run_id"] for run in plan["runs"]}
    earlier = [run for run in folder.planned_runs() if run["run_id"] in set(sent) - named]
    write_text(folder.sweep_file, sweep_text)
    write_text(folder.plan_file, json.dumps({**plan, "runs": [*plan["runs"], *earlier]}, indent=2) + "\n")
    facts = {"versions": versions(), "git": git_state(Path.cwd()), "import_path": list(import_path)}
    for run in runs:
        run_dir = folder.run(run["run_id"])
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / SUMMARY_NAME).unlink(missing_ok=True)
        goes_on = any((run_dir / CHECKPOINTS_NAME).glob("*.json"))
        for rank in range(run["world_size"]):
            (run_dir / failure_name(rank)).unlink(missing_ok=True)
            if not goes_on:  # else the records of the steps before its checkpoint are kept
                (run_dir / metrics_name(rank)).unlink(missing_ok=True)
        write_text(run_dir / "run.json", json.dumps({**run, **facts}, indent=2) + "\n")
    write_text(folder.path.parent.parent / _LAST, f"{folder.sweep_name}/{folder.cluster_name}\n")


def find_folder(root: Path, sweep: str | None, cluster: str | None) -> SweepFolder:
    """The folder that SWEEP means: a sweep's YAML, its name, or its folder; None: the one submitted last.

    Args:
        root: The folder of all sweeps.
        sweep: As on the command line.
        cluster: Of several clusters that the sweep was submitted to; None: the only one, or the latest.

    Raises:
        UserError: There is no such sweep, or nothing was submitted.
    """
    if sweep is None:
        last = root / _LAST
        if not last.exists():
            raise UserError(f"no sweep was submitted in {str(root)!r}", hint="name one, or give --root")
        return _existing(root / last.read_text(encoding="utf-8").strip(), cluster)
    path = Path(sweep)
    if (path / "plan.json").is_file():
        folder = SweepFolder(path.resolve())
        if cluster not in (None, folder.cluster_name):
            raise UserError(
                f"{sweep!r} was submitted to {folder.cluster_name!r}, not to {cluster!r}", where="--cluster"
            )
        return folder
    if path.suffix in (".yaml", ".yml"):
        from jobs.planning.sweep_file import load_sweep

        return _newest(root / load_sweep(path).name, sweep, cluster)
    # A folder that happens to have the sweep's name, sweeps/ say, is not meant.
    if path.is_dir() and any(path.glob("*/plan.json")):
        return _newest(path, sweep, cluster)
    return _newest(root / sweep, sweep, cluster)


def _newest(sweep_dir: Path, wanted: str, cluster: str | None) -> SweepFolder:
    found = sorted(sweep_dir.glob("*/plan.json"), key=lambda plan: plan.stat().st_mtime)
    if cluster is not None:
        found = [plan for plan in found if plan.parent.name == cluster]
    if not found:
        on = f" on {cluster!r}" if cluster else ""
        raise UserError(
            f"sweep {wanted!r} was not submitted{on}: {str(sweep_dir)!r} holds no plan.json",
            hint="submit it with sweep submit, or give the --root and --cluster that it was submitted with",
        )
    return SweepFolder(found[-1].parent.resolve())


def _existing(path: Path, cluster: str | None) -> SweepFolder:
    return _newest(path.parent, path.parent.name, cluster or path.name)
