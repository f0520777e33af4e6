"""Measures the cost of checkpoints: python -m tests.benchmarks.checkpoints --help."""

from __future__ import annotations

import shutil
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from disttrain.records.record_files import metrics_name, read_records
from disttrain.records.record_types import CheckpointRecord, EndRecord, StartRecord, StepRecord
from tests.benchmarks import store, tables
from tests.benchmarks.cells import BenchmarkError
from tests.benchmarks.contenders import REPOSITORY
from tests.benchmarks.running import environment, run_command
from tests.benchmarks.stats import Ratio, paired_ratio
from tests.benchmarks.workdata import minilm

console = Console()
BATCH = 16
SHARE = "1%"
TITLE = "What checkpoints cost"


@dataclass(frozen=True)
class RunMeasurement:
    """The measurements of one run."""

    steps: int
    step_ms: float  # median of rank 0, without the first steps and without the time for saving
    train_s: float  # the loop, including the wait for the last write
    total_s: float  # from the start record to the end record; includes the preparations of a run that saves
    checkpoints: tuple[CheckpointRecord, ...]

    @property
    def saving_s(self) -> float:
        """The time of the checkpoints in the records: the loop's wait, and the writing, which uses cores too."""
        return sum(record.blocked_ms / 1000 + record.write_s for record in self.checkpoints)


@dataclass(frozen=True)
class Plan:
    """One call of the command."""

    ranks: tuple[int, ...]
    repeat: int
    seconds: float | None  # time of a compared run; None: as many steps as the run that is saved often
    steps: int  # the steps of the run that is saved often
    every: int  # the steps between two checkpoints of that run
    root: Path


@dataclass(frozen=True)
class RankComparison:
    """All runs on one number of ranks."""

    ranks: int
    often: tuple[RunMeasurement, ...]
    without: tuple[RunMeasurement, ...]
    with_share: tuple[RunMeasurement, ...]


def benchmark(
    repeat: Annotated[int, typer.Option(min=1, help="Number of pairs of runs, with and without checkpoints.")] = 5,
    seconds: Annotated[float, typer.Option(min=1, help="Approximate time of a compared run.")] = 60.0,
    ranks: Annotated[str, typer.Option(help="Comma-separated numbers of ranks.")] = "1,2",
    work: Annotated[Path, typer.Option(help="Folder for logs and records.")] = Path("runs/benchmarks/checkpoints"),
    out: Annotated[Path | None, typer.Option(help="The Markdown file to write.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Run a few steps on one rank once, as a test.")] = False,
) -> None:
    """Trains MiniLM with and without checkpoints, alternately, and reports the cost of the checkpoints."""
    numbers = tuple(int(number) for number in ranks.split(","))
    plan = Plan(numbers, repeat, seconds, steps=60, every=10, root=work.absolute())
    if quick:
        plan = Plan((1,), 1, None, steps=8, every=3, root=work.absolute())
    try:
        comparisons = [_compare(plan, rank_count) for rank_count in plan.ranks]
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
    facts = tables.facts("tests.benchmarks.checkpoints", store.machine())
    tables.publish(TITLE, facts, [one_checkpoint(comparisons), shares(comparisons)], out)


def _compare(plan: Plan, ranks: int) -> RankComparison:
    often: list[RunMeasurement] = []
    without: list[RunMeasurement] = []
    with_share: list[RunMeasurement] = []
    steps = plan.steps
    for repetition in range(plan.repeat):
        often.append(_run(plan, ranks, f"often-{repetition}", plan.steps, str(plan.every)))
        if repetition == 0 and plan.seconds is not None:
            # The texts of a step have similar lengths, so step times differ: only their mean gives the time of a run.
            steps = max(10, round(plan.seconds * often[0].steps / often[0].train_s))
        # The order alternates, so that a machine that becomes slower or faster favours neither.
        for share in ("", SHARE) if repetition % 2 == 0 else (SHARE, ""):
            name = f"{'with' if share else 'without'}-{repetition}"
            (with_share if share else without).append(_run(plan, ranks, name, steps, share))
    if plan.seconds is not None and not all(run.checkpoints for run in with_share):
        raise BenchmarkError(f"a run of {plan.seconds:g} s is too short for a checkpoint at {SHARE}: use --seconds 120")
    return RankComparison(ranks, tuple(often), tuple(without), tuple(with_share))


def _run(plan: Plan, ranks: int, name: str, steps: int, checkpoint_every: str) -> RunMeasurement:
    folder = plan.root / f"r{ranks}" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    flags = {
        "checkpoint": minilm(),
        "dataset": REPOSITORY / "sweeps" / "data" / "sst2",
        "max_eval_examples": 0,
        "per_gpu_batch": BATCH,
        "max_steps": steps,
        "save_model": "false",
        "device": "cpu",
        "output_dir": folder / "run",
        **({"checkpoint_every": checkpoint_every} if checkpoint_every else {}),
    }
    words = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"),
        str(REPOSITORY / "disttrain" / "bert.py"),
        *(part for flag, value in flags.items() for part in (f"--{flag}", str(value))),
    ]
    run_command(words, environment(ranks, plan.root), folder / "log.txt")
    measured = read_measurement(folder / "run")
    saved = ", ".join(f"{record.blocked_ms:.0f} ms + {record.write_s:.2f} s" for record in measured.checkpoints)
    line = f"r{ranks} {name}: {steps} steps in {measured.train_s:.2f} s; checkpoints: {saved or 'none'}"
    print(line, file=sys.stderr, flush=True)
    return measured


