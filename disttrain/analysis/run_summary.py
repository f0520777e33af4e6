"""The summary of a run, derived from its records by pure functions."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from disttrain.analysis.bandwidth import ExchangeSummary, summarise_exchanges
from disttrain.analysis.measured_steps import (
    MeasuredStep,
    measured_steps,
    phase_percentiles,
    split_by_start,
    steps_after_warmup,
)
from disttrain.analysis.straggler import Straggler, find_straggler
from disttrain.records.record_types import (
    CheckpointRecord,
    CrossCheckRecord,
    EndRecord,
    EvalRecord,
    LinkRecord,
    Record,
    StartRecord,
    StepRecord,
    TelemetryRecord,
)
from disttrain.records.summary_types import Summary

# All-reduces that a backend works on at the same time: NCCL has one stream, gloo two threads (torch's default).
AT_ONCE = {"nccl": 1, "gloo": 2}


@dataclass(frozen=True)
class Sums:
    """What must be added up over the ranks, since each knows only its own examples."""

    tail_loss: float  # over the examples of the last tenth of the steps
    tail_examples: float
    measured_examples: float  # of the steps after the warm-up
    energy_j: float  # of each GPU once
    energy_ranks: float  # whose GPU's energy is known, or counted by another rank


def own_sums(records: Sequence[Record], warmup_steps: int, *, first_on_gpu: bool = True) -> Sums:
    """One rank's part of the sums.

    Args:
        records: All records of the rank.
        warmup_steps: First steps, which no measurement counts.
        first_on_gpu: Whether the energy of its GPU, which is that of the whole board, is this rank's to count.
    """
    steps = [record for record in records if isinstance(record, StepRecord)]
    last = steps[-1].step if steps else 0
    tail = [record for record in steps if record.step > last - math.ceil(last / 10) and record.loss is not None]
    energies = [_energy(start) for start in split_by_start(records)]
    return Sums(
        tail_loss=sum((record.loss or 0.0) * record.examples for record in tail),
        tail_examples=sum(record.examples for record in tail),
        measured_examples=sum(record.examples for record in steps_after_warmup(records, warmup_steps)),
        energy_j=sum(filter(None, energies)) if first_on_gpu else 0.0,
        energy_ranks=float(energies[-1] is not None or not first_on_gpu),
    )


def summarise(
    records: Sequence[Record],
    sums: Sums,
    ranks: Sequence[Sequence[MeasuredStep]],
    *,
    hosts: tuple[str, ...],
    num_nodes: int,
    warmup_steps: int,
) -> Summary:
    """The summary of a finished run.

    Args:
        records: All records of rank 0.
        sums: Over all ranks.
        ranks: The measured steps of all ranks.
        hosts: Of each rank, by rank.
        num_nodes: Logical nodes.
        warmup_steps: First steps, which no measurement counts.
    """
    begun = [record for record in records if isinstance(record, StartRecord)]
    start, slow = begun[-1], find_straggler(ranks)
    comparable = not (start.shared_gpu or start.folded)
    end = next(record for record in records if isinstance(record, EndRecord))
    last_eval = next((record for record in reversed(records) if isinstance(record, EvalRecord)), None)
    steps = steps_after_warmup(records, warmup_steps)
    measured_s = sum(record.step_ms for record in steps) / 1000
    samples_per_s = sums.measured_examples / measured_s if steps else None
    return Summary(
        world_size=start.world_size,
        num_nodes=num_nodes,
        hosts=hosts,
        device_name=start.device_name,
        backend=start.backend,
        comparable=comparable,
        steps=end.steps,
        measured_steps=len(steps),
        train_s=end.train_s,
        samples_per_s=samples_per_s,
        samples_per_s_per_gpu=None if samples_per_s is None else samples_per_s / start.world_size,
        train_loss=sums.tail_loss / sums.tail_examples if sums.tail_examples else None,
        eval_loss=last_eval.loss if last_eval else None,
        eval_accuracy=last_eval.accuracy if last_eval else None,
        eval_examples=last_eval.examples if last_eval else None,
        notices=(
            *dict.fromkeys(notice for record in begun for notice in record.notices),
            *_divergence(records),
            *_unsaved(records),
            *_unread(records),
            *(_slow(slow, hosts) if comparable else ()),
        ),
        **_phases(measured_steps(records, warmup_steps)),
        **_exchange(summarise_exchanges(ranks, AT_ONCE.get(start.backend or "", 1))),
        **_cross_check(records),
        **_slowest(slow, hosts),
        **_link(records),
        **_telemetry(_samples(records)),
        gpu_energy_j=sums.energy_j if sums.energy_ranks == start.world_size else None,
    )


def _divergence(records: Sequence[Record]) -> tuple[str, ...]:
    for record in records:
        if isinstance(record, StepRecord) and record.examples and record.loss is None:
            return (f"the training loss is not finite from step {record.step} on",)
    return ()


def _unsaved(records: Sequence[Record]) -> tuple[str, ...]:
    failed = [record for record in records if isinstance(record, CheckpointRecord) and record.error is not None]
    if not failed:
        return ()
    return (f"{len(failed)} checkpoints could not be written; the last, of step {failed[-1].step}: {failed[-1].error}",)


def _unread(records: Sequence[Record]) -> tuple[str, ...]:
    failed = [record for record in records if isinstance(record, TelemetryRecord) and record.error is not None]
    return (f"telemetry: {len(failed)} samples lack something; the last: {failed[-1].error}",) if failed else ()


def _energy(start: Sequence[Record]) -> float | None:
    """Of one start, each of which counts from 0."""
    known = [record.gpu_energy_j for record in start if isinstance(record, TelemetryRecord)]
    return next((energy_j for energy_j in reversed(known) if energy_j is not None), None)


def _samples(records: Sequence[Record]) -> list[TelemetryRecord]:
    """Of the last start: an earlier one may have been on another GPU."""
    return [record for record in split_by_start(records)[-1] if isinstance(record, TelemetryRecord)]


def _telemetry(samples: Sequence[TelemetryRecord]) -> dict[str, Any]:
    # Without the first sample, which was taken before the first step, unless there is no other.
    during = samples[1:] or samples
    reasons = [sample.gpu_throttle for sample in during if sample.gpu_throttle is not None]
    return {
        "gpu_util_percent": _mean([sample.gpu_util_percent for sample in during]),
        "gpu_power_w": _mean([sample.gpu_power_w for sample in during]),
        "gpu_memory_peak_mib": _peak([sample.gpu_memory_used_mib for sample in during]),
        "gpu_temperature_peak_c": _peak([sample.gpu_temperature_c for sample in during]),
        "gpu_throttle": tuple(dict.fromkeys(name for each in reasons for name in each)) if reasons else None,
        "gpu_energy_source": next(filter(None, (sample.gpu_energy_source for sample in during)), None),
        "process_cpu_percent": _mean([sample.process_cpu_percent for sample in during]),
        "process_memory_peak_mib": _peak([sample.process_memory_mib for sample in during]),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _peak(values: Sequence[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _phases(steps: Sequence[MeasuredStep]) -> dict[str, Any]:
    """Median, 95th percentile and minimum of each phase."""
    found: dict[str, Any] = {}
    for name, values in phase_percentiles(steps).items():
        stem = name.removesuffix("_ms")
        found[name] = values.median if values else None
        found[f"{stem}_p95_ms"] = values.p95 if values else None
        found[f"{stem}_min_ms"] = values.minimum if values else None
    return found


def _exchange(exchanged: ExchangeSummary | None) -> dict[str, Any]:
    if exchanged is None:
        return {}
    return {
        "bucket_count": len(exchanged.buckets),
        "exchange_ms": exchanged.all_reduce_ms.median,
        "bus_gb_per_s": exchanged.bus_gb_per_s,
        "buckets": tuple(
            {
                "size_bytes": bucket.size_bytes,
                "all_reduce_ms": bucket.all_reduce_ms.median,
                "all_reduce_p95_ms": bucket.all_reduce_ms.p95,
                "all_reduce_min_ms": bucket.all_reduce_ms.minimum,
                "algorithm_gb_per_s": bucket.algorithm_gb_per_s,
                "bus_gb_per_s": bucket.bus_gb_per_s,
            }
            for bucket in exchanged.buckets
        ),
    }


def _cross_check(records: Sequence[Record]) -> dict[str, Any]:
    check = next((record for record in reversed(records) if isinstance(record, CrossCheckRecord)), None)
    if check is None:
        return {}
    return {
        "check_exposed_ms": check.exposed_comm_ms,
        "no_sync_exposed_ms": check.no_sync_exposed_ms,
        "no_sync_difference": check.no_sync_exposed_ms / check.exposed_comm_ms - 1 if check.exposed_comm_ms else None,
        "no_sync_is_check": check.is_check,
        "ddp_exposed_ms": check.ddp_exposed_ms,
    }


def _slowest(slow: Straggler | None, hosts: tuple[str, ...]) -> dict[str, Any]:
    return (
        {}
        if slow is None
        else {"slowest_rank": slow.rank, "slowest_host": hosts[slow.rank], "slowest_ratio": slow.ratio}
    )


def _link(records: Sequence[Record]) -> dict[str, Any]:
    links = [record for record in records if isinstance(record, LinkRecord)]
    return {
        "link_latency_ms": links[0].median_ms if links else None,
        # Not the highest of all sizes: behind a token bucket a short message passes at a rate that nothing longer gets.
        "link_bus_gb_per_s": links[-1].bus_gb_per_s if links else None,
    }


def _slow(slow: Straggler | None, hosts: tuple[str, ...]) -> tuple[str, ...]:
    if slow is None or not slow.is_slow:
        return ()
    return (
        f"rank {slow.rank} on {hosts[slow.rank]} is slow: its own work takes {slow.ratio:.2f} times that of the others",
    )
