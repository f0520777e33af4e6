"""The arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SweepFile = Annotated[Path, typer.Argument(metavar="FILE", help="The sweep file (YAML).")]
SubmittedSweep = Annotated[
    str | None,
    typer.Argument(metavar="SWEEP", help="A sweep's file, name or folder. Default: the last submitted sweep."),
]
ClusterName = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        metavar="NAME",
        help="local, debug, or a cluster profile (name or file). Default: $SWEEP_CLUSTER, or slurm if sbatch is on "
        "PATH, or local.",
    ),
]
OfCluster = Annotated[
    str | None,
    typer.Option("--cluster", metavar="NAME", help="Cluster of the submission. Default: the latest."),
]
OfSweep = Annotated[
    str | None,
    typer.Option("--sweep", metavar="SWEEP", help="A sweep's file, name or folder. Default: the last submitted sweep."),
]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="A label, a run id, or the unique start of an id.")]
RunNames = Annotated[list[str] | None, typer.Argument(metavar="RUN", help="Labels, run ids, or unique starts of ids.")]
Root = Annotated[
    Path | None, typer.Option("--root", metavar="DIR", help="Folder of all sweeps. Default: $SWEEP_ROOT, or ./runs.")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set a field under base. Can be repeated.")
]
Assignments = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Fields under base to set, like --set KEY=VALUE.")
]
Poll = Annotated[
    float | None,
    typer.Option(
        "--poll",
        min=0.1,
        metavar="SECONDS",
        help="Seconds between two status checks while it waits. Default: 30, or 1 with --cluster local.",
    ),
]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Check = Annotated[bool, typer.Option("--check", help="Exit with status 1 if a run ended without success.")]
