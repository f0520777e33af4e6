"""Computes the summary of a run from its records, with pure functions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from disttrain.analysis.bandwidth import ExchangeSummary, summarise_exchanges
from disttrain.analysis.best_evaluation import best_evaluation
from disttrain.analysis.measured_steps import MeasuredStep, split_by_start, steps_after_warmup
from disttrain.analysis.notices import run_notices, slow_rank_notices
from disttrain.analysis.straggler import Straggler, find_straggler
from disttrain.records.figures import summarise_fields
from disttrain.records.rank_types import RankTelemetry
from disttrain.records.record_types import (
    CrossCheckRecord,
    EvalRecord,
    LinkRecord,
    Record,
    StartRecord,
    StepRecord,
    TelemetryRecord,
)
from disttrain.records.step_types import StartupRecord, StepTimes
from disttrain.records.summary_types import SUMMARISED_TYPES, RunFigures, Summary
from disttrain.records.versions import STARTING

# The number of all-reduces that a backend processes at the same time: NCCL has one stream, gloo two threads (torch's
# default).
CONCURRENT_ALL_REDUCES = {"nccl": 1, "gloo": 2}


@dataclass(frozen=True)
class Sums:
    """One rank's part of the sums over all ranks; each rank has only its own examples."""

    tail_loss: float  # summed over the examples of the last tenth of the steps
    tail_examples: float  # the number of these examples
    measured_examples: float  # the number of examples in the measured steps
    energy_j: float  # each GPU is counted once
    energy_ranks: float  # the number of ranks whose GPU's energy is known or counted by another rank


def own_sums(records: Sequence[Record], warmup_steps: int, *, first_on_gpu: bool = True) -> Sums:
    """One rank's part of the sums.

    Args:
        records: All records of the rank.
        warmup_steps: The number of first steps of each start that are not measured.
        first_on_gpu: Whether this rank counts the energy of its GPU board, which several ranks may share.
    """
    steps = [record for record in records if isinstance(record, StepRecord)]
    tail = _last_tenth_with_loss(steps)
    energy_j, energy_known = 0.0, True
    if first_on_gpu:
        energies = [_energy(start) for start in split_by_start(records)]
        energy_j, energy_known = sum(filter(None, energies)), energies[-1] is not None
    return Sums(
        tail_loss=sum((record.loss or 0.0) * record.examples for record in tail),
        tail_examples=sum(record.examples for record in tail),
        measured_examples=sum(record.examples for record in steps_after_warmup(records, warmup_steps)),
        energy_j=energy_j,
        energy_ranks=float(energy_known),
    )


def _last_tenth_with_loss(steps: Sequence[StepRecord]) -> list[StepRecord]:
    if not steps:
        return []
    last = steps[-1].step
    return [record for record in steps if record.step > last - math.ceil(last / 10) and record.loss is not None]


