"""Measures the cost of measuring: python -m tests.benchmarks.overheads --help."""

from __future__ import annotations

import json
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from disttrain.records.record_files import metrics_name, read_records
from disttrain.records.record_types import CrossCheckRecord, ExchangeRecord, StepRecord
from disttrain.training.step_writer import FLUSH_EVERY_S
from disttrain.training.stop_agreement import CHECK_EVERY_S
from tests.benchmarks import callcosts, store, tables
from tests.benchmarks.cells import BenchmarkError
from tests.benchmarks.contenders import REPOSITORY
from tests.benchmarks.running import environment, run_command
from tests.benchmarks.workdata import minilm

TITLE = "What measuring costs"
RANKS = 2
TELEMETRY_EVERY_S = 5.0
WARMUP = 3  # steps
LAPS = 4  # laps per step: data, forward, backward, optimizer
_TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 200,
}


@dataclass(frozen=True)
class Work:
    """The training work."""

    text: str
    flags: Mapping[str, Any]
    steps: int


@dataclass(frozen=True)
class RunTimes:
    """The measurements of one run."""

    step_ms: float  # median of rank 0
    buckets: int  # the measured buckets of a step
    check_s: float  # the time of the cross check, before the first step


@dataclass(frozen=True)
class Cost:
    """The cost of one part in one repetition. Its share: cost of a call x calls per step / step time."""

    part: str
    call: str
    call_us: float
    calls: float  # calls per step
    probes: bool = False  # only with detailed_timing

    def share(self, step_ms: float) -> float:
        """The share of a step, from 0 to 1."""
        return self.call_us * self.calls / (step_ms * 1000)


@dataclass(frozen=True)
class Repetition:
    """A run without the probes, a run with them, and the costs of the calls, measured directly after."""

    off: RunTimes
    on: RunTimes
    costs: tuple[Cost, ...]

    def total(self, *, probes: bool) -> float:
        """The share of all parts together."""
        return sum(cost.share(self.off.step_ms) for cost in self.costs if probes or not cost.probes)


def benchmark(
    repeat: Annotated[int, typer.Option(min=1, help="Number of repetitions.")] = 3,
    work: Annotated[Path, typer.Option(help="Folder for logs and records.")] = Path("runs/benchmarks/overheads"),
    out: Annotated[Path | None, typer.Option(help="The Markdown file to write.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Measure only the short step, once, as a test.")] = False,
) -> None:
    """Measures the calls of the measuring parts, and their share of the steps of real runs."""
    root = work.absolute()
    try:
        works = (tiny(steps=10),) if quick else (minilm_work(), tiny(steps=300))
        measured = {item.text: _measure(item, 1 if quick else repeat, root) for item in works}
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
    facts = tables.facts("tests.benchmarks.overheads", store.machine())
    tables.publish(TITLE, facts, [parts(measured), totals(measured)], out)


def minilm_work() -> Work:
    flags = {"checkpoint": minilm(), "per_gpu_batch": 16}
    return Work("MiniLM on SST-2, batch 16, 2 ranks", flags, steps=20)


def tiny(steps: int) -> Work:
    """The short step: a BERT whose exchange and Python code take more time than its arithmetic."""
    flags = {"architecture": json.dumps(_TINY), "per_gpu_batch": 4, "max_train_examples": 2000}
    return Work("BERT of 2 layers of 32 on SST-2, batch 4, 2 ranks", flags, steps)


def _measure(work: Work, repeat: int, root: Path) -> list[Repetition]:
    repetitions = []
    for number in range(repeat):
        off, on = (
            _run(work, root / f"{work.flags['per_gpu_batch']}-{number}", root, probes) for probes in (False, True)
        )
        repetitions.append(Repetition(off, on, _costs(root, off.step_ms, on.buckets)))
        line = f"{work.text} {number + 1}/{repeat}: {off.step_ms:.1f} ms, with the probes {on.step_ms:.1f}"
        print(line, file=sys.stderr, flush=True)
    return repetitions


def _run(work: Work, folder: Path, root: Path, probes: bool) -> RunTimes:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    flags = {
        "dataset": REPOSITORY / "sweeps" / "data" / "sst2",
        "max_eval_examples": 0,
        "max_steps": work.steps,
        "save_model": "false",
        "device": "cpu",
        "telemetry_every_s": TELEMETRY_EVERY_S,
        "detailed_timing": str(probes).lower(),
        "output_dir": folder / "run",
        **work.flags,
    }
    words = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={RANKS}"),
        str(REPOSITORY / "disttrain" / "bert.py"),
        *(part for flag, value in flags.items() for part in (f"--{flag}", str(value))),
    ]
    run_command(words, environment(RANKS, root), folder / "log.txt")
    return read_times(folder / "run")


