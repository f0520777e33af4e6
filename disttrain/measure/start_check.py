"""The check at the start of a run: every rank must compute rightly, and be as fast as the others."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from disttrain.analysis.bandwidth import algorithm_bandwidth, bus_bandwidth
from disttrain.analysis.straggler import find_slowest
from disttrain.config.train_config import TrainConfig
from disttrain.distributed.device import device_name, gpu_uuid
from disttrain.distributed.group import Group
from disttrain.errors import BrokenNode
from disttrain.measure.all_reduce import synchronize, time_all_reduce
from disttrain.records.record_types import CheckRecord

# A slow rank is found as in training (analysis/straggler.py). Measured in these rounds, on two cores: two equal ranks
# are at most 1.05 times apart, four that share the cores 1.18; a rank that is stopped half of the time, 1.9 to 2.3.
ROUNDS = 8
PRODUCT_SHARE = 0.8  # of the time; the rest is the all-reduces'
ALONE_SHARE = 0.02  # of the time: one rank has nobody to be compared with, and does not keep its user waiting
# Rows and columns. Of 512 a CPU's core has some ms of work, of 4096 any GPU has enough to be busy.
CPU_SIZE, GPU_SIZE = 512, 4096
GPU_BURST = 4  # products that are sent to a GPU before it is waited for
ALL_REDUCE_BYTES = 4 * 2**20
WARM_UP, MAX_REPEATS = 2, 20
PRODUCT, ALL_REDUCE = "a matrix product", "an all-reduce"

Multiply = Callable[..., Any]  # as torch.mm(left, right, out=product)


@dataclass(frozen=True)
class StartCheck:
    """What the check found; nothing where none was asked for."""

    records: tuple[CheckRecord, ...] = ()
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class RankCheck:
    """What one rank found, as it tells the others."""

    place: str  # rank, host and GPU
    product_ms: tuple[float, ...]  # by round
    all_reduce_ms: tuple[float, ...]  # by repeat
    wrong: tuple[str, ...] = ()


def check_start(config: TrainConfig, group: Group, multiply: Multiply = torch.mm) -> StartCheck:
    """Checks the ranks against each other, in about `config.start_check_s`; all ranks call this.

    It draws no random numbers and keeps no memory. One rank, which has nobody to be compared with, does one round.

    Args:
        config: The run's.
        group: The ranks.
        multiply: Writes the product of two matrices into `out`.

    Raises:
        BrokenNode: A rank has a wrong result; on every rank, with the same words.
    """
    if config.start_check_s == 0:
        return StartCheck()
    began_s = time.perf_counter()
    alone = group.backend is None
    round_s = config.start_check_s * (ALONE_SHARE if alone else PRODUCT_SHARE / ROUNDS)
    product_ms, product_right = _time_products(config, group, multiply, round_s, 1 if alone else ROUNDS)
    all_reduce_ms, sum_right = (
        ((), True) if alone else _time_all_reduces(group, config.start_check_s - ROUNDS * round_s)
    )
    wrong = [name for name, right in ((PRODUCT, product_right), (ALL_REDUCE, sum_right)) if not right]
    found = group.gather_objects(RankCheck(_place(group), product_ms, all_reduce_ms, tuple(wrong)))
    if group.device.type == "cuda":
        torch.cuda.empty_cache()  # of the matrices, which training has no use for
    if (complaint := wrong_result_message(found)) is not None:
        raise BrokenNode(complaint)
    record = _record(found, group, time.perf_counter() - began_s)
    rivals = group.shared_gpu or group.env.folded  # ranks that take each other's time are slow by turns
    return StartCheck((record,), () if rivals else slow_notices(found, group.hosts))


def wrong_result_message(found: Sequence[RankCheck]) -> str | None:
    """Who has a wrong result, in one line; a wrong product first, since a wrong sum is seen by ranks that are whole."""
    for name in (PRODUCT, ALL_REDUCE):
        places = [each.place for each in found if name in each.wrong]
        if places:
            return f"{name} of known values has a wrong result on {', '.join(places)}: leave that node out"
    return None


def slow_notices(found: Sequence[RankCheck], hosts: Sequence[str]) -> tuple[str, ...]:
    """Names the rank whose products take clearly and nearly always longer than the others'; mostly nobody."""
    slow = find_slowest([each.product_ms for each in found], ROUNDS)
    if slow is None or not slow.is_slow:
        return ()
    return (
        f"rank {slow.rank} on {hosts[slow.rank]} is slow at the start:"
        f" its matrix product takes {slow.ratio:.1f} times that of the others",
    )


