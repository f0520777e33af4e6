"""The types of the files that describe a complete run: its identity, its failures and its summary."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Unit, doc

from disttrain.records.figure_sources import (
    CONFIG,
    DEVICE_CLOCK,
    EXCEPTION,
    HOOK,
    LINKS,
    LOOP,
    NVML,
    PACKAGES,
    PLACE,
    RANKS,
    SCRIPT,
    STARTS,
    STEPS,
    SUBMISSION,
    SYSTEM,
    TORCH,
    WALL,
)
from disttrain.records.figures import Figure, InTable, figures_of, summary_figures_of
from disttrain.records.rank_types import RankTelemetry
from disttrain.records.record_types import EndRecord, EvalRecord, StartRecord, TelemetryRecord
from disttrain.records.step_types import StartupRecord, StepTimes
from disttrain.records.timing_types import CrossCheckRecord


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
    code: Annotated[
        dict[str, Any] | None,
        doc(
            "The copy of your code in which the run starts: snapshot is the hash of its files, root the checkout and"
            " folder the copy. If snapshot is null, the run starts the files in place. Null without a sweep."
        ),
        SUBMISSION,
    ] = None

    @property
    def timing_warmup_steps(self) -> int:
        """The number of first steps of each start that are not measured."""
        steps: int = self.train["timing_warmup_steps"]
        return steps

    @property
    def code_hash(self) -> str | None:
        """The hash of the copy of the user's code; None if the run starts the files in place."""
        code = (self.code or {}).get("snapshot")
        return code if isinstance(code, str) else None


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


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What rank 0 does at present: stage.json, which it replaces at each change and removes at its end.

    If the process is killed, the file stays. It says something only about a run that runs.
    """

    stage: Annotated[
        str,
        doc(
            "importing; connecting (the ranks find each other); start check; preparing data; training; evaluating;"
            " saving (a checkpoint, or the trained model); measuring (of a link run); running (of a command)."
        ),
        LOOP,
    ]
    since_s: Annotated[float, Unit("s since 1970"), doc("Time at which it began."), WALL]
    steps: Annotated[int | None, doc("Number of steps in the run; null before training."), LOOP] = None
    host: Annotated[str, doc("Name of the host of rank 0."), SYSTEM]
    pid: Annotated[int, doc("Process id of rank 0."), SYSTEM]
    job_id: Annotated[
        str | None, doc("Id of the Slurm job, or the launcher's id of the run; null without one."), PLACE
    ] = None
    restart_count: Annotated[int, doc("Number of earlier starts of the same job."), PLACE] = 0


# The summary of a run: every figure of SUMMARY_FIGURES by name. A figure that was not measured is None.
Summary = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class RunFigures:
    """The figures of a complete run that follow from several fields, or from the records of several ranks.

    Times cover the measured steps and are null if there are none.
    """

    world_size: Annotated[int, doc("Number of ranks."), PLACE]
    num_nodes: Annotated[int, doc("Number of nodes in the allocation."), PLACE]
    hosts: Annotated[tuple[str, ...], doc("Host of each rank, by rank."), SYSTEM]
    comparable: Annotated[
        bool, doc("False if ranks shared a GPU or all nodes were one host: times are then not comparable."), PLACE
    ]
    measured_steps: Annotated[int, doc("Number of steps after the first timing_warmup_steps of each start."), STEPS]
    samples_per_s: Annotated[
        float | None,
        Unit("1/s"),
        doc("Throughput: examples of all ranks in the measured steps / sum of rank 0's step_ms."),
        STEPS,
        InTable(1),
    ]
    samples_per_s_per_gpu: Annotated[
        float | None, Unit("1/s"), doc("Throughput per rank: samples_per_s / world_size."), STEPS
    ]
    train_loss: Annotated[
        float | None,
        Unit("nats"),
        doc("Mean cross-entropy over the examples of all ranks in the last tenth of the steps."),
        RANKS,
        InTable(4),
    ]
    best_eval_step: Annotated[
        int | None,
        doc("Step of the evaluation with the lowest loss, of equal ones the first; null without a finite loss."),
        LOOP,
    ] = None
    best_eval_loss: Annotated[
        float | None, Unit("nats"), doc("Mean cross-entropy in the evaluation after best_eval_step."), TORCH
    ] = None
    best_eval_accuracy: Annotated[
        float | None,
        Unit("share of 1"),
        doc("Correctly classified examples / eval_examples, in the evaluation after best_eval_step."),
        TORCH,
    ] = None
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
        InTable(7),
    ] = None
    bus_gb_per_s: Annotated[
        float | None,
        Unit("10^9 bytes/s"),
        doc("Bus bandwidth of the exchange: bytes / exchange_ms x 2(n - 1)/n, as nccl-tests defines it."),
        RANKS,
        InTable(7),
    ] = None
    buckets: Annotated[
        tuple[dict[str, float | None], ...] | None,
        doc(
            "For each bucket, in the order in which they were ready: size_bytes; all_reduce_ms (median),"
            " all_reduce_p95_ms, all_reduce_min_ms; algorithm_gb_per_s, bus_gb_per_s."
        ),
        RANKS,
    ] = None
    no_sync_difference: Annotated[
        float | None,
        Unit("share of 1"),
        doc("Relative difference of the cross-check's two estimates: no_sync_exposed_ms / check_exposed_ms - 1."),
        DEVICE_CLOCK,
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
    metrics: Annotated[
        dict[str, dict[str, float | None]] | None,
        doc(
            "Of a run of a command: the numbers that its script logged, by name: last, mean, best, min, max and count."
            " last is null if the last one is not finite; mean, best, min and max are over the finite ones. best is the"
            " lowest if the name says loss, error, perplexity, time or similar, else the highest."
        ),
        SCRIPT,
    ] = None
    gpu_energy_j: Annotated[
        float | None,
        Unit("J"),
        doc(
            "Energy of all GPU boards, each counted once, summed over the starts;"
            " of a start that was resumed, only the part with records; null if the energy of a board is unknown."
        ),
        NVML,
    ]
    mixed_ranks: Annotated[
        tuple[str, ...] | None,
        doc(
            "Fields of the start records in which the ranks differ although the times depend on them, such as"
            " device_name or driver_version; empty if there are none."
        ),
        STARTS,
    ] = None
    mixed_starts: Annotated[
        tuple[str, ...] | None,
        doc(
            "Fields of rank 0's start records in which the starts of a resumed run differ although the times depend on"
            " them; empty if there are none."
        ),
        STARTS,
    ] = None
    leaf_switches: Annotated[
        int | None,
        doc("Number of lowest switches above the nodes, from SLURM_TOPOLOGY_ADDR; null without a topology in Slurm."),
        PLACE,
    ] = None
    notices: Annotated[
        tuple[str, ...], doc("Notices of the start records, and problems that did not end the run."), STEPS
    ]


# The record types with fields that the summary uses, in the order of its figures.
SUMMARISED_TYPES = (
    StartRecord,
    EndRecord,
    StartupRecord,
    StepTimes,
    EvalRecord,
    CrossCheckRecord,
    TelemetryRecord,
    RankTelemetry,
)
SUMMARY_FIGURES: dict[str, Figure] = {
    figure.name: figure
    for figure in (
        *figures_of(RunFigures),
        *itertools.chain.from_iterable(map(summary_figures_of, SUMMARISED_TYPES)),
    )
}
