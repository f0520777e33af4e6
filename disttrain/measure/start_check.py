"""The check at the start of a run: every rank must compute correctly, and a slow rank is reported."""

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

# A slow rank is found as in training (analysis/straggler.py). Ratios measured with these rounds on two cores: two equal
# ranks at most 1.05; four ranks that share the cores 1.18; a rank that is stopped half of the time 1.9 to 2.3.
ROUNDS = 8
PRODUCT_SHARE = 0.8  # share of the time for matrix products; the rest is for all-reduces
SINGLE_RANK_SHARE = 0.02  # share of the time with one rank: there is nothing to compare, so the user should not wait
# Rows and columns of the matrices. 512 give a CPU core some ms of work; 4096 keep any GPU busy.
CPU_SIZE, GPU_SIZE = 512, 4096
GPU_BURST = 4  # products that are queued on a GPU before the host waits
ALL_REDUCE_BYTES = 4 * 2**20
WARM_UP, MAX_REPEATS = 2, 20
PRODUCT, ALL_REDUCE = "a matrix product", "an all-reduce"

Multiply = Callable[..., Any]  # called like torch.mm(left, right, out=product)


@dataclass(frozen=True)
class StartCheck:
    """The results of the check; empty if it is disabled."""

    records: tuple[CheckRecord, ...] = ()
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class RankCheck:
    """The results of one rank, as they are sent to the other ranks."""

    place: str  # rank, host and GPU, as text
    product_ms: tuple[float, ...]  # one value per round
    all_reduce_ms: tuple[float, ...]  # one value per repeat
    wrong: tuple[str, ...] = ()  # the operations with a wrong result: PRODUCT, ALL_REDUCE


def check_start(config: TrainConfig, group: Group, multiply: Multiply = torch.mm) -> StartCheck:
    """Compares the ranks with each other, in about `config.start_check_s` seconds; all ranks call this.

    It draws no random numbers and frees its memory. A single rank has nothing to compare with and does one round.

    Args:
        config: The run's config.
        group: The ranks.
        multiply: A function that writes the product of two matrices into `out`.

    Raises:
        BrokenNode: A rank has a wrong result. Every rank raises it with the same message.
    """
    if config.start_check_s == 0:
        return StartCheck()
    began_s = time.perf_counter()
    checks = group.gather_objects(check_rank(config, group, multiply))
    if group.device.type == "cuda":
        torch.cuda.empty_cache()  # frees the matrices, which training does not need
    if (message := wrong_result_message(checks)) is not None:
        raise BrokenNode(message)
    record = _record(checks, group, time.perf_counter() - began_s)
    if group.shared_gpu or group.env.folded:  # ranks that compete for the same device are slow at different times
        return StartCheck((record,))
    return StartCheck((record,), slow_notices(checks, group.hosts))


def wrong_result_message(checks: Sequence[RankCheck]) -> str | None:
    """One line that names the ranks with a wrong result; None if there are none.

    A wrong product is reported first, because intact ranks also see the wrong sum of a broken one.
    """
    for name in (PRODUCT, ALL_REDUCE):
        places = [check.place for check in checks if name in check.wrong]
        if places:
            return f"{name} of known values has a wrong result on {', '.join(places)}: exclude that node"
    return None


def slow_notices(checks: Sequence[RankCheck], hosts: Sequence[str]) -> tuple[str, ...]:
    """A notice if the products of one rank take clearly longer than those of the others, in nearly all rounds."""
    slowest = find_slowest([check.product_ms for check in checks], ROUNDS)
    if slowest is None or not slowest.is_slow:
        return ()
    return (
        f"rank {slowest.rank} on {hosts[slowest.rank]} is slow at the start:"
        f" its matrix product takes {slowest.ratio:.1f} times as long as on the other ranks",
    )


