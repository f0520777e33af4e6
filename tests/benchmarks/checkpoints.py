"""What checkpoints cost: python -m tests.benchmarks.checkpoints --help."""

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
class Measured:
    """What one run measured."""

    steps: int
    step_ms: float  # median of rank 0, the first steps and what saving takes left out
    train_s: float  # the loop, the wait for the last write included
    whole_s: float  # from the start record to the end record: what readies a run that saves is in it too
    checkpoints: tuple[CheckpointRecord, ...]

    @property
    def taken_s(self) -> float:
        """What the checkpoints took by the records: the loop's wait, and the writing that takes cores from it."""
        return sum(each.blocked_ms / 1000 + each.write_s for each in self.checkpoints)


@dataclass(frozen=True)
class Plan:
    """One call of the command."""

    ranks: tuple[int, ...]
    repeat: int
    seconds: float | None  # of a run whose time is compared; None: it is as long as the one that is saved often
    steps: int  # of a run that is saved often
    every: int  # steps, of that run
    root: Path


@dataclass(frozen=True)
class Compared:
    """All runs on so many ranks."""

    ranks: int
    often: tuple[Measured, ...]
    without: tuple[Measured, ...]
    with_share: tuple[Measured, ...]


def benchmark(
    repeat: Annotated[int, typer.Option(min=1, help="repetitions, each of a run with and one without, in turn")] = 5,
    seconds: Annotated[float, typer.Option(min=1, help="that a compared run takes, about")] = 60.0,
    ranks: Annotated[str, typer.Option(help="numbers of ranks, with commas between")] = "1,2",
    work: Annotated[Path, typer.Option(help="for logs and records")] = Path("runs/benchmarks/checkpoints"),
    out: Annotated[Path | None, typer.Option(help="the Markdown file to write")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="a few steps on one rank, once: does it work?")] = False,
) -> None:
    """Trains MiniLM with and without checkpoints, in turn, and tells what they took."""
    numbers = tuple(int(number) for number in ranks.split(","))
    plan = Plan(numbers, repeat, seconds, steps=60, every=10, root=work.absolute())
    if quick:
        plan = Plan((1,), 1, None, steps=8, every=3, root=work.absolute())
    try:
        compared = [_compare(plan, each) for each in plan.ranks]
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
    made = tables.facts("tests.benchmarks.checkpoints", store.machine())
    tables.publish(TITLE, made, [one_checkpoint(compared), shares(compared)], out)


def _compare(plan: Plan, ranks: int) -> Compared:
    often: list[Measured] = []
    without: list[Measured] = []
    with_share: list[Measured] = []
    steps = plan.steps
    for repetition in range(plan.repeat):
        often.append(_run(plan, ranks, f"often-{repetition}", plan.steps, str(plan.every)))
        if repetition == 0 and plan.seconds is not None:
            # Texts of one length a step: steps differ, and only their mean says how long a run is.
            steps = max(10, round(plan.seconds * often[0].steps / often[0].train_s))
        # Another goes first each time: a machine that grows slower or faster favours neither.
        for share in ("", SHARE) if repetition % 2 == 0 else (SHARE, ""):
            name = f"{'with' if share else 'without'}-{repetition}"
            (with_share if share else without).append(_run(plan, ranks, name, steps, share))
    if plan.seconds is not None and not all(run.checkpoints for run in with_share):
        raise BenchmarkError(f"a run of {plan.seconds:g} s is too short for a checkpoint at {SHARE}: say --seconds 120")
    return Compared(ranks, tuple(often), tuple(without), tuple(with_share))


def _run(plan: Plan, ranks: int, name: str, steps: int, checkpoint_every: str) -> Measured:
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
    measured = read_measured(folder / "run")
    saved = ", ".join(f"{each.blocked_ms:.0f} ms + {each.write_s:.2f} s" for each in measured.checkpoints)
    line = f"r{ranks} {name}: {steps} steps in {measured.train_s:.2f} s; checkpoints: {saved or 'none'}"
    print(line, file=sys.stderr, flush=True)
    return measured