def known_product(size: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Two matrices and their product, which every precision has exactly: (left, right, product), [size, size] each.

    They are outer products, left = r s' and right = (s t) c', so their product is (s . s t) r c' = sum(t) r c'. Signs t
    that cancel but for the first 16 keep every partial sum, in any order of blocks, below what bf16 holds exactly.

    Args:
        size: Even, at least 16.
        dtype: Of all three.
        device: Of all three.
    """
    index = torch.arange(size, device=device)
    rows, columns = (index % 3 + 1).to(dtype), (index % 5 - 2).to(dtype)
    signs = (1 - index % 4 // 2 * 2).to(dtype)
    turns = (1 - index % 2 * 2).to(dtype)
    turns[:16] = 1
    return torch.outer(rows, signs), torch.outer(signs * turns, columns), 16 * torch.outer(rows, columns)


def _time_products(
    config: TrainConfig, group: Group, multiply: Multiply, round_s: float, rounds: int
) -> tuple[tuple[float, ...], bool]:
    """Milliseconds of a product in each round, and whether all that were looked at are right.

    A round lasts as long on every rank, so that ranks which share cores are under the same load all the time; and what
    it counts is all of its time, so that a rank which is stopped now and then is seen too.
    """
    on_gpu = group.device.type == "cuda"
    dtype = torch.bfloat16 if on_gpu and config.precision == "bf16" else torch.float32
    left, right, known = known_product(GPU_SIZE if on_gpu else CPU_SIZE, dtype, group.device)
    product = torch.zeros_like(known)
    burst = GPU_BURST if on_gpu else 1

    def once() -> None:
        for _ in range(burst):
            multiply(left, right, out=product)
        synchronize(group.device)

    once()  # the first one makes threads and handles
    times, is_right = [], torch.equal(product, known)
    for _ in range(rounds):
        product.zero_()
        group.barrier()
        start_s, elapsed_s, count = time.perf_counter(), 0.0, 0
        while elapsed_s < round_s:
            once()
            elapsed_s, count = time.perf_counter() - start_s, count + burst
        times.append(elapsed_s * 1000 / count)
        is_right = is_right and torch.equal(product, known)
    return tuple(times), is_right


def _time_all_reduces(group: Group, budget_s: float) -> tuple[tuple[float, ...], bool]:
    """Milliseconds of each all-reduce on this rank, as many as fit on rank 0, and whether all sums are right."""
    world_size, rank = group.env.world_size, group.env.rank
    pattern = (torch.arange(ALL_REDUCE_BYTES // 4, device=group.device) % 7).float()
    own, known = pattern * (1 + rank % 2), pattern * (world_size + world_size // 2)
    values, is_right = torch.empty_like(own), True

    def once() -> float:
        nonlocal is_right
        values.copy_(own)
        elapsed_ms = time_all_reduce(values, group)
        is_right = is_right and torch.equal(values, known)
        return elapsed_ms

    expected_ms = [once() for _ in range(WARM_UP)][-1]
    repeats = group.broadcast_from_main(int(min(MAX_REPEATS, max(1, budget_s * 1000 / expected_ms))))
    return tuple(once() for _ in range(repeats)), is_right


def _record(found: Sequence[RankCheck], group: Group, elapsed_s: float) -> CheckRecord:
    own, on_gpu = found[group.env.rank], group.device.type == "cuda"
    slow = find_slowest([each.product_ms for each in found], ROUNDS)
    reduced = [max(times) for times in zip(*(each.all_reduce_ms for each in found), strict=True)]
    reduced_ms = statistics.median(reduced) if reduced else None
    size = GPU_SIZE if on_gpu else CPU_SIZE
    giga_operations = 2 * size**3 / 1e9
    return CheckRecord(
        product_size=size,
        gflop_per_s=giga_operations / statistics.median(own.product_ms) * 1000,
        best_gflop_per_s=giga_operations / min(own.product_ms) * 1000,
        slowest_rank=slow.rank if slow else None,
        slowest_ratio=slow.ratio if slow else None,
        all_reduce_bytes=ALL_REDUCE_BYTES if reduced_ms else None,
        all_reduce_ms=reduced_ms,
        algorithm_gb_per_s=algorithm_bandwidth(ALL_REDUCE_BYTES, reduced_ms) if reduced_ms else None,
        bus_gb_per_s=bus_bandwidth(ALL_REDUCE_BYTES, reduced_ms, len(found)) if reduced_ms else None,
        elapsed_s=elapsed_s,
    )


def _place(group: Group) -> str:
    uuid = gpu_uuid(group.device)
    gpu = f" ({device_name(group.device)}, {uuid})" if uuid else ""
    return f"rank {group.env.rank} on {group.hosts[group.env.rank]}{gpu}"
