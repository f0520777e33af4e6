"""`sweep best`: the best runs of a sweep by one column."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer

from disttrain.errors import UserError
from jobs.cli.options import Json, OfCluster, Root, SubmittedSweep
from jobs.cli.results_output import read_status
from jobs.cli.shared import print_json, sweeps_root, table_console

if TYPE_CHECKING:
    from jobs.analysis.best import Best, Place


def best(
    by: Annotated[str, typer.Option("--by", metavar="COLUMN", help="The column that decides.")],
    sweep: SubmittedSweep = None,
    cluster: OfCluster = None,
    root: Root = None,
    number: Annotated[int, typer.Option("-n", "--number", min=1, metavar="N", help="The last place to show.")] = 5,
    smallest: Annotated[
        bool, typer.Option("--min", help="The smallest value is the best: the default for losses, times and memory.")
    ] = False,
    largest: Annotated[bool, typer.Option("--max", help="The largest value is the best.")] = False,
    best_eval: Annotated[
        bool, typer.Option("--best-eval", help="Use the best evaluation of each run instead of its last.")
    ] = False,
    json_: Json = False,
) -> None:
    """Show the best runs by a column, for example --by eval_accuracy.

    Runs that differ in the seed only count as one, by their mean. Runs without a value are listed with the reason.
    """
    from jobs.analysis.best import find_best
    from jobs.storage.sweep_folder import find_folder

    if smallest and largest:
        raise UserError("--min and --max are both given", hint="choose one")
    folder = find_folder(sweeps_root(root), sweep, cluster)
    asked = smallest if smallest or largest else None
    found = find_best(read_status(folder).results, by, smallest=asked, best_eval=best_eval)
    shown = [place for place in found.places if place.rank <= number]
    if json_:
        print_json(dataclasses.asdict(dataclasses.replace(found, places=tuple(shown))))
        return
    _print_places(found, shown)
    _print_without(found)


def _print_places(found: Best, shown: list[Place]) -> None:
    from jobs.analysis.group_output import number_text
    from jobs.results.text_table import TextColumn, TextTable

    if not shown:
        print(f"no run has {found.column}")
        return
    order = "smallest" if found.is_smallest else "largest"
    print(f"{found.column}, the {order} first: {len(shown)} of {len(found.places)} places")
    columns = [
        TextColumn("place", [str(place.rank) for place in shown], True),
        TextColumn("label", [place.label for place in shown]),
        TextColumn(found.column, [number_text(place.value) for place in shown], True),
    ]
    if any(place.interval for place in shown):
        columns.append(TextColumn("95 % interval", [_interval_text(place) for place in shown], True))
    if any(place.runs > 1 for place in shown):
        columns.append(TextColumn("runs", [f"{place.measured} of {place.runs}" for place in shown], True))
    else:
        columns.append(TextColumn("run_id", [place.run_ids[0] for place in shown]))
    table_console().print(TextTable(columns, [""] * len(shown)), markup=False, highlight=False, crop=False)


def _print_without(found: Best) -> None:
    """The runs without a value, by their reason."""
    from jobs.storage.run_lookup import list_names

    names: dict[str, list[str]] = {}
    for name, reason in found.without:
        names.setdefault(reason, []).append(name)
    for reason, runs in names.items():
        print(f"without {found.column}: {reason}: {list_names(runs)}")


def _interval_text(place: Place) -> str:
    from jobs.analysis.group_output import number_text

    if place.interval is None:
        return ""
    return f"{number_text(place.interval[0])} to {number_text(place.interval[1])}"
