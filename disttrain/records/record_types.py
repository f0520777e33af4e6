"""What a rank writes down while it runs: the types of its records, with unit, meaning and source of every figure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, get_args

from annotated_types import Unit, doc

from disttrain.records.figure_sources import (
    CHECKS,
    DATA,
    DDP_LOGGER,
    DEVICE_CLOCK,
    HOOK,
    HOST_CLOCK,
    LOOP,
    NVML,
    PLACE,
    PSUTIL,
    SYSTEM,
    TORCH,
    WALL,
)

# Fields with a default came later: what was written before them can still be read.


@dataclass(frozen=True, kw_only=True)
class StartRecord:
    """Where and with what one rank started; the first line of its file, and again where a run goes on."""

    kind: ClassVar[str] = "start"
    time_s: Annotated[float, Unit("s since 1970"), doc("when the rank was about to train"), WALL]
    rank: Annotated[int, doc("number of this rank among all"), PLACE]
    world_size: Annotated[int, doc("number of ranks"), PLACE]
    local_rank: Annotated[int, doc("number of this rank on its node"), PLACE]
    node_rank: Annotated[int, doc("number of its node"), PLACE]
    host: Annotated[str, doc("name of the host"), SYSTEM]
    pid: Annotated[int, doc("process id"), SYSTEM]
    job_id: Annotated[str | None, doc("Slurm's job, or the launcher's"), PLACE]
    restart_count: Annotated[int, doc("times that the job was started before"), PLACE]
    first_step: Annotated[int, doc("above 1: goes on from a checkpoint, behind the records of the steps before"), LOOP]
    device: Annotated[str, doc("cpu, cuda:0"), TORCH]
    device_name: Annotated[str, doc("model of the GPU, or of the CPU"), TORCH]
    gpu_uuid: Annotated[str | None, doc("of the GPU, or of its MIG slice; none without one"), TORCH] = None
    backend: Annotated[str | None, doc("nccl or gloo; none for one rank, which exchanges nothing"), TORCH]
    shared_gpu: Annotated[
        bool, doc("another rank of this run has the same GPU: no timing of it can be compared"), TORCH
    ]
    folded: Annotated[bool, doc("every node of the allocation is this one host: no timing can be compared"), PLACE]
    threads: Annotated[int, doc("that torch computes with on the CPU"), TORCH]
    versions: Annotated[dict[str, str], doc("of Python and the libraries"), SYSTEM]
    parameters: Annotated[int, doc("that are trained; of a compact vocabulary the rows of tokens that occur"), TORCH]
    train_examples: Annotated[int, doc("of an epoch"), DATA]
    eval_examples: Annotated[int, doc("of an evaluation"), DATA]
    notices: Annotated[tuple[str, ...], doc("what was decided for the user: held-out split, new head"), DATA]


@dataclass(frozen=True, kw_only=True)
class CheckRecord:
    """One rank beside the others at the start of the run, in rounds that all do at the same time (start_check_s)."""

    kind: ClassVar[str] = "check"
    product_size: Annotated[int, doc("rows and columns of the matrices; fp32 on a CPU, else the precision"), LOOP]
    gflop_per_s: Annotated[
        float, Unit("10^9 operations/s"), doc("2 x product_size^3 / median over the rounds"), HOST_CLOCK
    ]
    best_gflop_per_s: Annotated[
        float, Unit("10^9 operations/s"), doc("2 x product_size^3 / the fastest round"), HOST_CLOCK
    ]
    slowest_rank: Annotated[int | None, doc("with the highest slowest_ratio; none for one rank"), CHECKS]
    slowest_ratio: Annotated[
        float | None, doc("median over the rounds of its product's time / the median of the others'"), CHECKS
    ]
    all_reduce_bytes: Annotated[int | None, Unit("bytes"), doc("that each rank gives; none for one rank"), LOOP]
    all_reduce_ms: Annotated[
        float | None, Unit("ms"), doc("median of the repeats, each on its slowest rank, from a barrier"), CHECKS
    ]
    algorithm_gb_per_s: Annotated[float | None, Unit("10^9 bytes/s"), doc("all_reduce_bytes / all_reduce_ms"), CHECKS]
    bus_gb_per_s: Annotated[float | None, Unit("10^9 bytes/s"), doc("algorithm_gb_per_s x 2(n - 1)/n"), CHECKS]
    elapsed_s: Annotated[float, Unit("s"), doc("for the whole check"), HOST_CLOCK]


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One optimizer step of one rank. Without the exchange that is hidden, its phases add up to the step."""

    kind: ClassVar[str] = "step"
    step: Annotated[int, doc("from 1"), LOOP]
    epoch: Annotated[int, doc("from 0"), LOOP]
    start_s: Annotated[float | None, Unit("s"), doc("when it began, on this host's monotonic clock"), DEVICE_CLOCK] = (
        None
    )
    loss: Annotated[
        float | None,
        Unit("nats"),
        doc("mean cross-entropy over this rank's examples; none: it had none, or it is not finite"),
        TORCH,
    ]
    lr: Annotated[float, doc("learning rate"), LOOP]
    examples: Annotated[int, doc("of this rank; never a padded or repeated one"), LOOP]
    data_ms: Annotated[
        float,
        Unit("ms"),
        doc("wait for the next batch, and its copy to the device; every 5 s also the writing of records"),
        DEVICE_CLOCK,
    ]
    forward_ms: Annotated[float, Unit("ms"), doc("forward passes and losses"), DEVICE_CLOCK]
    backward_ms: Annotated[
        float, Unit("ms"), doc("backward passes; with several ranks also the exchange that they wait for"), DEVICE_CLOCK
    ]
    optimizer_ms: Annotated[float, Unit("ms"), doc("the optimizer's step"), DEVICE_CLOCK]
    step_ms: Annotated[float, Unit("ms"), doc("data_ms + forward_ms + backward_ms + optimizer_ms"), DEVICE_CLOCK]
    exposed_comm_ms: Annotated[
        float | None,
        Unit("ms"),
        doc("of backward_ms: end of the backward pass - its last bucket ready; 0 of one rank; none: not watched"),
        HOOK,
    ] = None
    overlapped_comm_ms: Annotated[
        float | None,
        Unit("ms"),
        doc("union of [ready, done] of all buckets before the last is ready; beside backward_ms"),
        HOOK,
    ] = None


