"""`sweep trace`: the steps of a run for Perfetto."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from disttrain.errors import UserError
from jobs.cli.options import OfCluster, OfSweep, Root, RunName
from jobs.cli.shared import sweeps_root


def trace(
    run: RunName,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="The file. Default: trace.json in the run's folder."),
    ] = None,
    steps: Annotated[
        str | None,
        typer.Option("--steps", metavar="A-B", help="Steps A to B, or all. Default: 20 around the median step."),
    ] = None,
    sweep: OfSweep = None,
    cluster: OfCluster = None,
    root: Root = None,
) -> None:
    """Write phases and buckets of all ranks as a trace, which ui.perfetto.dev shows.

    Of the run of a script, the trace has the metrics that it logged.
    """
    from disttrain.config.command.command_config import is_command
    from disttrain.records.record_files import from_json
    from disttrain.records.summary_types import RunInfo
    from jobs.exports.trace import parse_steps, write_script_trace, write_trace
    from jobs.planning.labels import Variation
    from jobs.planning.plan import is_link
    from jobs.storage.run_lookup import find_runs
    from jobs.storage.sweep_folder import find_folder

    folder = find_folder(sweeps_root(root), sweep, cluster)
    planned = folder.planned_runs()
    (found,) = find_runs(planned, [run])
    name, run_dir = Variation(planned).name(found), folder.run(found["run_id"])
    wanted = None if steps is None else parse_steps(steps)
    if is_link(found):
        raise UserError(f"run {name} has no steps: it only times all-reduces", hint="sweep figures draws them")
    if output is None and not folder.is_owner():
        raise UserError(f"{str(folder.path)!r} belongs to another user", hint="write the trace elsewhere: -o FILE")
    target = output or run_dir / "trace.json"
    try:
        if is_command(found):
            write_script_trace(run_dir, name, target, wanted)
        else:
            # From the plan: other users may not read run.json.
            write_trace(run_dir, from_json(RunInfo, {**found, "versions": {}}), name, target, wanted)
    except OSError as error:
        raise UserError(
            f"{str(error.filename or target)!r}: {error.strerror}", hint="sweep status shows the run"
        ) from None
    print(f"wrote {target}")