def read_measured(folder: Path) -> Measured:
    """What a run measured, from the records of rank 0.

    Raises:
        BenchmarkError: It has not come to its end.
    """
    records = list(read_records(folder / metrics_name(0)))
    start, end = records[0], records[-1]
    if not (isinstance(start, StartRecord) and isinstance(end, EndRecord)):
        raise BenchmarkError(f"{folder} has no start or no end")
    step_times = [record.step_ms for record in records if isinstance(record, StepRecord)]
    return Measured(
        steps=end.steps,
        step_ms=statistics.median(step_times[min(5, len(step_times) // 2) :]),
        train_s=end.train_s,
        whole_s=end.time_s - start.time_s,
        checkpoints=tuple(record for record in records if isinstance(record, CheckpointRecord)),
    )


def one_checkpoint(compared: Sequence[Compared]) -> tables.Grid:
    """What one checkpoint takes."""
    rows = []
    for each in compared:
        saved = [record for run in each.often for record in run.checkpoints]
        if not saved:
            raise BenchmarkError("no checkpoint has reached the disk in the runs that are saved often")
        blocked = [record.blocked_ms for record in saved]
        written = [record.write_s for record in saved]
        sizes = [record.size_bytes for record in saved if record.size_bytes is not None]
        step_ms = statistics.median(run.step_ms for run in each.often)
        share = statistics.median(blocked) / (statistics.median(blocked) + step_ms)
        rows.append(
            (
                str(each.ranks),
                str(len(saved)),
                f"{sizes[-1] / 1e6:.1f}",
                f"{statistics.median(blocked):.1f} (max {max(blocked):.1f})",
                f"{statistics.median(written):.2f} (max {max(written):.2f})",
                f"{step_ms:.0f}",
                f"{share:.1%}",
            )
        )
    note = (
        f"MiniLM on SST-2, batch {BATCH} a rank, on a CPU, saved every few steps. Medians over all checkpoints; the"
        " first one of a run also makes the memory that the copies go into. Blocked is what the loop waited for the"
        " copy, and for an earlier write that was not done; the file is written, hashed and brought to the disk beside"
        " the loop."
    )
    header = ("ranks", "checkpoints", "MB", "blocked, ms", "written beside, s", "step, ms", "blocked share of its step")
    return tables.Grid("One checkpoint", note, header, tuple(rows))


def shares(compared: Sequence[Compared]) -> tables.Grid:
    """What saving takes of a run's time when it may take one percent."""
    rows = []
    for each in compared:
        pairs = each.with_share, each.without
        loop = paired_ratio(*([run.train_s for run in runs] for runs in pairs))
        whole = paired_ratio(*([run.whole_s for run in runs] for runs in pairs))
        rows.append(
            (
                str(each.ranks),
                str(loop.runs),
                str(each.without[0].steps),
                *(f"{statistics.median(run.train_s for run in runs):.2f}" for runs in pairs[::-1]),
                percent(loop),
                percent(whole),
                f"{statistics.median(len(run.checkpoints) for run in each.with_share):.0f}",
                f"{statistics.median(run.taken_s / run.train_s for run in each.with_share):.1%}",
            )
        )
    note = (
        f"The same run with `checkpoint_every: {SHARE}` and without checkpoints, in turn. More time [95 % interval:"
        " Student's t of the log ratios, paired by repetition], of the loop and from the first record to the last. The"
        " last column is what the records account for, against which the cadence is set: the wait and the writing."
    )
    header = (
        *("ranks", "repetitions", "steps", "loop without, s", "loop with, s", "loop longer by", "whole longer by"),
        *("checkpoints a run", "by the records"),
    )
    return tables.Grid(f"Checkpoints at {SHARE}", note, header, tuple(rows))


def percent(ratio: Ratio) -> str:
    """A ratio as what it is above 1.

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
