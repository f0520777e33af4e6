"""One row of the results: what was requested, what the scheduler reports, what the run measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Unit, doc

from disttrain.records.figure_sources import SUBMISSION, Source
from disttrain.records.figures import Figure, InTable, figures_of
from disttrain.records.summary_types import SUMMARY_FIGURES
from jobs.planning.labels import run_name
from jobs.results.metric_columns import PREFIX, Metrics, metric_columns
from jobs.slurm.states import JobPhase, State

PLAN = Source("the plan")
SACCT = Source("sacct")
LEDGER = Source("the ledger")
ANSWERS = Source("sacct, squeue and the run's files")
FAILURES = Source("sacct, squeue and the failure records")
LINK_RUN = Source("the summaries of two runs")
TWO_RUNS = Source("the summaries of the run and its baseline")
SUMMARIES = Source("the summaries of all runs")


@dataclass(frozen=True, kw_only=True)
class Requested:
    """What was requested: the first columns of a row, after the fields that vary."""

    run_id: Annotated[str, doc("Id of the run: its allocation, and a hash of its config."), PLAN, InTable(0)]
    label: Annotated[str, doc("The allocation, and the values that tell the run from the others."), PLAN, InTable(0)]
    allocation: Annotated[str, doc("Number of nodes x number of GPUs per node."), PLAN, InTable(2)]
    world_size: Annotated[int, doc("Number of ranks."), PLAN]
    dropped: Annotated[bool, doc("True if the sweep file no longer has this run."), PLAN]
    code: Annotated[
        str | None,
        doc(
            "Hash of the copy of your code in which the run started; null if it started the files in place, or if you"
            " do not own the sweep. The printed table has it if it differs."
        ),
        SUBMISSION,
    ] = None


@dataclass(frozen=True, kw_only=True)
class Scheduled:
    """What the scheduler reports. Under the local executor, all that only Slurm can report is None."""

    state: Annotated[str, doc("State of the latest attempt, in Slurm's words."), ANSWERS, InTable(0)]
    state_source: Annotated[
        str | None,
        doc("What the state follows from: sacct, squeue, records (the run's own files), ledger or local queue."),
        ANSWERS,
    ] = None
    exit_code: Annotated[int | None, doc("Exit code of the latest attempt."), SACCT] = None
    reason_kind: Annotated[
        str | None,
        doc("Kind of the reason why the run did not complete: time limit, host memory, ..."),
        FAILURES,
    ] = None
    reason: Annotated[
        str | None,
        doc("Why the run waits, makes no steps or did not complete, and which of its files are damaged."),
        FAILURES,
    ] = None
    job_id: Annotated[str | None, doc("Id of the latest job."), LEDGER] = None
    attempts: Annotated[int | None, doc("Number of attempts of all its jobs."), SACCT, InTable(1)] = None
    submit_time: Annotated[str | None, doc("Submission of the latest attempt, ISO 8601, UTC."), SACCT] = None
    start_time: Annotated[str | None, doc("Start of the latest attempt, ISO 8601, UTC."), SACCT] = None
    end_time: Annotated[str | None, doc("End of the latest attempt, ISO 8601, UTC."), SACCT] = None
    queue_wait_s: Annotated[
        int | None, Unit("s"), doc("Start minus submission of the latest attempt."), SACCT, InTable(7)
    ] = None
    elapsed_s: Annotated[int | None, Unit("s"), doc("Run time of the latest attempt."), SACCT, InTable(2)] = None
    gpu_hours: Annotated[
        float | None, Unit("h"), doc("GPUs x run time, summed over all attempts."), SACCT, InTable(2)
    ] = None
    gpu_hours_wasted: Annotated[
        float | None,
        Unit("h"),
        doc(
            "The part of gpu_hours of attempts, or of parts of them in proportion to their steps, that gave no step of"
            " the result: all of a run that ended without a result, and what a later attempt did again; null where"
            " the steps of an attempt are not known. The printed table has it if it is not 0."
        ),
        SACCT,
        InTable(2),
    ] = None
    gpu_hours_from: Annotated[
        str | None, doc("Source of the number of GPUs: sacct, or plan if the site's accounting lacks it."), SACCT
    ] = None
    node_list: Annotated[str | None, doc("Nodes of the latest attempt."), SACCT] = None
    max_rss_bytes: Annotated[
        int | None, Unit("bytes"), doc("Largest resident memory of a task in the latest attempt."), SACCT
    ] = None


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What follows from several runs of the sweep."""

    link_share: Annotated[
        float | None,
        Unit("share of 1"),
        doc("bus_gb_per_s / link_bus_gb_per_s of the link run of the same allocation and backend."),
        LINK_RUN,
        InTable(8),
    ] = None
    weak_efficiency: Annotated[
        float | None,
        Unit("share of 1"),
        doc(
            "Weak scaling: samples_per_s / (world_size x samples_per_s of weak_baseline), whose ranks have the same"
            " batch. 1 is perfect. docs/scaling.md says which runs are baselines."
        ),
        TWO_RUNS,
    ] = None
    weak_baseline: Annotated[str | None, doc("The run on one GPU with the same batch of one rank."), TWO_RUNS] = None
    strong_efficiency: Annotated[
        float | None,
        Unit("share of 1"),
        doc(
            "Strong scaling: samples_per_s / (world_size x samples_per_s of strong_baseline), whose one rank has the"
            " batch of all ranks of this run."
        ),
        TWO_RUNS,
    ] = None
    strong_baseline: Annotated[str | None, doc("The run on one GPU with the same batch of all ranks."), TWO_RUNS] = None
    crossing_ratio: Annotated[
        float | None,
        Unit("share of 1"),
        doc(
            "The price of crossing nodes: samples_per_s / samples_per_s of crossing_baseline, which has as many GPUs on"
            " one node, such as 1x4 for 2x2."
        ),
        TWO_RUNS,
    ] = None
    crossing_baseline: Annotated[
        str | None, doc("The run on one node with as many GPUs and the same batch of one rank."), TWO_RUNS
    ] = None
    scaling_note: Annotated[
        str | None, doc("Why one of these ratios is missing: no baseline, or one that is not comparable."), TWO_RUNS
    ] = None
    not_comparable: Annotated[
        tuple[str, ...] | None,
        doc(
            "Why the times of the run may not be compared with those of the sweep's other runs: ranks shared a GPU,"
            " and what differs from most other runs, such as the GPU, its driver, its power cap or a version; none"
            " if it is comparable, null before the run has a summary."
        ),
        SUMMARIES,
    ] = None


