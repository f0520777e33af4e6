"""`sweep plan`: shows every run and its job."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from disttrain.errors import UserError
from jobs.cli.options import Assignments, ClusterName, Overrides, Root, SweepFile
from jobs.cli.shared import all_assignments, plan_sweep, print_json, sweeps_root


def plan(
    file: SweepFile,
    assignments: Assignments = None,
    cluster: ClusterName = None,
    set_: Overrides = None,
    root: Root = None,
    scripts: Annotated[bool, typer.Option("--scripts", help="Print the batch scripts.")] = False,
    plain: Annotated[
        bool,
        typer.Option(
            "--plain",
            help="With --scripts: write batch scripts that you submit yourself, with the folders of the runs.",
        ),
    ] = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FOLDER", help="With --plain: the folder to write.")
    ] = None,
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
    _check_plain(plain, scripts, output)
    sweep, sweep_plan = plan_sweep(file, cluster, all_assignments(assignments, set_), root, output)
    if scripts and sweep_plan.cluster.kind != "slurm":
        message = f"cluster {sweep_plan.cluster.name!r} has no batch scripts"
        raise UserError(message, hint="choose a Slurm profile with --cluster")
    if json_:
        print_json(plan_json(sweep_plan))
    elif output:
        import shlex

        from jobs.submission.plain_scripts import note_unused_pins, write_scripts

        write_scripts(sweep_plan, sweep)
        note_unused_pins(sweep_plan.folder, sweeps_root(root) / sweep.name / sweep_plan.cluster.name)
        print(f"submit each script with sbatch; sweep status {shlex.quote(str(output))} shows the progress")
    elif scripts:
        print("\n".join(sweep_plan.script(group) for group in sweep_plan.groups), end="")
    else:
        console = Console()
        folder = SweepFolder(sweep_plan.folder)
        measured = measured_hours(folder)
        earlier = folder.planned_runs() if measured else []
        expected = expected_hours(plan_json(sweep_plan)["runs"], earlier, measured)
        for part in plan_report(sweep_plan, expected):
            console.print(part, markup=False, highlight=False, crop=False)


def _check_plain(plain: bool, scripts: bool, output: Path | None) -> None:
    """Checks that --plain comes with --scripts and -o FOLDER, and -o with --plain."""
    if plain and not (scripts and output):
        missing = "-o FOLDER" if scripts else "--scripts"
        raise UserError(f"--plain needs {missing}", hint="write sweep plan FILE --scripts --plain -o FOLDER")
    if output and not plain:
        raise UserError(f"-o {str(output)!r} needs --plain", hint="add --scripts --plain, or leave out -o")