@dataclass(frozen=True, kw_only=True)
class ExchangeRecord:
    """The gradient buckets of one step on one rank, in the order in which they were ready (detailed_timing)."""

    kind: ClassVar[str] = "exchange"
    step: Annotated[int, doc("from 1"), LOOP]
    bucket_bytes: Annotated[tuple[int, ...], Unit("bytes"), doc("that each bucket sends"), HOOK]
    ready_ms: Annotated[
        tuple[float, ...], Unit("ms"), doc("when its gradients were there, from the start of the step"), HOOK
    ]
    done_ms: Annotated[
        tuple[float, ...], Unit("ms"), doc("when their sum over the ranks was there, from the start of the step"), HOOK
    ]


@dataclass(frozen=True, kw_only=True)
class ClockRecord:
    """How far this host's monotonic clock is from rank 0's, before training and behind it (detailed_timing)."""

    kind: ClassVar[str] = "clock"
    at_s: Annotated[float, Unit("s"), doc("when it was found out, by this host's monotonic clock"), HOST_CLOCK]
    offset_s: Annotated[
        float, Unit("s"), doc("(sent + received) / 2 - answered, of the shortest of 20 round trips"), HOST_CLOCK
    ]
    error_s: Annotated[float, Unit("s"), doc("(received - sent) / 2: it is wrong by no more"), HOST_CLOCK]


@dataclass(frozen=True, kw_only=True)
class CrossCheckRecord:
    """The exposed exchange by three estimates, of passes before the first step (detailed_timing); medians."""

    kind: ClassVar[str] = "cross_check"
    passes: Annotated[int, doc("of each kind, on the same batches"), LOOP]
    backward_ms: Annotated[float, Unit("ms"), doc("with the exchange"), DEVICE_CLOCK]
    no_sync_backward_ms: Annotated[float, Unit("ms"), doc("under DDP's no_sync"), DEVICE_CLOCK]
    no_sync_exposed_ms: Annotated[float, Unit("ms"), doc("backward_ms - no_sync_backward_ms"), DEVICE_CLOCK]
    exposed_comm_ms: Annotated[float, Unit("ms"), doc("of the same passes, as in the step records"), HOOK]
    exchange_ms: Annotated[float, Unit("ms"), doc("exposed + hidden"), HOOK]
    is_check: Annotated[
        bool, doc("exchange_ms > 3 x the backward pass, with and without an exchange: only then must they agree"), HOOK
    ]
    ddp_exposed_ms: Annotated[
        float | None, Unit("ms"), doc("backward_comm_time - backward_compute_comm_overlap_time"), DDP_LOGGER
    ]
    elapsed_s: Annotated[float, Unit("s"), doc("that all passes took, before the first step"), HOST_CLOCK]


@dataclass(frozen=True, kw_only=True)
class LinkRecord:
    """An all-reduce of one size with nothing else to do, by rank 0; from a barrier, on the slowest rank."""

    kind: ClassVar[str] = "link"
    size_bytes: Annotated[int, Unit("bytes"), doc("that each rank gives"), LOOP]
    repeats: Annotated[int, doc("that are counted"), LOOP]
    median_ms: Annotated[float, Unit("ms"), doc("of the repeats"), HOST_CLOCK]
    p95_ms: Annotated[float, Unit("ms"), doc("of the repeats"), HOST_CLOCK]
    min_ms: Annotated[float, Unit("ms"), doc("of the repeats"), HOST_CLOCK]
    algorithm_gb_per_s: Annotated[float, Unit("10^9 bytes/s"), doc("size_bytes / median_ms"), HOST_CLOCK]
    bus_gb_per_s: Annotated[float, Unit("10^9 bytes/s"), doc("algorithm_gb_per_s x 2(n - 1)/n"), HOST_CLOCK]


