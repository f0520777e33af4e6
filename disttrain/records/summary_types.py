"""The types of the files that describe a complete run: its identity, its failures and its summary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import DocInfo, Unit, doc

from disttrain.records.figure_sources import (
    CONFIG,
    DDP_LOGGER,
    DEVICE_CLOCK,
    EVALS,
    EXCEPTION,
    HOOK,
    HOST_CLOCK,
    LINKS,
    LOOP,
    NVML,
    PACKAGES,
    PLACE,
    RANKS,
    STEPS,
    SYSTEM,
    TORCH,
    WALL,
)


def _median(figure: str) -> DocInfo:
    return doc(f"{figure}: median over rank 0's measured steps.")


def _p95(name: str) -> DocInfo:
    return doc(f"95th percentile of {name} over rank 0's measured steps, by nearest rank.")


def _minimum(name: str) -> DocInfo:
    return doc(f"Minimum of {name} over rank 0's measured steps.")


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """The identity of a run: run.json, written by rank 0 unless a sweep has already written its own."""

    run_id: Annotated[str, doc("Id of the run."), CONFIG]
    allocation: Annotated[str, doc("Number of nodes x number of GPUs per node, for example 2x4."), CONFIG]
    nodes: Annotated[int, doc("Number of nodes in the allocation."), CONFIG]
    gpus_per_node: Annotated[int, doc("Number of GPUs per node in the allocation."), CONFIG]
    world_size: Annotated[int, doc("Number of ranks."), CONFIG]
    train: Annotated[dict[str, Any], doc("The resolved config."), CONFIG]
    versions: Annotated[dict[str, str], doc("Versions of Python and of the libraries."), PACKAGES]


@dataclass(frozen=True, kw_only=True)
class Failure:
    """The failure of one rank, written by that rank: failure-rank00000.json.

    The failure with the earliest time_s is reported as the reason of the run.
    """

    rank: Annotated[int, doc("The rank that failed."), PLACE]
    host: Annotated[str, doc("Name of its host."), SYSTEM]
    time_s: Annotated[float, Unit("s since 1970"), doc("Time of the failure."), WALL]
    error: Annotated[str, doc("Class name of the exception."), EXCEPTION]
    message: Annotated[str, doc("Message of the exception."), EXCEPTION]
    traceback: Annotated[str, doc("Traceback of the exception."), EXCEPTION]
    user_error: Annotated[bool, doc("True if the mistake is in the config or the data, not in the program."), EXCEPTION]


# A field with a default was added later; the default lets older files be read.
@dataclass(frozen=True, kw_only=True)
class Summary:
    """The measurements of a complete run: summary.json, written by rank 0.

    Times cover the measured steps and are null if there are none. GPU and process figures cover rank 0's samples of the
    last start, without the one before the first step.
    """

    world_size: Annotated[int, doc("Number of ranks."), PLACE]
    num_nodes: Annotated[int, doc("Number of nodes in the allocation."), PLACE]
    hosts: Annotated[tuple[str, ...], doc("Host of each rank, by rank."), SYSTEM]
    device_name: Annotated[str, doc("Model of the GPU, or of the CPU."), TORCH]
    backend: Annotated[str | None, doc("Communication backend, nccl or gloo; null with one rank."), TORCH]
    comparable: Annotated[
        bool, doc("False if ranks shared a GPU or all nodes were one host: times are then not comparable."), PLACE
    ]
    steps: Annotated[int, doc("Number of optimizer steps."), LOOP]
    measured_steps: Annotated[int, doc("Number of steps after the first timing_warmup_steps of each start."), STEPS]
    train_s: Annotated[float, Unit("s"), doc("Duration of the training loop without evaluations."), HOST_CLOCK]
    samples_per_s: Annotated[
        float | None,
        Unit("1/s"),
        doc("Throughput: examples of all ranks in the measured steps / sum of rank 0's step_ms."),
        STEPS,
    ]
    samples_per_s_per_gpu: Annotated[
        float | None, Unit("1/s"), doc("Throughput per rank: samples_per_s / world_size."), STEPS
    ]
    data_ms: Annotated[float | None, Unit("ms"), _median("Wait for the next batch and its copy to the device"), STEPS]
    forward_ms: Annotated[float | None, Unit("ms"), _median("Forward passes, including the losses"), STEPS]
    backward_ms: Annotated[
        float | None, Unit("ms"), _median("Backward passes, including the communication that they wait for"), STEPS
    ]
    optimizer_ms: Annotated[float | None, Unit("ms"), _median("Optimizer step"), STEPS]
    step_ms: Annotated[float | None, Unit("ms"), _median("Complete step"), STEPS]
    train_loss: Annotated[
        float | None,
        Unit("nats"),
        doc("Mean cross-entropy over the examples of all ranks in the last tenth of the steps."),
        RANKS,
    ]
    eval_loss: Annotated[
        float | None, Unit("nats"), doc("Mean cross-entropy in the last evaluation; null without an evaluation."), EVALS
    ]
    eval_accuracy: Annotated[
        float | None,
        Unit("share of 1"),
        doc("Correctly classified examples / eval_examples, in the last evaluation."),
        EVALS,
    ]
    eval_examples: Annotated[int | None, doc("Number of examples in the last evaluation, over all ranks."), EVALS]
    backward_compute_ms: Annotated[
        float | None,
        Unit("ms"),
        _median("Backward pass without the wait for communication, backward_ms - exposed_comm_ms"),
        HOOK,
    ] = None
    exposed_comm_ms: Annotated[
        float | None, Unit("ms"), _median("The part of backward_ms that waits for communication"), HOOK
    ] = None
    overlapped_comm_ms: Annotated[
        float | None, Unit("ms"), _median("The communication that overlaps backward computation"), HOOK
    ] = None
    data_p95_ms: Annotated[float | None, Unit("ms"), _p95("data_ms"), STEPS] = None
    data_min_ms: Annotated[float | None, Unit("ms"), _minimum("data_ms"), STEPS] = None
    forward_p95_ms: Annotated[float | None, Unit("ms"), _p95("forward_ms"), STEPS] = None
    forward_min_ms: Annotated[float | None, Unit("ms"), _minimum("forward_ms"), STEPS] = None
    backward_p95_ms: Annotated[float | None, Unit("ms"), _p95("backward_ms"), STEPS] = None
    backward_min_ms: Annotated[float | None, Unit("ms"), _minimum("backward_ms"), STEPS] = None
    backward_compute_p95_ms: Annotated[float | None, Unit("ms"), _p95("backward_compute_ms"), HOOK] = None
    backward_compute_min_ms: Annotated[float | None, Unit("ms"), _minimum("backward_compute_ms"), HOOK] = None
    exposed_comm_p95_ms: Annotated[float | None, Unit("ms"), _p95("exposed_comm_ms"), HOOK] = None
    exposed_comm_min_ms: Annotated[float | None, Unit("ms"), _minimum("exposed_comm_ms"), HOOK] = None
    overlapped_comm_p95_ms: Annotated[float | None, Unit("ms"), _p95("overlapped_comm_ms"), HOOK] = None
    overlapped_comm_min_ms: Annotated[float | None, Unit("ms"), _minimum("overlapped_comm_ms"), HOOK] = None
    optimizer_p95_ms: Annotated[float | None, Unit("ms"), _p95("optimizer_ms"), STEPS] = None
    optimizer_min_ms: Annotated[float | None, Unit("ms"), _minimum("optimizer_ms"), STEPS] = None
    step_p95_ms: Annotated[float | None, Unit("ms"), _p95("step_ms"), STEPS] = None
    step_min_ms: Annotated[float | None, Unit("ms"), _minimum("step_ms"), STEPS] = None
    bucket_count: Annotated[
        int | None, doc("Number of gradient buckets; with one bucket no communication can overlap."), HOOK
    ] = None
    exchange_ms: Annotated[
        float | None,
        Unit("ms"),
        doc(
            "Time of a step with at least one bucket's all-reduce in progress,"
            " median over the last 1000 measured steps."
        ),
        RANKS,
    ] = None
    bus_gb_per_s: Annotated[
        float | None,
        Unit("10^9 bytes/s"),
        doc("Bus bandwidth of the exchange: bytes / exchange_ms x 2(n - 1)/n, as nccl-tests defines it."),
        RANKS,
    ] = None
    buckets: Annotated[
        tuple[dict[str, float], ...] | None,
        doc(
            "For each bucket, in the order in which they were ready: size_bytes; all_reduce_ms (median),"
            " all_reduce_p95_ms, all_reduce_min_ms; algorithm_gb_per_s, bus_gb_per_s."
        ),
        RANKS,
    ] = None
    check_exposed_ms: Annotated[
        float | None,
        Unit("ms"),
        doc("Exposed communication in rank 0's cross-check passes, by the bucket times."),
        HOOK,
    ] = None
    no_sync_exposed_ms: Annotated[
        float | None,
        Unit("ms"),
        doc("The same estimate by no_sync: the amount by which the backward pass is shorter without the exchange."),
        DEVICE_CLOCK,
    ] = None
    no_sync_difference: Annotated[
        float | None,
        Unit("share of 1"),
        doc("Relative difference of the two estimates: no_sync_exposed_ms / check_exposed_ms - 1."),
        DEVICE_CLOCK,
    ] = None
    no_sync_is_check: Annotated[
        bool | None,
        doc(
            "True if the exchange takes over 3 times as long as the backward pass, so that both must agree;"
            " if false, no_sync_exposed_ms is only a bound."
        ),
        HOOK,
    ] = None
    ddp_exposed_ms: Annotated[
        float | None,
        Unit("ms"),
        doc("The same estimate by DDP's logger; null if this torch does not log it."),
        DDP_LOGGER,
    ] = None
    slowest_rank: Annotated[
        int | None,
        doc(
            "The rank whose own work takes longest: data, forward, optimizer, and backward computation if measured;"
            " null with one rank."
        ),
        RANKS,
    ] = None
    slowest_host: Annotated[str | None, doc("Host of slowest_rank."), SYSTEM] = None
    slowest_ratio: Annotated[
        float | None,
        doc("Own work of slowest_rank / median own work of the other ranks, median over the last 1000 measured steps."),
        RANKS,
    ] = None
    link_latency_ms: Annotated[
        float | None, Unit("ms"), doc("Model link: median all-reduce time of the smallest size."), LINKS
    ] = None
    link_bus_gb_per_s: Annotated[
        float | None,
        Unit("10^9 bytes/s"),
        doc("Model link: bus bandwidth of the largest size that was measured in the available time."),
        LINKS,
    ] = None
    gpu_util_percent: Annotated[
        float | None,
        Unit("%"),
        doc("Share of time in which a kernel ran on the GPU, as NVML measures it: mean over rank 0's samples."),
        NVML,
    ] = None
    gpu_power_w: Annotated[
        float | None, Unit("W"), doc("Power draw of the complete GPU board: mean over rank 0's samples."), NVML
    ] = None
    gpu_memory_peak_mib: Annotated[
        float | None,
        Unit("MiB"),
        doc("GPU memory in use, including that of other processes: maximum over rank 0's samples."),
        NVML,
    ] = None
    gpu_temperature_peak_c: Annotated[
        float | None, Unit("deg C"), doc("Temperature of the GPU chip: maximum over rank 0's samples."), NVML
    ] = None
    gpu_throttle: Annotated[
        tuple[str, ...] | None,
        doc("All reasons for reduced GPU clocks in rank 0's samples; empty if there are none."),
        NVML,
    ] = None
    gpu_energy_j: Annotated[
        float | None,
        Unit("J"),
        doc(
            "Energy of all GPU boards, each counted once, summed over the starts;"
            " of a start that was resumed, only the part with records; null if the energy of a board is unknown."
        ),
        NVML,
    ] = None
    gpu_energy_source: Annotated[str | None, doc("Method for gpu_energy_j on rank 0: counter or power."), NVML] = None
    process_cpu_percent: Annotated[
        float | None,
        Unit("%"),
        doc("CPU load of the rank and its data workers: mean over rank 0's samples; 100 is one core."),
        SYSTEM,
    ] = None
    process_memory_peak_mib: Annotated[
        float | None, Unit("MiB"), doc("Resident memory of the rank: maximum over rank 0's samples."), SYSTEM
    ] = None
    notices: Annotated[
        tuple[str, ...], doc("Notices of the start records, and problems that did not end the run."), STEPS
    ]
