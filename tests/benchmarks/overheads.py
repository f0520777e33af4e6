"""What measuring costs: python -m tests.benchmarks.overheads --help."""

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
from tests.benchmarks import callcosts, store, tables
from tests.benchmarks.cells import BenchmarkError
from tests.benchmarks.contenders import REPOSITORY
from tests.benchmarks.running import environment, run_command
from tests.benchmarks.workdata import minilm

TITLE = "What measuring costs"
RANKS = 2
TELEMETRY_EVERY_S = 5.0
WARMUP = 3  # steps
LAPS = 4  # a step: data, forward, backward, optimizer
_TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 200,
}


@dataclass(frozen=True)
class Work:
    """What is trained."""

    text: str
    flags: Mapping[str, Any]
    steps: int


@dataclass(frozen=True)
class Ran:
    """What one run told."""

    step_ms: float  # median of rank 0
    buckets: int  # that were watched in a step
    check_s: float  # that the cross check took, before the first step


@dataclass(frozen=True)
class Cost:
    """One part in one repetition: cost of a call x calls a step / step time is its share."""

    part: str
    call: str
    call_us: float
    calls: float  # a step
    probes: bool = False  # only with detailed_timing

    def share(self, step_ms: float) -> float:
        """Of a step, from 0 to 1."""
        return self.call_us * self.calls / (step_ms * 1000)


@dataclass(frozen=True)
class Repetition:
    """One run without the probes, one with them, and what the calls took about then."""

    off: Ran
    on: Ran
    costs: tuple[Cost, ...]

    def total(self, *, probes: bool) -> float:
        """The share of all parts."""
        return sum(each.share(self.off.step_ms) for each in self.costs if probes or not each.probes)


def benchmark(
    repeat: Annotated[int, typer.Option(min=1, help="repetitions")] = 3,
    work: Annotated[Path, typer.Option(help="for logs and records")] = Path("runs/benchmarks/overheads"),
    out: Annotated[Path | None, typer.Option(help="the Markdown file to write")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="the short step alone, once: does it work?")] = False,
) -> None:
    """Measures each call that measures, and the steps of real runs that it is a share of."""
    root = work.absolute()
    try:
        works = (tiny(steps=10),) if quick else (minilm_work(), tiny(steps=300))
        measured = {each.text: _measure(each, 1 if quick else repeat, root) for each in works}
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
    made = tables.facts("tests.benchmarks.overheads", store.machine())
    tables.publish(TITLE, made, [parts(measured), totals(measured)], out)


def minilm_work() -> Work:
    flags = {"checkpoint": minilm(), "per_gpu_batch": 16}
    return Work("MiniLM on SST-2, batch 16, 2 ranks", flags, steps=20)


def tiny(steps: int) -> Work:
    """The short step: a BERT of which the exchange and Python take more than the arithmetic."""
    flags = {"architecture": json.dumps(_TINY), "per_gpu_batch": 4, "max_train_examples": 2000}
    return Work("BERT of 2 layers of 32 on SST-2, batch 4, 2 ranks", flags, steps)


def _measure(work: Work, repeat: int, root: Path) -> list[Repetition]:
    found = []
    for number in range(repeat):
        off, on = (
            _run(work, root / f"{work.flags['per_gpu_batch']}-{number}", root, probes) for probes in (False, True)
        )
        found.append(Repetition(off, on, _costs(root, off.step_ms, on.buckets)))
        line = f"{work.text} {number + 1}/{repeat}: {off.step_ms:.1f} ms, with the probes {on.step_ms:.1f}"
        print(line, file=sys.stderr, flush=True)
    return found


def _run(work: Work, folder: Path, root: Path, probes: bool) -> Ran:
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
    return read_ran(folder / "run")


