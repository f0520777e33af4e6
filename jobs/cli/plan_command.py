"""`sweep plan`: shows every run and what would be sent."""

from __future__ import annotations

from typing import Annotated

import typer

from disttrain.errors import UserError
from jobs.cli.options import ClusterName, Overrides, Root, SweepFile
from jobs.cli.shared import plan_sweep, print_json


def plan(
    file: SweepFile,
    cluster: ClusterName = None,
    set_: Overrides = None,
    root: Root = None,
    scripts: Annotated[bool, typer.Option("--scripts", help="Print the batch scripts that would be sent.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Show every run, and what would be sent, and send nothing."""
    from rich.console import Console

    from jobs.planning.plan import plan_json
    from jobs.results.tables import plan_table

    _, made = plan_sweep(file, cluster, set_ or [], root)
    if json_:
        print_json(plan_json(made))
    elif scripts:
        if made.cluster is None:
            raise UserError(f"cluster {made.cluster_name!r} sends no scripts", hint="give --cluster a Slurm profile")
        print("\n".join(made.script(group) for group in made.groups), end="")
    else:
        Console().print(plan_table(made))