def summarise(
    records: Sequence[Record],
    sums: Sums,
    ranks: Sequence[Sequence[MeasuredStep]],
    *,
    startups: Sequence[StartupRecord],
    hosts: tuple[str, ...],
    num_nodes: int,
    warmup_steps: int,
    starts: Sequence[StartRecord] = (),
    telemetry: Sequence[RankTelemetry] = (),
) -> Summary:
    """The summary of a finished run: the figures of `RunFigures`, and those of single fields of the records.

    Args:
        records: All records of rank 0.
        sums: The sums over all ranks.
        ranks: The measured steps of each rank.
        startups: The startup record of each rank's last start.
        hosts: The host of each rank, by rank.
        num_nodes: The number of logical nodes.
        warmup_steps: The number of first steps of each start that are not measured.
        starts: The record of each rank's last start; empty if only rank 0's is known.
        telemetry: The figures of each rank's GPU in its last start; empty if only rank 0's are known.
    """
    start = [record for record in records if isinstance(record, StartRecord)][-1]
    straggler = find_straggler(ranks)
    comparable = not (start.shared_gpu or start.folded)
    notices = run_notices(records)
    if comparable:
        notices += slow_rank_notices(straggler, hosts)
    gpu_energy_j = None
    if sums.energy_ranks == start.world_size:
        gpu_energy_j = sums.energy_j
    run_figures = RunFigures(
        world_size=start.world_size,
        num_nodes=num_nodes,
        hosts=hosts,
        comparable=comparable,
        train_loss=_quotient(sums.tail_loss, sums.tail_examples),
        notices=notices,
        gpu_energy_j=gpu_energy_j,
        **_throughput(steps_after_warmup(records, warmup_steps), sums, start.world_size),
        **_best_evaluation(records),
        **_exchange(summarise_exchanges(ranks, CONCURRENT_ALL_REDUCES.get(start.backend or "", 1))),
        **_cross_check(records),
        **_slowest_rank(straggler, hosts),
        **_link(records),
        **_ranks_together(starts),
        mixed_starts=_mixed_starts(records),
    )
    summarised: dict[type[Any], Sequence[Any]] = {
        kind: [record for record in records if isinstance(record, kind)] for kind in SUMMARISED_TYPES
    }
    # Steps in every start; samples without the one before the first step, of the last start: an earlier one may have
    # used another GPU.
    summarised[StepTimes] = steps_after_warmup(records, warmup_steps)
    summarised[TelemetryRecord] = _samples(records)
    summarised[StartupRecord] = startups
    summarised[RankTelemetry] = telemetry
    figures = dataclasses.asdict(run_figures)
    for kind, values in summarised.items():
        figures |= summarise_fields(kind, values, hosts)
    return figures


def _quotient(total: float, count: float) -> float | None:
    """None if nothing was counted, or no time has passed."""
    if not count:
        return None
    return total / count


def _throughput(steps: Sequence[StepRecord], sums: Sums, world_size: int) -> dict[str, Any]:
    samples_per_s = _quotient(sums.measured_examples, sum(record.step_ms for record in steps) / 1000)
    samples_per_s_per_gpu = None
    if samples_per_s is not None:
        samples_per_s_per_gpu = samples_per_s / world_size
    return {
        "measured_steps": len(steps),
        "samples_per_s": samples_per_s,
        "samples_per_s_per_gpu": samples_per_s_per_gpu,
    }


def _best_evaluation(records: Sequence[Record]) -> dict[str, Any]:
    best = best_evaluation(record for record in records if isinstance(record, EvalRecord))
    if best is None:
        return {}
    return {"best_eval_step": best.step, "best_eval_loss": best.loss, "best_eval_accuracy": best.accuracy}


def rank_telemetry(records: Sequence[Record]) -> RankTelemetry:
    """The figures of one rank's GPU in its last start.

    Args:
        records: All records of the rank.
    """
    figures = summarise_fields(TelemetryRecord, _samples(records))
    return RankTelemetry(**{field.name: figures[field.name] for field in dataclasses.fields(RankTelemetry)})


# Where ranks differ in one of these, the run waits for some of them. Ranks of an exclusive node have the same CPUs.
_EQUAL_ON_ALL_RANKS = (
    "device_name", "versions", "cuda_version", "nccl_version", "driver_version", "transport", "gpu_power_cap_w",
    "gpu_max_sm_clock_mhz", "gpu_sm_clock_setting_mhz", "threads", "cpus",
)  # fmt: skip
_EQUAL_IN_ALL_STARTS = ("world_size", "backend", "shared_gpu", "folded")


def _ranks_together(starts: Sequence[StartRecord]) -> dict[str, Any]:
    """What follows from the start records of all ranks."""
    if not starts:
        return {}
    mixed = _differing({name: [_fact(start, name) for start in starts] for name in _EQUAL_ON_ALL_RANKS})
    return {"mixed_ranks": mixed, "leaf_switches": _leaf_switches([start.topology_addr for start in starts])}


