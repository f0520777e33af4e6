"""Proof: over a link of known rate, the exchange takes the time that its bytes need, by two independent estimates."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from disttrain.records.record_files import from_json, metrics_name, read_records
from disttrain.records.record_types import CrossCheckRecord, ExchangeRecord, StepRecord
from disttrain.records.summary_types import Summary
from tests.proofs.sweeping import cluster_environ, run_sweep
from tests.proofs.throttle import throttled

# Mbit/s, and a burst that covers what one tick of the kernel's timer lets through at that rate.
RATES = ((200, "64kb"), (400, "1mb"))
TOLERANCE, STEPS_TOLERANCE = 0.10, 0.02
LAYERS_THAT_HIDE = 4


@dataclass(frozen=True)
class Measured:
    """One run over a link of one rate."""

    rate: int  # Mbit/s
    layers: int
    summary: Summary
    size_bytes: int  # of all gradients
    check: CrossCheckRecord | None
    steps_s: float  # the sum of its steps

    @property
    def expected_ms(self) -> float:
        """What the bytes need: bytes x 2(n - 1)/n / rate."""
        ranks = self.summary.world_size
        return self.size_bytes * 8 * 2 * (ranks - 1) / ranks / self.rate / 1000


def prove() -> str:
    """Both rates, one and two ranks, an exchange that nothing hides and one that the backward pass hides in part."""
    environ = cluster_environ()
    lines = []
    for rate, burst in RATES:
        with tempfile.TemporaryDirectory() as folder, throttled(rate, burst):
            rows, _ = run_sweep("../tests/proofs/propagation.yaml", Path(folder), environ)
            (runs,) = Path(folder).glob("propagation/*/runs")
            lines += [_line(_read(runs / row["run_id"], rate)) for row in rows]
    table = "\n".join(lines)
    return f"""\
`tests/proofs/propagation.yaml` on the two-node test cluster, its link held to a rate by the kernel (tc-tbf), 15
measured steps a run. Expected is bytes x 2(n - 1)/n / rate; the all-reduces, while any bucket is under way, must take
that to {TOLERANCE:.0%}. Exposed is what the step waits for, hidden what runs beside the backward pass. In passes before
the first step the exposed part is estimated three times: by the marks in the exchange, by passes without an exchange
(no_sync), and by DDP's own logger; the first two must agree to {TOLERANCE:.0%} where the exchange takes three times the
backward pass, else no_sync is a bound. Of one rank all are zero. The steps of a run add up to the time of its loop to
{STEPS_TOLERANCE:.0%}. Milliseconds, medians of rank 0.

| Mbit/s | ranks | MB | buckets | expected | all-reduce | ratio | backward | exposed | hidden | marks | no_sync | DDP |
|---|---|---|---|---|---|---|---|---|---|---|---|---|
{table}"""


def _read(run: Path, rate: int) -> Measured:
    summary = from_json(Summary, json.loads((run / "summary.json").read_text(encoding="utf-8")))
    records = list(read_records(run / metrics_name(0)))
    sizes = [sum(record.bucket_bytes) for record in records if isinstance(record, ExchangeRecord)]
    layers = json.loads((run / "run.json").read_text(encoding="utf-8"))["train"]["architecture"]["num_hidden_layers"]
    check = next((record for record in records if isinstance(record, CrossCheckRecord)), None)
    steps_s = sum(record.step_ms for record in records if isinstance(record, StepRecord)) / 1000
    return Measured(rate, layers, summary, sizes[-1] if sizes else 0, check, steps_s)


def _line(run: Measured) -> str:
    found = run.summary
    if found.world_size == 1:
        assert (found.exposed_comm_ms, found.overlapped_comm_ms, found.bucket_count, run.check) == (
            0.0,
            0.0,
            None,
            None,
        )
        return _row(run.rate, 1, "-", "-", "-", "-", "-", found.backward_ms, 0.0, 0.0, *"---")
    assert found.exchange_ms is not None
    assert found.exposed_comm_ms is not None
    assert found.overlapped_comm_ms is not None
    assert run.check is not None
    ratio = found.exchange_ms / run.expected_ms
    name = f"{run.layers} layers at {run.rate} Mbit/s in {found.bucket_count} buckets"
    assert abs(ratio - 1) <= TOLERANCE, f"{name}: all-reduce {ratio:.2f} times what its bytes need"
    if run.layers == LAYERS_THAT_HIDE:
        assert found.bucket_count is not None
        assert found.bucket_count > 1
        assert found.exposed_comm_ms < 0.9 * found.exchange_ms, f"{name}: nothing of the exchange is hidden"
    else:
        assert run.check.is_check, f"{name}: its exchange is too short for the passes without it to be a check"
    apart = run.check.no_sync_exposed_ms / run.check.exposed_comm_ms - 1
    if run.check.is_check:
        assert abs(apart) <= TOLERANCE, f"{name}: no_sync gives {apart:+.0%}"
    assert abs(run.steps_s / found.train_s - 1) <= STEPS_TOLERANCE, f"{name}: its steps are {run.steps_s:.2f} s long"
    return _row(
        run.rate,
        2,
        run.size_bytes / 1e6,
        found.bucket_count,
        run.expected_ms,
        found.exchange_ms,
        f"{ratio:.2f}",
        found.backward_compute_ms,
        found.exposed_comm_ms,
        found.overlapped_comm_ms,
        run.check.exposed_comm_ms,
        f"{run.check.no_sync_exposed_ms:.1f} ({apart:+.0%}{'' if run.check.is_check else ', a bound'})",
        run.check.ddp_exposed_ms,
    )


def _row(*cells: Any) -> str:
    return "| " + " | ".join(f"{cell:.1f}" if isinstance(cell, float) else str(cell) for cell in cells) + " |"
