"""How runs scale: the speed of a run as a share of that of a smaller run, its baseline."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from disttrain.config.train_config import DEFAULT_PER_GPU_BATCH, LINK
from jobs.planning.allocation import Allocation
from jobs.results.comparability import differences
from jobs.results.result import Result

ONE_GPU = "1x1"
_BATCH_FIELDS: tuple[str, ...] = ("per_gpu_batch", "global_batch")


@dataclass(frozen=True)
class Batch:
    """The batch of a run.

    Attributes:
        key: What decides it: the name of the argument of a script, or of a field of ours.
        per_rank: The number of examples of one rank in an optimizer step.
        of_all: The number of examples of all ranks in an optimizer step.
    """

    key: str
    per_rank: float
    of_all: float


@dataclass(frozen=True)
class _Way:
    """One way to compare a run with a smaller one.

    Attributes:
        name: The start of its columns, and what a reason calls it.
        figure: The column of the ratio.
        is_baseline: Whether the second row may be the baseline of the first, by their allocations.
        same_batch: Whether the batches of a row and its baseline agree.
        needed: The baseline in words.
        per_gpu: Whether the ratio is of speeds per GPU: the baseline has fewer ranks.
    """

    name: str
    figure: str
    is_baseline: Callable[[Allocation, Allocation], bool]
    same_batch: Callable[[Batch, Batch], bool]
    needed: str
    per_gpu: bool = True


def _same_per_rank(batch: Batch, other: Batch) -> bool:
    return batch.per_rank == other.per_rank


def _same_of_all(batch: Batch, other: Batch) -> bool:
    return batch.of_all == other.of_all


def _is_one_gpu(own: Allocation, other: Allocation) -> bool:
    return own.world_size > 1 and other.world_size == 1


def _crosses(own: Allocation, other: Allocation) -> bool:
    return own.nodes > 1 and other.nodes == 1 and own.world_size == other.world_size


_WAYS = (
    _Way("weak", "weak_efficiency", _is_one_gpu, _same_per_rank, f"a {ONE_GPU} run with the same batch of one rank"),
    _Way("strong", "strong_efficiency", _is_one_gpu, _same_of_all, f"a {ONE_GPU} run with the same batch of all ranks"),
    _Way("crossing", "crossing_ratio", _crosses, _same_per_rank, "a run on one node with as many GPUs", per_gpu=False),
)


def with_scaling(rows: Sequence[Result]) -> tuple[Result, ...]:
    """The rows, each with its three ratios, their baselines, and why a ratio is missing.

    A row and its baseline have the same config, seed and dataset, but for the batch; and nothing on which their times
    depend differs. Rows on one GPU, of model link, without a speed, or that were dropped get no ratio.
    """
    measured = [row for row in rows if _has_speed(row)]
    by_config: dict[Hashable, list[Result]] = {}
    for row in measured:
        by_config.setdefault(_values_without_batch(row), []).append(row)
    scaled = {row.run_id: _scale(row, by_config[_values_without_batch(row)]) for row in measured}
    return tuple(row.with_figures(**scaled.get(row.run_id, {})) for row in rows)


def _has_speed(row: Result) -> bool:
    if row.dropped or (not row.is_command and row.config.get("model") == LINK):
        return False
    return bool(row.figures.get("samples_per_s")) and row.state.is_success


def _scale(row: Result, candidates: Sequence[Result]) -> dict[str, Any]:
    """The columns of one row, by the measured rows of the same config."""
    own, batch = Allocation.parse(row.requested.allocation), batch_of(row)
    columns: dict[str, Any] = {}
    reasons: list[str] = []
    for way in _WAYS:
        if not _applies(way, own):
            continue
        if batch is None:
            reasons.append(f"{way.name}: {_unknown_batch(row)}")
            continue
        baseline, reason = _baseline(way, row, batch, candidates)
        if baseline is None:
            reasons.append(f"{way.name}: {reason}")
            continue
        ratio = row.figures["samples_per_s"] / baseline.figures["samples_per_s"]
        columns[way.figure] = ratio / own.world_size if way.per_gpu else ratio
        columns[f"{way.name}_baseline"] = baseline.run_id
    if reasons:
        columns["scaling_note"] = "; ".join(reasons)
    return columns


def _applies(way: _Way, own: Allocation) -> bool:
    if way.per_gpu:
        return own.world_size > 1
    return own.nodes > 1


def _baseline(way: _Way, row: Result, batch: Batch, candidates: Sequence[Result]) -> tuple[Result | None, str]:
    """The first sound baseline of a row, or the reason why there is none."""
    own, reason = Allocation.parse(row.requested.allocation), f"the sweep has not measured {way.needed}"
    for other in candidates:
        other_batch = batch_of(other)
        if other_batch is None or not way.is_baseline(own, Allocation.parse(other.requested.allocation)):
            continue
        if not way.same_batch(batch, other_batch):
            continue
        differing = differences(row, other)
        if not differing:
            return other, ""
        reason = f"not comparable with {other.run_id}: {', '.join(differing)}"
    return None, reason


def batch_of(row: Result) -> Batch | None:
    """The batch of a row; None for a script none or several of whose arguments have `batch` in their name.

    The argument of a script counts the examples of one rank, unless `global` or `total` is in its name.
    """
    world_size = row.requested.world_size
    if row.is_command:
        keys = _batch_arguments(row.config)
        if len(keys) != 1:
            return None
        value = row.config[keys[0]]
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        if any(word in keys[0].lower() for word in ("global", "total")):
            return Batch(keys[0], value / world_size, value)
        return Batch(keys[0], value, value * world_size)
    if (of_all := row.config.get("global_batch")) is not None:
        return Batch("global_batch", of_all / world_size, of_all)
    per_rank = (row.config.get("per_gpu_batch") or DEFAULT_PER_GPU_BATCH) * (row.config.get("grad_accum_steps") or 1)
    return Batch("per_gpu_batch", per_rank, per_rank * world_size)


def _batch_arguments(config: Mapping[str, Any]) -> list[str]:
    return [name for name in config if name != "command" and "batch" in name.lower()]


def _unknown_batch(row: Result) -> str:
    names = _batch_arguments(row.config)
    if not names:
        return "no argument of the script has 'batch' in its name"
    if len(names) == 1:
        return f"{names[0]} is not a number"
    return f"several arguments may be the batch: {', '.join(names)}"


def _values_without_batch(row: Result) -> tuple[tuple[str, str], ...]:
    """What tells a row from the others of its sweep, without what decides its batch.

    The fields that do not vary are equal in all rows, so they are left out: a sweep may have thousands of rows.
    """
    hidden = _BATCH_FIELDS
    if row.is_command:
        hidden = tuple(_batch_arguments(row.config))
    return tuple((name, repr(value)) for name, value in row.varied.items() if name not in hidden)
