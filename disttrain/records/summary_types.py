"""What a run leaves as a whole: what it is, why it failed, and what it measured, figure by figure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Unit, doc

from disttrain.records.figure_sources import (
    CONFIG,
    DDP_LOGGER,
    DEVICE_CLOCK,
    EVALS,
    HOOK,
    HOST_CLOCK,
    LINKS,
    LOOP,
    NVML,
    PLACE,
    RANKS,
    STEPS,
    SYSTEM,
    TORCH,
    WALL,
)

# Fields with a default came later: what was written before them can still be read.


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """What a run is: run.json, by rank 0 where a sweep has not written its own before."""

    run_id: Annotated[str, doc("its identity"), CONFIG]
    allocation: Annotated[str, doc("nodes x GPUs per node"), CONFIG]
    nodes: Annotated[int, doc("of the allocation"), CONFIG]
    gpus_per_node: Annotated[int, doc("of the allocation"), CONFIG]
    world_size: Annotated[int, doc("number of ranks"), CONFIG]
    train: Annotated[dict[str, Any], doc("the resolved config"), CONFIG]
    versions: Annotated[dict[str, str], doc("of Python and the libraries"), SYSTEM]


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why one rank ended early, told by itself: failure-rank00000.json. The first in time is the run's reason."""

    rank: Annotated[int, doc("number of the rank"), PLACE]
    host: Annotated[str, doc("name of its host"), SYSTEM]
    time_s: Annotated[float, Unit("s since 1970"), doc("when it failed"), WALL]
    error: Annotated[str, doc("name of the exception's class"), SYSTEM]
    message: Annotated[str, doc("of the exception"), SYSTEM]
    traceback: Annotated[str, doc("of the exception"), SYSTEM]
    user_error: Annotated[bool, doc("the mistake is in the config or the data, not in the program"), SYSTEM]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a finished run measured: summary.json, by rank 0. Times are over the measured steps; none without any."""

    world_size: Annotated[int, doc("number of ranks"), PLACE]
    num_nodes: Annotated[int, doc("of the allocation"), PLACE]
    hosts: Annotated[tuple[str, ...], doc("of each rank, by rank"), SYSTEM]
    device_name: Annotated[str, doc("model of the GPU, or of the CPU"), TORCH]
    backend: Annotated[str | None, doc("nccl or gloo; none for one rank"), TORCH]
    comparable: Annotated[bool, doc("false: ranks shared a GPU, or the nodes were folded onto one host"), PLACE]
    steps: Annotated[int, doc("of the optimizer"), LOOP]
    measured_steps: Annotated[int, doc("those behind the first timing_warmup_steps of each start"), STEPS]
    train_s: Annotated[float, Unit("s"), doc("the training loop without evaluation"), HOST_CLOCK]
    samples_per_s: Annotated[
        float | None, Unit("1/s"), doc("examples of all ranks in the measured steps / sum of their step_ms"), STEPS
    ]
    samples_per_s_per_gpu: Annotated[float | None, Unit("1/s"), doc("samples_per_s / world_size"), STEPS]
    data_ms: Annotated[float | None, Unit("ms"), doc("median of rank 0"), STEPS]
    forward_ms: Annotated[float | None, Unit("ms"), doc("median of rank 0"), STEPS]
    backward_ms: Annotated[float | None, Unit("ms"), doc("median of rank 0"), STEPS]
    optimizer_ms: Annotated[float | None, Unit("ms"), doc("median of rank 0"), STEPS]
    step_ms: Annotated[float | None, Unit("ms"), doc("median of rank 0"), STEPS]
    train_loss: Annotated[
        float | None, Unit("nats"), doc("mean over the examples of the last tenth of the steps, all ranks"), RANKS
    ]
    eval_loss: Annotated[float | None, Unit("nats"), doc("of the last evaluation"), EVALS]
    eval_accuracy: Annotated[float | None, Unit("share of 1"), doc("of the last evaluation"), EVALS]
    eval_examples: Annotated[int | None, doc("of the last evaluation"), EVALS]
    backward_compute_ms: Annotated[
        float | None, Unit("ms"), doc("median of rank 0: backward_ms - exposed_comm_ms"), HOOK
    ] = None
    exposed_comm_ms: Annotated[float | None, Unit("ms"), doc("median of rank 0"), HOOK] = None
    overlapped_comm_ms: Annotated[float | None, Unit("ms"), doc("median of rank 0"), HOOK] = None
    data_p95_ms: Annotated[float | None, Unit("ms"), doc("95th percentile of rank 0, by nearest rank"), STEPS] = None
    data_min_ms: Annotated[float | None, Unit("ms"), doc("minimum of rank 0"), STEPS] = None
    forward_p95_ms: Annotated[float | None, Unit("ms"), doc("95th percentile of rank 0, by nearest rank"), STEPS] = None
    forward_min_ms: Annotated[float | None, Unit("ms"), doc("minimum of rank 0"), STEPS] = None
    backward_p95_ms: Annotated[float | None, Unit("ms"), doc("95th percentile of rank 0, by nearest rank"), STEPS] = (
        None
    )
    backward_min_ms: Annotated[float | None, Unit("ms"), doc("minimum of rank 0"), STEPS] = None
    backward_compute_p95_ms: Annotated[
        float | None, Unit("ms"), doc("95th percentile of rank 0, by nearest rank"), HOOK
    ] = None
    backward_compute_min_ms: Annotated[float | None, Unit("ms"), doc("minimum of rank 0"), HOOK] = None
    exposed_comm_p95_ms: Annotated[
        float | None, Unit("ms"), doc("95th percentile of rank 0, by nearest rank"), HOOK
    ] = None
    exposed_comm_min_ms: Annotated[float | None, Unit("ms"), doc("minimum of rank 0"), HOOK] = None
    overlapped_comm_p95_ms: Annotated[
        float | None, Unit("ms"), doc("95th percentile of rank 0, by nearest rank"), HOOK
    ] = None
    overlapped_comm_min_ms: Annotated[float | None, Unit("ms"), doc("minimum of rank 0"), HOOK] = None
    optimizer_p95_ms: Annotated[float | None, Unit("ms"), doc("95th percentile of rank 0, by nearest rank"), STEPS] = (
        None
    )
    optimizer_min_ms: Annotated[float | None, Unit("ms"), doc("minimum of rank 0"), STEPS] = None
    step_p95_ms: Annotated[float | None, Unit("ms"), doc("95th percentile of rank 0, by nearest rank"), STEPS] = None
    step_min_ms: Annotated[float | None, Unit("ms"), doc("minimum of rank 0"), STEPS] = None
    bucket_count: Annotated[int | None, doc("gradient buckets; of one nothing can be hidden"), HOOK] = None
    exchange_ms: Annotated[
        float | None,
        Unit("ms"),
        doc("all-reduces of a step: median of the time with one under way; of the last 1000 steps"),
        RANKS,
    ] = None
    bus_gb_per_s: Annotated[
        float | None, Unit("10^9 bytes/s"), doc("bytes / exchange_ms x 2(n - 1)/n, as nccl-tests defines it"), RANKS
    ] = None
    buckets: Annotated[
        tuple[dict[str, float], ...] | None,
        doc(
            "size_bytes; all_reduce_ms, its p95 and minimum; algorithm_gb_per_s and bus_gb_per_s, by order of readiness"
        ),
        RANKS,
    ] = None
    check_exposed_ms: Annotated[
        float | None, Unit("ms"), doc("rank 0's cross check: exposed_comm_ms of its passes"), HOOK
    ] = None
    no_sync_exposed_ms: Annotated[
        float | None,
        Unit("ms"),
        doc("the same without an exchange: how much shorter the backward pass is"),
        DEVICE_CLOCK,
    ] = None
    no_sync_difference: Annotated[
        float | None, Unit("share of 1"), doc("no_sync_exposed_ms / check_exposed_ms - 1"), DEVICE_CLOCK
    ] = None
    no_sync_is_check: Annotated[
        bool | None, doc("the two must agree: the exchange takes 3 times the backward pass; else a bound"), HOOK
    ] = None
    ddp_exposed_ms: Annotated[float | None, Unit("ms"), doc("the same, by DDP's logger"), DDP_LOGGER] = None
    slowest_rank: Annotated[
        int | None, doc("whose own work takes longest: data, forward, optimizer, backward if watched"), RANKS
    ] = None
    slowest_host: Annotated[str | None, doc("its host"), SYSTEM] = None
    slowest_ratio: Annotated[
        float | None, doc("median of its own work / median of the others', over the last 1000 steps"), RANKS
    ] = None
    link_latency_ms: Annotated[
        float | None, Unit("ms"), doc("model link: median all-reduce of the smallest size"), LINKS
    ] = None
    link_bus_gb_per_s: Annotated[
        float | None, Unit("10^9 bytes/s"), doc("model link: of the largest size that it carried in its time"), LINKS
    ] = None
    gpu_util_percent: Annotated[float | None, Unit("%"), doc("mean of rank 0's samples"), NVML] = None
    gpu_power_w: Annotated[float | None, Unit("W"), doc("mean of rank 0's samples"), NVML] = None
    gpu_memory_peak_mib: Annotated[float | None, Unit("MiB"), doc("highest of rank 0's samples"), NVML] = None
    gpu_temperature_peak_c: Annotated[float | None, Unit("deg C"), doc("highest of rank 0's samples"), NVML] = None
    gpu_throttle: Annotated[tuple[str, ...] | None, doc("all reasons that rank 0's samples name"), NVML] = None
    gpu_energy_j: Annotated[
        float | None,
        Unit("J"),
        doc("sum over the boards, each once, and over the starts as far as they count; none: one is unknown"),
        NVML,
    ] = None
    gpu_energy_source: Annotated[str | None, doc("counter, or power: rank 0's"), NVML] = None
    process_cpu_percent: Annotated[
        float | None, Unit("%"), doc("mean of rank 0's samples; 100 is one core"), SYSTEM
    ] = None
    process_memory_peak_mib: Annotated[float | None, Unit("MiB"), doc("highest of rank 0's samples"), SYSTEM] = None
    notices: Annotated[
        tuple[str, ...], doc("of the start records, and of what went wrong without ending the run"), STEPS
    ]
