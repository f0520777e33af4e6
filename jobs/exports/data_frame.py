"""The results of a sweep as a pandas DataFrame: `from jobs.results import load_results`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from disttrain.config.paths import results_root
from disttrain.errors import UserError
from jobs.exports.parquet import read_parquet
from jobs.exports.results_file import read_results
from jobs.exports.schema import Kind, TypedTable, typed
from jobs.results.status import last_results, read_status
from jobs.storage.sweep_folder import find_folder

if TYPE_CHECKING:
    import pandas

_FILES = (".csv", ".json", ".parquet")
# Integers, truth values and texts that may be missing; a missing float is NaN.
_DTYPES = {Kind.INT: "Int64", Kind.FLOAT: "float64", Kind.BOOL: "boolean", Kind.TEXT: "string", Kind.JSON: "string"}


def load_results(
    sweep: str | Path, *, cluster: str | None = None, root: str | Path | None = None, ask: bool = False
) -> pandas.DataFrame:
    """All rows of a sweep, or of a file of results, as a DataFrame.

    Args:
        sweep: The name of a sweep, its file, its folder, or a file that `sweep collect -o` has written: .csv, .json or
            .parquet. All of them give the same columns and dtypes.
        cluster: The cluster of the submission; None for the latest.
        root: The folder of all sweeps; None for $SWEEP_ROOT, or ./runs.
        ask: Whether to ask the scheduler for the states now. Otherwise they are those of its last answer, which
            `sweep status` and `sweep collect` save; what the runs measured is always read from their files.

    Returns:
        One row per run, with the columns of the CSV. The columns have the dtypes Int64, float64, boolean and string;
        a column of several names has lists, and nested values are JSON text.

    Raises:
        UserError: The sweep or the file does not exist, or pandas is missing.
    """
    path = Path(sweep)
    if path.suffix in _FILES:
        return data_frame(read_parquet(path) if path.suffix == ".parquet" else read_results(path))
    folder = find_folder(results_root(os.environ, None if root is None else Path(root)).absolute(), str(sweep), cluster)
    rows = read_status(folder, os.environ).results if ask else last_results(folder)
    return data_frame(typed([row.columns() for row in rows]))


def data_frame(table: TypedTable) -> pandas.DataFrame:
    """A typed table as a DataFrame.

    Raises:
        UserError: pandas is missing.
    """
    try:
        import pandas
    except ImportError as error:
        message = f"a DataFrame needs pandas: {error}"
        raise UserError(message, hint="in the checkout: pip install '.[report]'") from error
    return pandas.DataFrame(
        {
            name: pandas.Series([row.get(name) for row in table.rows], dtype=_DTYPES.get(kind, "object"))
            for name, kind in table.kinds.items()
        }
    )