def read_ran(folder: Path) -> Ran:
    """What a run told, from the records of rank 0."""
    records = list(read_records(folder / metrics_name(0)))
    steps = [record.step_ms for record in records if isinstance(record, StepRecord)][WARMUP:]
    exchanges = [record for record in records if isinstance(record, ExchangeRecord)]
    checks = [record for record in records if isinstance(record, CrossCheckRecord)]
    buckets = len(exchanges[-1].bucket_bytes) if exchanges else 0
    return Ran(statistics.median(steps), buckets, sum(record.elapsed_s for record in checks))


def _costs(folder: Path, step_ms: float, buckets: int) -> tuple[Cost, ...]:
    at_once = max(1, round(FLUSH_EVERY_S * 1000 / step_ms))
    record_us = callcosts.record_us(folder, at_once, 0)
    exchange_us = callcosts.record_us(folder, at_once, buckets) - record_us
    return (
        Cost("timing", "a lap of the timer", callcosts.lap_us(), LAPS),
        Cost("timing", "the end of a step", callcosts.end_step_us(), 1),
        Cost("records", "a step's times read, and its record written", record_us, 1),
        Cost("telemetry", "a sample and its record", callcosts.sample_us(), step_ms / 1000 / TELEMETRY_EVERY_S),
        Cost("probes", "a bucket in DDP's hook", callcosts.bucket_us(), buckets, probes=True),
        Cost("probes", "the record of a step's buckets", exchange_us, 1, probes=True),
    )


def parts(measured: Mapping[str, Sequence[Repetition]]) -> tables.Grid:
    """Each part of each work."""
    rows = []
    for text, repetitions in measured.items():
        for each in zip(*(repetition.costs for repetition in repetitions), strict=True):
            shares = [cost.share(one.off.step_ms) for cost, one in zip(each, repetitions, strict=True)]
            call_us = [cost.call_us for cost in each]
            calls = statistics.median(cost.calls for cost in each)
            rows.append(
                (text, each[0].part, each[0].call, _spread(call_us, "{:.2f}"), f"{calls:.4g}", _percent(shares))
            )
    note = (
        "Cost of a call x calls a step / step time. Calls are measured one at a time with nothing else running, the"
        f" step in a real run; telemetry every {TELEMETRY_EVERY_S:g} s, of ranks without a GPU: NVML's calls are not in"
        f" it. Records are written every {FLUSH_EVERY_S:g} s, so many steps at once as take that time. Probes are what"
        " `detailed_timing` adds; the hook in a process group of one rank, against DDP's own exchange without a hook."
        " Median over the repetitions [lowest to highest]."
    )
    return tables.Grid(
        "Each part", note, ("work", "part", "call", "us a call", "calls a step", "of the step"), tuple(rows)
    )


def totals(measured: Mapping[str, Sequence[Repetition]]) -> tables.Grid:
    """The sums of the parts."""
    rows = [
        (
            text,
            str(len(repetitions)),
            _spread([each.off.step_ms for each in repetitions], "{:.1f}"),
            _percent([each.total(probes=False) for each in repetitions]),
            _spread([each.on.step_ms for each in repetitions], "{:.1f}"),
            _percent([each.total(probes=True) for each in repetitions]),
            _spread([each.on.check_s for each in repetitions], "{:.2f}"),
        )
        for text, repetitions in measured.items()
    ]
    note = (
        "Sums of the parts, as shares of the step without the probes. Before the first step, and in no step, the"
        " exposed exchange is checked by passes that nothing is learnt from: the last column, once a start."
    )
    header = (
        *("work", "repetitions", "step, ms", "all but the probes"),
        *("step with the probes, ms", "with the probes", "cross check, s"),
    )
    return tables.Grid("All parts", note, header, tuple(rows))


def _percent(shares: Sequence[float]) -> str:
    return _spread([share * 100 for share in shares], "{:.3f}") + " %"


def _spread(values: Sequence[float], form: str) -> str:
    """The median [lowest to highest]; alone where there is but one."""
    median = form.format(statistics.median(values))
    return median if len(values) < 2 else f"{median} [{form.format(min(values))} to {form.format(max(values))}]"


if __name__ == "__main__":
    typer.run(benchmark)
