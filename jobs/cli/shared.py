"""What several commands do: plan a sweep, read its status, print its results."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from disttrain.errors import UserError

# Everything else is imported inside the functions: `sweep --help` is instant.
if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from jobs.planning.plan import Plan
    from jobs.planning.sweep_file import Sweep
    from jobs.results.collect import Result
    from jobs.results.status import Status
    from jobs.storage.sweep_folder import SweepFolder


def sweeps_root(option: Path | None) -> Path:
    return (option or Path(os.environ.get("SWEEP_ROOT") or "runs")).absolute()


def plan_sweep(file: Path, cluster: str | None, assignments: Sequence[str], root: Path | None) -> tuple[Sweep, Plan]:
    from jobs.planning.cluster_profile import ClusterProfile, find_profile, override
    from jobs.planning.expand import expand
    from jobs.planning.plan import make_plan
    from jobs.planning.sweep_file import load_sweep

    sweep = load_sweep(file, _read_overrides(assignments))
    name, profile = find_profile(cluster, os.environ, Path.cwd())
    # Checked for the local executor too: a rehearsal finds what the cluster would refuse.
    overridden = override(
        profile or ClusterProfile.model_validate({}), sweep.slurm, lambda key: sweep.where("slurm", key)
    )
    profile = overridden if profile else None
    return sweep, make_plan(sweep.name, expand(sweep), name, profile, sweeps_root(root) / sweep.name / name)


def _read_overrides(assignments: Sequence[str]) -> dict[str, Any]:
    from disttrain.config.flags import read_value

    found: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not (key and equals):
            raise UserError(f"{assignment!r} is not KEY=VALUE", where="--set", hint="--set max_steps=3")
        if key in found:
            raise UserError(f"{key} is set twice", where="--set", hint="drop one of the two")
        found[key] = read_value(key, value)
    return found


def read_status(folder: SweepFolder) -> Status:
    from jobs.results.status import read_status

    found = read_status(folder, os.environ)
    for notice in found.notices:
        stderr_console().print(f"note: {notice}", markup=False, highlight=False, soft_wrap=True)
    return found


def print_results(results: Sequence[Result], folder: SweepFolder) -> None:
    """Prints the table and the reasons of failures; exits with 1 if there are any."""
    from rich.console import Console

    from jobs.results.tables import failure_lines, results_table

    console = Console()
    if not console.is_terminal:
        console = Console(width=200)  # a log or a pipe has no width of its own; 80 would cut the columns
    console.print(results_table(results, f"{folder.sweep_name} on {folder.cluster_name}", console.width))
    for line in failure_lines(results, folder):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(exit_status(results))


def exit_status(results: Sequence[Result]) -> int:
    from jobs.slurm.states import JobPhase, State

    return int(any(row.phase is JobPhase.FINISHED and row.state != State.COMPLETED for row in results))


def stderr_console() -> Console:
    """For progress and notes: stderr, so that --json can be piped."""
    from rich.console import Console

    return Console(stderr=True)


def print_json(value: object) -> None:
    import json

    print(json.dumps(value, indent=2))
