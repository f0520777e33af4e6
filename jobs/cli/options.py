"""The arguments and options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SweepFile = Annotated[Path, typer.Argument(metavar="FILE", help="A sweep YAML.")]
SubmittedSweep = Annotated[
    str | None,
    typer.Argument(metavar="[SWEEP]", help="A sweep YAML, name or folder. Default: the one submitted last."),
]
ClusterName = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        metavar="NAME",
        help="local, debug, or a profile. Default: $SWEEP_CLUSTER, else slurm if there is sbatch, else local.",
    ),
]
OfCluster = Annotated[
    str | None,
    typer.Option("--cluster", metavar="NAME", help="Where it was submitted. Default: where it was submitted last."),
]
Root = Annotated[
    Path | None, typer.Option("--root", metavar="DIR", help="Folder of all sweeps. Default: $SWEEP_ROOT, else ./runs.")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a field of base; repeatable.")
]