def read_measurement(folder: Path) -> RunMeasurement:
    """The measurements of a run, from the records of rank 0.

    Raises:
        BenchmarkError: The run is not complete.
    """
    records = list(read_records(folder / metrics_name(0)))
    start, end = records[0], records[-1]
    if not (isinstance(start, StartRecord) and isinstance(end, EndRecord)):
        raise BenchmarkError(f"{folder} has no start record or no end record")
    step_times = [record.step_ms for record in records if isinstance(record, StepRecord)]
    return RunMeasurement(
        steps=end.steps,
        step_ms=statistics.median(step_times[min(5, len(step_times) // 2) :]),
        train_s=end.train_s,
        total_s=end.time_s - start.time_s,
        checkpoints=tuple(record for record in records if isinstance(record, CheckpointRecord)),
    )


def one_checkpoint(comparisons: Sequence[RankComparison]) -> tables.Grid:
    """The table with the cost of one checkpoint."""
    rows = []
    for comparison in comparisons:
        saved = [record for run in comparison.often for record in run.checkpoints]
        if not saved:
            raise BenchmarkError("no checkpoint was written in the runs that are saved often")
        blocked = [record.blocked_ms for record in saved]
        written = [record.write_s for record in saved]
        sizes = [record.size_bytes for record in saved if record.size_bytes is not None]
        step_ms = statistics.median(run.step_ms for run in comparison.often)
        share = statistics.median(blocked) / (statistics.median(blocked) + step_ms)
        rows.append(
            (
                str(comparison.ranks),
                str(len(saved)),
                f"{sizes[-1] / 1e6:.1f}",
                f"{statistics.median(blocked):.1f} (max {max(blocked):.1f})",
                f"{statistics.median(written):.2f} (max {max(written):.2f})",
                f"{step_ms:.0f}",
                f"{share:.1%}",
            )
        )
    note = (
        f"MiniLM on SST-2, batch {BATCH} on each rank, on a CPU, saved every few steps. Medians over all checkpoints;"
        " the first checkpoint of a run also allocates the memory for the copies. Blocked is the time that the loop"
        " waited for the copy, and for an earlier write that was not complete. The file is written, hashed and synced"
        " to the disk while the loop continues."
    )
    header = (
        "ranks",
        "checkpoints",
        "MB",
        "blocked, ms",
        "background write, s",
        "step, ms",
        "blocked share of its step",
    )
    return tables.Grid("One checkpoint", note, header, tuple(rows))


def shares(comparisons: Sequence[RankComparison]) -> tables.Grid:
    """The table with the cost of saving when it may take one percent of a run's time."""
    rows = []
    for comparison in comparisons:
        pairs = comparison.with_share, comparison.without
        loop = paired_ratio(*([run.train_s for run in runs] for runs in pairs))
        total = paired_ratio(*([run.total_s for run in runs] for runs in pairs))
        rows.append(
            (
                str(comparison.ranks),
                str(loop.runs),
                str(comparison.without[0].steps),
                *(f"{statistics.median(run.train_s for run in runs):.2f}" for runs in pairs[::-1]),
                percent(loop),
                percent(total),
                f"{statistics.median(len(run.checkpoints) for run in comparison.with_share):.0f}",
                f"{statistics.median(run.saving_s / run.train_s for run in comparison.with_share):.1%}",
            )
        )
    note = (
        f"The same run with `checkpoint_every: {SHARE}` and without checkpoints, alternately. The additional time [95 %"
        " interval: Student's t of the log ratios, paired by repetition] is that of the loop, and that of the run from"
        " its first record to its last. The last column is the share of the time that the records count: the wait and"
        " the writing. The interval between checkpoints follows from this share."
    )
    header = (
        *("ranks", "repetitions", "steps", "loop without, s", "loop with, s", "loop longer by", "run longer by"),
        *("checkpoints per run", "share by the records"),
    )
    return tables.Grid(f"Checkpoints at {SHARE}", note, header, tuple(rows))


def percent(ratio: Ratio) -> str:
    """A ratio as a difference from 1, in percent.

    Example:
        >>> percent(Ratio(1.012, 1.004, 1.02, 3)), percent(Ratio(0.995, None, None, 1))
        ('+1.2 % [+0.4 to +2.0]', '-0.5 %')
    """
    interval = ""
    if ratio.low is not None and ratio.high is not None:
        interval = f" [{(ratio.low - 1) * 100:+.1f} to {(ratio.high - 1) * 100:+.1f}]"
    return f"{(ratio.median - 1) * 100:+.1f} %{interval}"


if __name__ == "__main__":
    typer.run(benchmark)