def _mixed_starts(records: Sequence[Record]) -> tuple[str, ...]:
    """The facts in which the starts of one rank differ. A start of an earlier release has fewer, which differ in none.

    The measured steps are those of all starts, so a run that resumed on other hardware has times of both.
    """
    starts = [record for record in records if isinstance(record, StartRecord)]
    names = (*_EQUAL_ON_ALL_RANKS, *_EQUAL_IN_ALL_STARTS)
    return _differing({name: [fact for start in starts if (fact := _fact(start, name)) is not None] for name in names})


def _differing(facts: Mapping[str, Sequence[Any]]) -> tuple[str, ...]:
    """The names of the facts that have more than one value."""
    return tuple(name for name, values in facts.items() if any(value != values[0] for value in values))


def _fact(start: StartRecord, name: str) -> Any:
    """A field of a start record; of the versions only those of packages that compute."""
    value = getattr(start, name)
    if name == "versions":
        return {package: version for package, version in value.items() if package not in STARTING}
    return value


def _leaf_switches(addresses: Sequence[str | None]) -> int | None:
    """The number of lowest switches; None if Slurm names none.

    Example:
        >>> _leaf_switches(["s0.s1.n1", "s0.s2.n7", "s0.s1.n2"]), _leaf_switches(["n1", "n2"]), _leaf_switches([None])
        (2, None, None)
    """
    switches = {address.rpartition(".")[0] for address in addresses if address is not None}
    if None in addresses or "" in switches:
        return None
    return len(switches)


def _energy(start: Sequence[Record]) -> float | None:
    """The energy of one start; every start counts from 0."""
    energies = [record.gpu_energy_j for record in start if isinstance(record, TelemetryRecord)]
    return next((energy_j for energy_j in reversed(energies) if energy_j is not None), None)


def _samples(records: Sequence[Record]) -> list[TelemetryRecord]:
    """The samples of the last start. The first one, from before its first step, is used only if there is no other."""
    samples = [record for record in split_by_start(records)[-1] if isinstance(record, TelemetryRecord)]
    return samples[1:] or samples


def _exchange(summary: ExchangeSummary | None) -> dict[str, Any]:
    if summary is None:
        return {}
    return {
        "bucket_count": len(summary.buckets),
        "exchange_ms": summary.all_reduce_ms.median,
        "bus_gb_per_s": summary.bus_gb_per_s,
        "buckets": tuple(
            {
                "size_bytes": bucket.size_bytes,
                "all_reduce_ms": bucket.all_reduce_ms.median,
                "all_reduce_p95_ms": bucket.all_reduce_ms.p95,
                "all_reduce_min_ms": bucket.all_reduce_ms.minimum,
                "algorithm_gb_per_s": bucket.algorithm_gb_per_s,
                "bus_gb_per_s": bucket.bus_gb_per_s,
            }
            for bucket in summary.buckets
        ),
    }


def _cross_check(records: Sequence[Record]) -> dict[str, Any]:
    check = next((record for record in reversed(records) if isinstance(record, CrossCheckRecord)), None)
    if check is None:
        return {}
    difference = None
    if check.exposed_comm_ms:
        difference = check.no_sync_exposed_ms / check.exposed_comm_ms - 1
    return {"no_sync_difference": difference}


def _slowest_rank(straggler: Straggler | None, hosts: tuple[str, ...]) -> dict[str, Any]:
    if straggler is None:
        return {}
    return {
        "slowest_rank": straggler.rank,
        "slowest_host": hosts[straggler.rank],
        "slowest_ratio": straggler.ratio,
    }


def _link(records: Sequence[Record]) -> dict[str, Any]:
    links = [record for record in records if isinstance(record, LinkRecord)]
    if not links:
        return {}
    return {
        "link_latency_ms": links[0].median_ms,
        # The largest size, not the highest bandwidth: a token bucket lets short messages pass faster than any long one.
        "link_bus_gb_per_s": links[-1].bus_gb_per_s,
    }
