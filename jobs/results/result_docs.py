"""The page docs/results.md, which ``python -m jobs.results.result_docs`` prints."""

from __future__ import annotations

from disttrain.records.figures import figures_of
from disttrain.records.record_docs import figure_table
from disttrain.records.summary_types import SUMMARY_FIGURES
from jobs.results.result import Compared, Requested, Scheduled

_PAGE = """# Results

The columns of `sweep collect`, one by one. `python -m jobs.results.result_docs` generates this page from the
definitions in `jobs/results/result.py` and `disttrain/records/`.

A row is one run. A missing value is an empty cell in CSV and null in JSON, never 0.

| output | columns |
|---|---|
| `sweep status`, `sweep collect` | a table: label, run id, the fields that vary, and the figures that fit |
| `sweep status` of a large sweep | counts, then runs that need attention, failed or run; all with `--all-runs` |
| `sweep status --watch` | a screen that follows the runs: stage, step, loss, samples/s and time left |
| `sweep collect --csv`, `-o FILE.csv`, `results.csv` | every column; `--all-columns` adds the other config fields |
| `sweep collect --json`, `-o FILE.json`, `sweep status --json` | every column, and the complete `config` of each run |

**Fields that vary** follow the run id, each as a column of its own name: what differs between the runs of the sweep,
through `axes`, `zip`, `include`, `seeds`, or `--set` in several submissions. Paths are as in the sweep file. In the
printed table a mapping is `#1`, its number among the values of its field. A field that has the name of another column
gets the prefix `config.`, and so does one whose name begins with `config.` or `metrics.`.

**Metrics** are what your own script has logged: a run of a `command` has three columns for each name, and others have
none. `metrics.loss` is the last value, `metrics.loss.best` the best, `metrics.loss.mean` the mean of all. The best one
is the lowest if the name says loss, error, perplexity, time or similar, and the highest for any other name, such as
`accuracy` or `samples_per_s`. A last value that is NaN or infinite is missing; best and mean leave such values out. If
a run had several attempts, steps that it repeated count once, and values without a step count only in the latest
attempt that has the name. If several ranks log a name, the lowest rank counts. Lines that are no JSON object, and
values that are no number, are left out. The first 200 names count. A metric named `loss.best` would have the column of
another one, so its last value is in `metrics.loss.best.last`. The printed table has the last values of at most four
metrics, those of most runs first.

**The label** is the allocation, and the fewest values that tell the run from the others: `2x2 lr=2e-05 seed=1`. It is
next to the run id in tables, progress lines, figures and messages, and commands accept it in place of the id.
`by-name/` in the sweep's folder has a link to each run under its label: `2x2_lr=2e-05_seed=1`. A sweep of more than
1,000 runs has no such links.

**The printed table** leaves out columns that are equal in all rows: they are in one line above it. `attempts` is shown
if a run had more than one. A wide terminal gets more columns; in a pipe, `COLUMNS=200` sets the width.

**Dropped runs** were submitted, and the sweep file no longer has them. They are shown apart, and `dropped` is true in
CSV and JSON. `submit --wait` does not wait for them. `sweep forget` removes them.

**Comparable rows** have `none` in `not_comparable`. In other rows it says why their times must not be compared with
those of the sweep's other runs: ranks shared a GPU, all nodes were one host, or the run had another GPU, driver, power
cap, transport or version than most runs. What is not known, as in runs of an earlier release, differs from nothing.
CPUs, threads, backend, transport and switches are compared within an allocation, everything else over the sweep. A line
below the printed table names such rows.

In CSV, several names are joined by commas, and `none` means that there are none. Nested values are JSON.
"""


def results_page() -> str:
    """The text of the page."""
    measured = [figure for figure in SUMMARY_FIGURES.values() if figure.name != "world_size"]
    sections = (
        ("Requested", figures_of(Requested)),
        ("Scheduled", figures_of(Scheduled)),
        ("Measured", [*measured, *figures_of(Compared)]),
    )
    texts = {
        "Requested": "From the plan.",
        "Scheduled": "From Slurm's accounting. Under the local executor, only the state and the times are known.",
        "Measured": "From the summary of a run that completed; of any other run, only `steps`, its steps so far. The"
        " script of a command measures itself: of its run, figures of steps and gradients are missing. If it logs"
        " `samples_per_s`, the mean is also the figure of this name.",
    }
    return "\n".join(
        [_PAGE, *(f"## {title}\n\n{texts[title]}\n\n{figure_table(figures)}" for title, figures in sections)]
    )


if __name__ == "__main__":
    print(results_page(), end="")
