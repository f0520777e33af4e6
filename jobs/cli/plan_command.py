"""`sweep plan`: shows every run and its job."""

from __future__ import annotations

from typing import Annotated

import typer

from disttrain.errors import UserError
from jobs.cli.options import Assignments, ClusterName, Overrides, Root, SweepFile
from jobs.cli.shared import all_assignments, plan_sweep, print_json


def plan(
    file: SweepFile,
    assignments: Assignments = None,
    cluster: ClusterName = None,
    set_: Overrides = None,
    root: Root = None,
    scripts: Annotated[bool, typer.Option("--scripts", help="Print the batch scripts.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Show every run and its resources, and submit nothing."""
    from rich.console import Console

    from jobs.planning.plan import plan_json
    from jobs.results.expected_hours import expected_hours, measured_hours
    from jobs.results.tables import plan_report
    from jobs.storage.sweep_folder import SweepFolder

    if scripts and json_:
        raise UserError("--scripts and --json are both given", hint="choose one")
    _, sweep_plan = plan_sweep(file, cluster, all_assignments(assignments, set_), root)
    if json_:
        print_json(plan_json(sweep_plan))
    elif scripts:
        if sweep_plan.cluster.kind != "slurm":
            message = f"cluster {sweep_plan.cluster.name!r} has no batch scripts"
            raise UserError(message, hint="choose a Slurm profile with --cluster")
        print("\n".join(sweep_plan.script(group) for group in sweep_plan.groups), end="")
    else:
        console = Console()
        folder = SweepFolder(sweep_plan.folder)
        measured = measured_hours(folder)
        earlier = folder.planned_runs() if measured else []
        expected = expected_hours(plan_json(sweep_plan)["runs"], earlier, measured)
        for part in plan_report(sweep_plan, expected):
            console.print(part, markup=False, highlight=False, crop=False)
