"""`sweep list`: every sweep under the root, with the last known states of its runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobs.cli.options import Json, Root
from jobs.cli.shared import print_json, sweeps_root, table_console

if TYPE_CHECKING:
    from jobs.results.sweep_list import ListedSweep


def list_sweeps(root: Root = None, json_: Json = False) -> None:
    """List all sweeps with the last known states of their runs. Slurm is not asked."""
    from jobs.results.sweep_list import list_json, listed_sweeps, sweeps_table

    folder = sweeps_root(root)
    sweeps: list[ListedSweep] = listed_sweeps(folder)
    if json_:
        print_json(list_json(sweeps))
    elif sweeps:
        table_console().print(sweeps_table(sweeps))
    else:
        print(f"no sweep was submitted in {str(folder)!r}")