# The columns after those of the fields that vary, in their order. The figures of a summary come last.
COLUMNS: dict[str, Figure] = {
    figure.name: figure
    for figure in (
        *figures_of(Requested),
        *figures_of(Scheduled),
        *(figure for figure in SUMMARY_FIGURES.values() if figure.name != "world_size"),
        *figures_of(Compared),
    )
}


@dataclass(frozen=True)
class Result:
    """One run of a sweep.

    Attributes:
        requested: What was requested.
        varied: The value of each field that differs between the runs of the sweep.
        varied_texts: The same values as short texts, for tables.
        config: The complete config of the run.
        scheduled: What the scheduler reports.
        figures: What the run measured, by the names of `COLUMNS`; a missing figure is unknown.
        is_command: Whether the run is that of a command: the fields of its config then are the user's own.
    """

    requested: Requested
    varied: Mapping[str, Any]
    varied_texts: Mapping[str, str]
    config: Mapping[str, Any]
    scheduled: Scheduled
    figures: Mapping[str, Any]
    is_command: bool = False

    @property
    def run_id(self) -> str:
        return self.requested.run_id

    @property
    def label(self) -> str:
        return self.requested.label

    @property
    def name(self) -> str:
        """The run in a message: its id and its label."""
        return run_name(self.run_id, self.label)

    @property
    def dropped(self) -> bool:
        return self.requested.dropped

    @property
    def state(self) -> State:
        return State(self.scheduled.state)

    @property
    def phase(self) -> JobPhase:
        """The phase of the run's state."""
        return self.state.phase

    @property
    def progress_text(self) -> str:
        """How far a run has come that runs; empty for a script that has logged no step."""
        steps = self.figures.get("steps") or 0
        if self.is_command and not steps:
            return ""
        return f"step {steps}"

    def columns(self) -> dict[str, Any]:
        """The row: the run id, the fields that vary, every column of `COLUMNS`, and those of the metrics of its script.

        Unknown values are None.
        """
        known = {**vars(self.requested), **vars(self.scheduled), **self.figures}
        varied = {column_name(name): value for name, value in self.varied.items()}
        columns = {name: known.get(name) for name in COLUMNS}
        return {"run_id": self.run_id, **varied, **columns, **metric_columns(self.metrics)}

    @property
    def metrics(self) -> Metrics:
        """The figures of each metric that its script has logged, by name."""
        return self.figures.get("metrics") or {}

    def with_figures(self, **figures: Any) -> Result:
        """The row with further figures."""
        return dataclasses.replace(self, figures={**self.figures, **figures})


def column_name(field: str) -> str:
    """The column of a config field: its own name, unless another column has it, or may have it.

    Example:
        >>> column_name("lr"), column_name("steps"), column_name("metrics.loss")
        ('lr', 'config.steps', 'config.metrics.loss')
    """
    # JSON has the complete config under that name. A key of the user's own script may have any name.
    if field in COLUMNS or field == "config" or field.startswith(("config.", PREFIX)):
        return f"config.{field}"
    return field