def known_product(size: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Two matrices and their product, all exact in every precision: (left, right, product), [size, size] each.

    Both are outer products, left = r s' and right = (s t) c', so their product is (s . s t) r c' = sum(t) r c'. The
    signs t cancel except for the first 16. Every partial sum, in any order of blocks, is therefore exact in bf16.

    Args:
        size: The number of rows and columns; even, at least 16.
        dtype: The dtype of the three matrices.
        device: The device of the three matrices.
    """
    index = torch.arange(size, device=device)
    rows, columns = (index % 3 + 1).to(dtype), (index % 5 - 2).to(dtype)
    signs = (1 - index % 4 // 2 * 2).to(dtype)
    canceling = (1 - index % 2 * 2).to(dtype)
    canceling[:16] = 1
    return torch.outer(rows, signs), torch.outer(signs * canceling, columns), 16 * torch.outer(rows, columns)


def check_rank(config: TrainConfig, group: Group, multiply: Multiply = torch.mm) -> RankCheck:
    """The results of this rank, in about `config.start_check_s` seconds; all ranks call this."""
    all_reduce_ms: tuple[float, ...] = ()
    sum_correct = True
    if group.backend is None:
        round_s = config.start_check_s * SINGLE_RANK_SHARE
        product_ms, product_correct = _time_products(config, group, multiply, round_s, 1)
    else:
        round_s = config.start_check_s * (PRODUCT_SHARE / ROUNDS)
        product_ms, product_correct = _time_products(config, group, multiply, round_s, ROUNDS)
        all_reduce_ms, sum_correct = _time_all_reduces(group, config.start_check_s - ROUNDS * round_s)
    wrong = [name for name, correct in ((PRODUCT, product_correct), (ALL_REDUCE, sum_correct)) if not correct]
    return RankCheck(_place(group), product_ms, all_reduce_ms, tuple(wrong))


def _time_products(
    config: TrainConfig, group: Group, multiply: Multiply, round_s: float, rounds: int
) -> tuple[tuple[float, ...], bool]:
    """The mean time of a product in each round, in milliseconds, and whether all compared products are correct.

    A round has the same duration on every rank, so that ranks that share cores have the same load all the time. All of
    its time counts, so that a rank that is stopped from time to time is noticed too.
    """
    dtype, burst = torch.float32, 1
    if group.device.type == "cuda":
        burst = GPU_BURST
        if config.precision == "bf16":
            dtype = torch.bfloat16
    left, right, known = known_product(_product_size(group.device), dtype, group.device)
    product = torch.zeros_like(known)

    def multiply_burst() -> None:
        for _ in range(burst):
            multiply(left, right, out=product)
        synchronize(group.device)

    multiply_burst()  # a warm-up: it creates threads and handles
    times, correct = [], torch.equal(product, known)
    for _ in range(rounds):
        product.zero_()
        group.barrier()
        start_s, elapsed_s, count = time.perf_counter(), 0.0, 0
        while elapsed_s < round_s:
            multiply_burst()
            elapsed_s, count = time.perf_counter() - start_s, count + burst
        times.append(elapsed_s * 1000 / count)
        correct = correct and torch.equal(product, known)
    return tuple(times), correct


def _time_all_reduces(group: Group, budget_s: float) -> tuple[tuple[float, ...], bool]:
    """The time of each all-reduce on this rank, in milliseconds, and whether all sums are correct.

    Rank 0 decides how many all-reduces fit into the time.
    """
    world_size, rank = group.env.world_size, group.env.rank
    pattern = (torch.arange(ALL_REDUCE_BYTES // 4, device=group.device) % 7).float()
    own, known = pattern * (1 + rank % 2), pattern * (world_size + world_size // 2)
    values, correct = torch.empty_like(own), True

    def reduce_once() -> float:
        nonlocal correct
        values.copy_(own)
        elapsed_ms = time_all_reduce(values, group)
        correct = correct and torch.equal(values, known)
        return elapsed_ms

    expected_ms = [reduce_once() for _ in range(WARM_UP)][-1]
    repeats = group.broadcast_from_main(int(min(MAX_REPEATS, max(1, budget_s * 1000 / expected_ms))))
    return tuple(reduce_once() for _ in range(repeats)), correct


def _record(checks: Sequence[RankCheck], group: Group, elapsed_s: float) -> CheckRecord:
    product_ms = checks[group.env.rank].product_ms
    slowest_rank = slowest_ratio = None
    if (slowest := find_slowest([check.product_ms for check in checks], ROUNDS)) is not None:
        slowest_rank, slowest_ratio = slowest.rank, slowest.ratio
    size = _product_size(group.device)
    giga_operations = product_gflop(group.device)
    return CheckRecord(
        product_size=size,
        gflop_per_s=giga_operations / statistics.median(product_ms) * 1000,
        best_gflop_per_s=giga_operations / min(product_ms) * 1000,
        slowest_rank=slowest_rank,
        slowest_ratio=slowest_ratio,
        **_all_reduce_figures(checks),
        elapsed_s=elapsed_s,
    )


def _all_reduce_figures(checks: Sequence[RankCheck]) -> dict[str, Any]:
    """The all-reduce fields of the record: None with one rank."""
    slowest_ms = [max(times) for times in zip(*(check.all_reduce_ms for check in checks), strict=True)]
    if not slowest_ms:
        return dict.fromkeys(("all_reduce_bytes", "all_reduce_ms", "algorithm_gb_per_s", "bus_gb_per_s"))
    median_ms = statistics.median(slowest_ms)
    return {
        "all_reduce_bytes": ALL_REDUCE_BYTES,
        "all_reduce_ms": median_ms,
        "algorithm_gb_per_s": algorithm_bandwidth(ALL_REDUCE_BYTES, median_ms),
        "bus_gb_per_s": bus_bandwidth(ALL_REDUCE_BYTES, median_ms, len(checks)),
    }


def product_gflop(device: torch.device) -> float:
    """The operations of one product on a device, in 10^9."""
    return 2 * _product_size(device) ** 3 / 1e9


def _product_size(device: torch.device) -> int:
    if device.type == "cuda":
        return GPU_SIZE
    return CPU_SIZE


def _place(group: Group) -> str:
    place = f"rank {group.env.rank} on {group.hosts[group.env.rank]}"
    if uuid := gpu_uuid(group.device):
        place += f" ({device_name(group.device)}, {uuid})"
    return place
