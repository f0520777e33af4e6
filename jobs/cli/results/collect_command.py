"""`sweep collect`: all runs as one table, or the groups of their seeds, printed or as a file."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from disttrain.errors import UserError
from jobs.cli.options import Check, Json, OfCluster, Root, SubmittedSweep
from jobs.cli.results_output import exit_if_failed, print_results, read_status
from jobs.cli.shared import sweeps_root, table_console

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from jobs.exports.schema import TypedTable
    from jobs.results.result import Result
    from jobs.results.status import Status
    from jobs.storage.sweep_folder import SweepFolder

_SUFFIXES = ("", ".csv", ".json", ".parquet")


def collect(
    sweep: SubmittedSweep = None,
    cluster: OfCluster = None,
    root: Root = None,
    json_: Json = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print every column as CSV.")] = False,
    all_columns: Annotated[
        bool, typer.Option("--all-columns", help="Add the config fields that are equal in all runs to the CSV.")
    ] = False,
    group: Annotated[
        bool, typer.Option("--group", help="One row for the runs that differ in the seed only: means and intervals.")
    ] = False,
    sort: Annotated[
        str | None,
        typer.Option("--sort", metavar="COLUMN", help="Order of the rows; -COLUMN for the largest first."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="Write every column to FILE: as JSON for *.json or with --json, as Parquet for *.parquet, else as"
            " CSV.",
        ),
    ] = None,
    check: Check = False,
) -> None:
    """Collect states and measurements of all runs into one table.

    The command also writes results.csv to the sweep's folder.
    """
    from jobs.storage.sweep_folder import find_folder

    if json_ and csv:
        raise UserError("--json and --csv are both given", hint="choose one")
    folder = find_folder(sweeps_root(root), sweep, cluster)
    suffix = _format(output, json_, csv)
    _check_all_columns(all_columns, group, suffix, is_printed=not (csv or output))
    if output is not None:
        _check_output(output, json_ or csv)
    current = read_status(folder)
    _save_results(folder, current)
    made: _Runs | _Groups = _Groups.of(current, folder, sort) if group else _Runs.of(current, folder, all_columns, sort)
    if output is not None:
        _write_output(output, made.content(suffix))
        print(f"wrote {output}")
    if output is None and (csv or json_):
        print(made.content(suffix).decode(), end="")
    else:
        made.show()
    if check:
        exit_if_failed(current.results)


@dataclass(frozen=True)
class _Runs:
    """A row for each run."""

    rows: Sequence[Result]
    folder: SweepFolder
    all_columns: bool

    @classmethod
    def of(cls, current: Status, folder: SweepFolder, all_columns: bool, sort: str | None) -> _Runs:
        from jobs.analysis.columns import sorted_places

        rows = current.results
        if sort is not None:
            rows = tuple(rows[place] for place in sorted_places([row.columns() for row in rows], sort))
        return cls(rows, folder, all_columns)

    def content(self, suffix: str) -> bytes:
        from jobs.exports.schema import typed
        from jobs.results.tables import to_csv, to_json

        if suffix == ".parquet":
            return _parquet(typed([row.columns() for row in self.rows]))
        if suffix == ".json":
            plan = self.folder.plan()
            return _encoded(to_json(self.rows, plan.sweep, plan.cluster))
        return _encoded(to_csv(self.rows, all_columns=self.all_columns))

    def show(self) -> None:
        print_results(self.rows, self.folder)


@dataclass(frozen=True)
class _Groups:
    """A row for each group of seeds."""

    rows: Sequence[Mapping[str, Any]]
    folder: SweepFolder

    @classmethod
    def of(cls, current: Status, folder: SweepFolder, sort: str | None) -> _Groups:
        from jobs.analysis.columns import sorted_places
        from jobs.analysis.seeds import group_by_seed, group_rows, left_out

        groups = group_by_seed(current.results)
        for note in left_out(groups):
            print(f"note: {note}", file=sys.stderr)
        rows = group_rows(groups)
        if sort is not None:
            rows = [rows[place] for place in sorted_places(rows, sort)]
        return cls(rows, folder)

    def content(self, suffix: str) -> bytes:
        from jobs.analysis.group_output import groups_to_csv, groups_to_json
        from jobs.exports.schema import typed

        if suffix == ".parquet":
            return _parquet(typed(self.rows))
        if suffix == ".json":
            plan = self.folder.plan()
            return _encoded(groups_to_json(self.rows, plan.sweep, plan.cluster))
        return _encoded(groups_to_csv(self.rows))

    def show(self) -> None:
        from jobs.analysis.group_output import group_report

        plan = self.folder.plan()
        for part in group_report(self.rows, f"{plan.sweep} on {plan.cluster}"):
            table_console().print(part, markup=False, highlight=False, crop=False)


def _parquet(table: TypedTable) -> bytes:
    from jobs.exports.parquet import parquet_bytes

    return parquet_bytes(table)


def _encoded(text: str) -> bytes:
    """A text as bytes; half a surrogate pair, for a byte of a path that is not UTF-8, becomes an escape sequence."""
    return text.encode(errors="backslashreplace")


def _format(output: Path | None, json_: bool, csv: bool) -> str:
    """The suffix of the format: an option decides, then the name of the file."""
    if json_:
        return ".json"
    if csv or output is None or output.suffix not in _SUFFIXES:
        return ".csv"
    return output.suffix


def _check_all_columns(all_columns: bool, group: bool, suffix: str, *, is_printed: bool) -> None:
    if all_columns and group:
        raise UserError("--all-columns and --group are both given", hint="a group has the fields that vary")
    if all_columns and (suffix in (".json", ".parquet") or is_printed):
        raise UserError("--all-columns needs --csv or -o FILE.csv", hint="JSON has every field under config")


def _save_results(folder: SweepFolder, current: Status) -> None:
    """Writes results.csv. To collect, the folder only needs to be read: if that fails, a note says so."""
    from disttrain.records.atomic_write import write_text
    from jobs.results.tables import to_csv

    if not folder.is_owner():
        return
    try:
        write_text(folder.results_file, to_csv(current.results))
    except OSError as error:
        if current.is_saved:  # otherwise a notice of the status has said it
            print(f"note: what was seen could not be saved: {error.filename}: {error.strerror}", file=sys.stderr)


def _check_output(output: Path, format_given: bool) -> None:
    if not format_given and output.suffix not in _SUFFIXES:
        message = f"{str(output)!r} ends with {output.suffix!r}, and the table is written as CSV, JSON or Parquet"
        raise UserError(message, where="-o", hint="use .csv, .json or .parquet, or add --csv or --json")
    reason = None
    if output.is_dir():
        reason = "it is a folder"
    elif not output.parent.is_dir():
        reason = "its folder does not exist"
    if reason:
        raise UserError(f"{str(output)!r} cannot be written: {reason}", where="-o")


def _write_output(output: Path, content: bytes) -> None:
    from disttrain.records.atomic_write import atomic_write

    try:
        if output.is_symlink() or (output.exists() and not output.is_file()):
            # For example /dev/stdout, which a file must not replace.
            output.write_bytes(content)
        else:
            with atomic_write(output, sync=False) as file:
                file.write(content)
    except OSError as error:
        raise UserError(f"{str(output)!r} cannot be written: {error.strerror}", where="-o") from None
