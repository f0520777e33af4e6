"""Proof: over a link of known rate, the exchange takes the time that its bytes need, by independent estimates."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from disttrain.records.record_files import metrics_name, read_records, summary_from_json
from disttrain.records.record_types import CrossCheckRecord, ExchangeRecord, StepRecord
from disttrain.records.summary_types import Summary
from tests.proofs.sweeping import cluster_environ, run_sweep
from tests.proofs.throttle import throttled

# Mbit/s, and a burst of at least the data that passes in one tick of the kernel's timer at this rate.
RATES = ((200, "64kb"), (400, "1mb"))
TOLERANCE, STEPS_TOLERANCE = 0.10, 0.02
OVERLAPPING_LAYERS = 4


@dataclass(frozen=True)
class MeasuredRun:
    """One run over a link of one rate."""

    rate: int  # Mbit/s
    layers: int
    summary: Summary
    size_bytes: int  # size of all gradients
    check: CrossCheckRecord | None
    steps_s: float  # the sum of its steps

    @property
    def expected_ms(self) -> float:
        """The time that the bytes need: bytes x 2(n - 1)/n / rate."""
        ranks: int = self.summary["world_size"]
        return self.size_bytes * 8 * 2 * (ranks - 1) / ranks / self.rate / 1000


def prove() -> str:
    """Runs both rates, one and two ranks, and exchanges with almost no overlap and with partial overlap."""
    environ = cluster_environ()
    lines = []
    for rate, burst in RATES:
        with tempfile.TemporaryDirectory() as folder, throttled(rate, burst):
            rows, _ = run_sweep("../tests/proofs/propagation.yaml", Path(folder), environ)
            (runs,) = Path(folder).glob("propagation/*/runs")
            lines += [_line(_read(runs / row["run_id"], rate)) for row in rows]
    table = "\n".join(lines)
    return f"""\
`tests/proofs/propagation.yaml` runs on the two-node test cluster. The kernel limits its link to a rate (tc-tbf). Each
run has 15 measured steps. The table has milliseconds, medians of rank 0.

- Expected: bytes x 2(n - 1)/n / rate.
- All-reduce: the time in which any bucket is in the exchange. It must agree with the expected time to {TOLERANCE:.0%}.
- Exposed: the time that the step waits for the exchange. Overlapped: the time that the exchange takes during the
  backward pass. With one rank both must be zero.
- Marks, no_sync, DDP: three estimates of the exposed time, from passes before the first step. They come from the
  marks in the exchange, from passes without an exchange (no_sync), and from DDP's own logger. Marks and no_sync must
  agree to {TOLERANCE:.0%} if the exchange takes three times the backward pass; otherwise no_sync is a bound.
- The steps of a run must add up to the time of its loop, to {STEPS_TOLERANCE:.0%}.

| Mbit/s | ranks | MB | buckets | expected | all-reduce | ratio | backward | exposed | overlap | marks | no_sync | DDP |
|---|---|---|---|---|---|---|---|---|---|---|---|---|
{table}"""


def _read(run: Path, rate: int) -> MeasuredRun:
    summary = summary_from_json(json.loads((run / "summary.json").read_text(encoding="utf-8")))
    records = list(read_records(run / metrics_name(0)))
    sizes = [sum(record.bucket_bytes) for record in records if isinstance(record, ExchangeRecord)]
    layers = json.loads((run / "run.json").read_text(encoding="utf-8"))["train"]["architecture"]["num_hidden_layers"]
    check = next((record for record in records if isinstance(record, CrossCheckRecord)), None)
    steps_s = sum(record.step_ms for record in records if isinstance(record, StepRecord)) / 1000
    return MeasuredRun(rate, layers, summary, sizes[-1] if sizes else 0, check, steps_s)


def _line(run: MeasuredRun) -> str:
    summary = run.summary
    if summary["world_size"] == 1:
        assert (summary["exposed_comm_ms"], summary["overlapped_comm_ms"]) == (0.0, 0.0)
        assert (summary["bucket_count"], run.check) == (None, None)
        return _row(run.rate, 1, "-", "-", "-", "-", "-", summary["backward_ms"], 0.0, 0.0, *"---")
    assert summary["exchange_ms"] is not None
    assert summary["exposed_comm_ms"] is not None
    assert summary["overlapped_comm_ms"] is not None
    assert run.check is not None
    ratio = summary["exchange_ms"] / run.expected_ms
    name = f"{run.layers} layers at {run.rate} Mbit/s in {summary['bucket_count']} buckets"
    assert abs(ratio - 1) <= TOLERANCE, f"{name}: the all-reduces take {ratio:.2f} times the time that the bytes need"
    if run.layers == OVERLAPPING_LAYERS:
        assert summary["bucket_count"] is not None
        assert summary["bucket_count"] > 1
        assert summary["exposed_comm_ms"] < 0.9 * summary["exchange_ms"], (
            f"{name}: no part of the exchange is overlapped"
        )
    else:
        assert run.check.is_check, f"{name}: the exchange is too short for no_sync to be a check"
    difference = run.check.no_sync_exposed_ms / run.check.exposed_comm_ms - 1
    no_sync = f"{run.check.no_sync_exposed_ms:.1f} ({difference:+.0%}{'' if run.check.is_check else ', a bound'})"
    if run.check.is_check:
        assert abs(difference) <= TOLERANCE, f"{name}: no_sync differs by {difference:+.0%}"
    assert abs(run.steps_s / summary["train_s"] - 1) <= STEPS_TOLERANCE, f"{name}: the steps take {run.steps_s:.2f} s"
    return _row(
        run.rate,
        2,
        run.size_bytes / 1e6,
        summary["bucket_count"],
        run.expected_ms,
        summary["exchange_ms"],
        f"{ratio:.2f}",
        summary["backward_compute_ms"],
        summary["exposed_comm_ms"],
        summary["overlapped_comm_ms"],
        run.check.exposed_comm_ms,
        no_sync,
        run.check.ddp_exposed_ms,
    )


def _row(*cells: Any) -> str:
    return "| " + " | ".join(f"{cell:.1f}" if isinstance(cell, float) else str(cell) for cell in cells) + " |"