def read_times(folder: Path) -> RunTimes:
    """The measurements of a run, from the records of rank 0."""
    records = list(read_records(folder / metrics_name(0)))
    steps = [record.step_ms for record in records if isinstance(record, StepRecord)][WARMUP:]
    exchanges = [record for record in records if isinstance(record, ExchangeRecord)]
    checks = [record for record in records if isinstance(record, CrossCheckRecord)]
    buckets = len(exchanges[-1].bucket_bytes) if exchanges else 0
    return RunTimes(statistics.median(steps), buckets, sum(record.elapsed_s for record in checks))


def _costs(folder: Path, step_ms: float, buckets: int) -> tuple[Cost, ...]:
    steps_per_flush = max(1, round(FLUSH_EVERY_S * 1000 / step_ms))
    record_us = callcosts.record_us(folder, steps_per_flush, 0)
    exchange_us = callcosts.record_us(folder, steps_per_flush, buckets) - record_us
    return (
        Cost("timing", "a lap of the timer", callcosts.lap_us(), LAPS),
        Cost("timing", "the end of a step", callcosts.end_step_us(), 1),
        Cost("records", "reading a step's times, writing its record", record_us, 1),
        Cost("telemetry", "a sample and its record", callcosts.sample_us(), step_ms / 1000 / TELEMETRY_EVERY_S),
        Cost(
            "resuming", "a check for stop signals", callcosts.stop_check_us(), min(1.0, step_ms / 1000 / CHECK_EVERY_S)
        ),
        Cost("probes", "a bucket in DDP's hook", callcosts.bucket_us(), buckets, probes=True),
        Cost("probes", "the record of a step's buckets", exchange_us, 1, probes=True),
    )


def parts(measured: Mapping[str, Sequence[Repetition]]) -> tables.Grid:
    """The table with the cost of each part, for each work."""
    rows = []
    for text, repetitions in measured.items():
        for costs in zip(*(repetition.costs for repetition in repetitions), strict=True):
            pairs = zip(costs, repetitions, strict=True)
            shares = [cost.share(repetition.off.step_ms) for cost, repetition in pairs]
            call_us = [cost.call_us for cost in costs]
            calls = statistics.median(cost.calls for cost in costs)
            rows.append(
                (text, costs[0].part, costs[0].call, tables.spread(call_us, "{:.2f}"), f"{calls:.4g}", _percent(shares))
            )
    note = (
        "The share of the step is cost of a call x calls per step / step time. Each call is measured with nothing else"
        " running, and the step in a real run. Telemetry is sampled every"
        f" {TELEMETRY_EVERY_S:g} s on ranks without a GPU: NVML's calls are not included. Records are written every"
        f" {FLUSH_EVERY_S:g} s, for all steps of that time together. The check for stop signals, every"
        f" {CHECK_EVERY_S:g} s, is an all-reduce between two ranks of this host. Probes are what `detailed_timing`"
        " adds. The cost of the hook is measured in a process group of one rank, against DDP's own exchange without a"
        " hook. Median over the repetitions [minimum to maximum]."
    )
    return tables.Grid(
        "Each part", note, ("work", "part", "call", "us per call", "calls per step", "share of the step"), tuple(rows)
    )


def totals(measured: Mapping[str, Sequence[Repetition]]) -> tables.Grid:
    """The table with the sums of the parts."""
    rows = [
        (
            text,
            str(len(repetitions)),
            tables.spread([repetition.off.step_ms for repetition in repetitions], "{:.1f}"),
            _percent([repetition.total(probes=False) for repetition in repetitions]),
            tables.spread([repetition.on.step_ms for repetition in repetitions], "{:.1f}"),
            _percent([repetition.total(probes=True) for repetition in repetitions]),
            tables.spread([repetition.on.check_s for repetition in repetitions], "{:.2f}"),
        )
        for text, repetitions in measured.items()
    ]
    note = (
        "Sums of the parts, as shares of the step without the probes. With the probes gloo exchanges the gradients,"
        " without them shared memory does. The last column is the cross check of the exposed communication: it runs"
        " once per start, before the first step, and its passes train nothing."
    )
    header = (
        *("work", "repetitions", "step, ms", "without the probes"),
        *("step with the probes, ms", "with the probes", "cross check, s"),
    )
    return tables.Grid("All parts", note, header, tuple(rows))


def _percent(shares: Sequence[float]) -> str:
    return tables.spread([share * 100 for share in shares], "{:.3f}") + " %"


if __name__ == "__main__":
    typer.run(benchmark)