@dataclass(frozen=True, kw_only=True)
class EvalRecord:
    """One evaluation over all ranks; the same numbers on each of them."""

    kind: ClassVar[str] = "eval"
    step: Annotated[int, doc("behind which it was made"), LOOP]
    loss: Annotated[
        float | None, Unit("nats"), doc("mean cross-entropy over all evaluation examples; none: not finite"), TORCH
    ]
    accuracy: Annotated[
        float, Unit("share of 1"), doc("examples whose highest score is their class's / examples"), TORCH
    ]
    examples: Annotated[int, doc("over all ranks, each counted once"), LOOP]
    elapsed_s: Annotated[float, Unit("s"), doc("for the whole evaluation"), HOST_CLOCK]


@dataclass(frozen=True, kw_only=True)
class CheckpointRecord:
    """What became of one checkpoint; rank 0 alone."""

    kind: ClassVar[str] = "checkpoint"
    step: Annotated[int, doc("the last one in it"), LOOP]
    blocked_ms: Annotated[
        float, Unit("ms"), doc("that training waited: the copy, and an earlier write that was not done"), HOST_CLOCK
    ]
    write_s: Annotated[float, Unit("s"), doc("beside the loop"), HOST_CLOCK]
    size_bytes: Annotated[int | None, Unit("bytes"), doc("of the file; none: it has not reached the disk"), SYSTEM]
    error: Annotated[str | None, doc("why it has not"), SYSTEM]


@dataclass(frozen=True, kw_only=True)
class TelemetryRecord:
    """A rank's GPU, or its slice of one, and its host, every so many seconds. What cannot be read is none.

    Of a slice there is what the driver tells of slices: the memory, and of most drivers no more.
    """

    kind: ClassVar[str] = "telemetry"
    time_s: Annotated[float, Unit("s since 1970"), doc("when it was read"), WALL]
    gpu_util_percent: Annotated[
        float | None, Unit("%"), doc("share of the last sample period in which a kernel ran"), NVML
    ] = None
    gpu_memory_used_mib: Annotated[float | None, Unit("MiB"), doc("memory in use, by all processes"), NVML] = None
    gpu_power_w: Annotated[
        float | None, Unit("W"), doc("power drawn by the whole board, whoever else computes on it"), NVML
    ] = None
    gpu_temperature_c: Annotated[float | None, Unit("deg C"), doc("of the chip"), NVML] = None
    gpu_sm_clock_mhz: Annotated[float | None, Unit("MHz"), doc("clock of the multiprocessors"), NVML] = None
    gpu_memory_clock_mhz: Annotated[float | None, Unit("MHz"), doc("clock of the memory"), NVML] = None
    gpu_throttle: Annotated[tuple[str, ...] | None, doc("why its clocks are held down; empty: for no reason"), NVML] = (
        None
    )
    gpu_energy_j: Annotated[
        float | None,
        Unit("J"),
        doc(
            "of the whole board, also of one that ranks share or that has slices, since the first sample:"
            " energy counter, else sum of mean power x time between samples"
        ),
        NVML,
    ] = None
    gpu_energy_source: Annotated[str | None, doc("counter, or power"), NVML] = None
    process_cpu_percent: Annotated[
        float | None,
        Unit("%"),
        doc("CPU time of the rank and its workers / time since the sample before; 100 is one core; none: the first"),
        SYSTEM,
    ] = None
    process_memory_mib: Annotated[
        float | None,
        Unit("MiB"),
        doc("resident set of the rank, mapped files included, its workers not: pages that they share count twice"),
        SYSTEM,
    ] = None
    host_cpu_percent: Annotated[
        float | None, Unit("%"), doc("of all cores of the host, since the sample before; none: the first"), PSUTIL
    ] = None
    host_memory_used_mib: Annotated[float | None, Unit("MiB"), doc("total - available"), PSUTIL] = None
    error: Annotated[
        str | None, doc("why what could be read before could not be now; what is not supported is no error"), SYSTEM
    ] = None


@dataclass(frozen=True, kw_only=True)
class EndRecord:
    """The last line of a rank that came to its end."""

    kind: ClassVar[str] = "end"
    time_s: Annotated[float, Unit("s since 1970"), doc("when training ended"), WALL]
    steps: Annotated[int, doc("of the optimizer"), LOOP]
    train_s: Annotated[
        float, Unit("s"), doc("the training loop without evaluation; of all attempts that it goes on from"), HOST_CLOCK
    ]


Record = (
    StartRecord
    | CheckRecord
    | StepRecord
    | ExchangeRecord
    | ClockRecord
    | CrossCheckRecord
    | LinkRecord
    | EvalRecord
    | CheckpointRecord
    | TelemetryRecord
    | EndRecord
)
KINDS: dict[str, type[Record]] = {kind.kind: kind for kind in get_args(Record)}
