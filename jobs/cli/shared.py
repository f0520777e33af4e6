"""Steps that several commands share: find the root, plan a sweep, print JSON."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from disttrain.errors import UserError

# All other imports are inside the functions, so `sweep --help` loads almost nothing.
if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from jobs.planning.plan import Plan
    from jobs.planning.sweep_file import Sweep

_UNLIMITED = 10_000  # characters


def sweeps_root(option: Path | None) -> Path:
    """The absolute folder of all sweeps: --root, or $SWEEP_ROOT, or ./runs."""
    from disttrain.config.paths import results_root

    return results_root(os.environ, option).absolute()


def plan_sweep(
    file: Path, cluster: str | None, assignments: Sequence[str], root: Path | None, folder: Path | None = None
) -> tuple[Sweep, Plan]:
    """Reads a sweep file and makes its plan, from the options of the command line.

    Args:
        file: The sweep file.
        cluster: As of --cluster.
        assignments: As of --set.
        root: As of --root.
        folder: The folder of the sweep on this cluster; None for its place below the root.
    """
    from jobs.planning.cluster import find_cluster, with_changes
    from jobs.planning.expand import expand
    from jobs.planning.plan import make_plan
    from jobs.planning.sweep_file import load_sweep

    sweep = load_sweep(file, _read_overrides(assignments))
    found = with_changes(find_cluster(cluster, os.environ, Path.cwd()), sweep)
    place = folder.absolute() if folder else sweeps_root(root) / sweep.name / found.name
    return sweep, make_plan(sweep.name, expand(sweep), found, place)


def all_assignments(arguments: Sequence[str] | None, options: Sequence[str] | None) -> list[str]:
    """The assignments of --set, and those that stand after FILE."""
    for argument in arguments or ():
        if "=" not in argument:
            hint = "after FILE, an argument sets a field under base: max_steps=3"
            raise UserError(f"{argument!r} is not KEY=VALUE", hint=hint)
    return [*(options or ()), *(arguments or ())]


def _read_overrides(assignments: Sequence[str]) -> dict[str, str]:
    """The text of each --set, by field name."""
    overrides: dict[str, str] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not (key and equals):
            raise UserError(f"{assignment!r} is not KEY=VALUE", where="--set", hint="for example --set max_steps=3")
        if key in overrides:
            raise UserError(f"{key} is set twice", where="--set", hint="drop one of the two")
        overrides[key] = text
    return overrides


def stderr_console() -> Console:
    """The console for progress and notes. It is stderr, so that the output of --json can be piped."""
    from rich.console import Console

    return Console(stderr=True)


def table_console() -> Console:
    """The console for tables on stdout. It cuts no table that is wider than the terminal, which wraps the lines."""
    from rich.console import Console

    return Console(width=_UNLIMITED)


def print_json(value: object) -> None:
    """Prints a value as indented JSON."""
    from disttrain.records.json_values import to_json

    print(to_json(value, indent=2))
