"""The record types that a rank writes while it runs, with the unit, meaning and source of every field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, get_args

from annotated_types import Unit, doc

from disttrain.records.figure_sources import (
    EXCEPTION,
    HOST_CLOCK,
    LOOP,
    NVML,
    PSUTIL,
    SYSTEM,
    TORCH,
    WALL,
)
from disttrain.records.figures import (
    FIRST_OF_SAMPLES,
    InTable,
    last_as,
    mean_of_samples,
    peak_of_samples,
    union_of_samples,
)
from disttrain.records.start_types import StartRecord
from disttrain.records.step_types import StartupRecord, StepRecord
from disttrain.records.timing_types import (
    CheckRecord,
    ClockRecord,
    CrossCheckRecord,
    ExchangeRecord,
    LinkRecord,
)

__all__ = [
    "KINDS",
    "CheckRecord",
    "CheckpointRecord",
    "ClockRecord",
    "CrossCheckRecord",
    "EndRecord",
    "EvalRecord",
    "ExchangeRecord",
    "LinkRecord",
    "Record",
    "StartRecord",
    "StartupRecord",
    "StepRecord",
    "TelemetryRecord",
]

# A field with a default was added later; the default lets older records be read.


@dataclass(frozen=True, kw_only=True)
class EvalRecord:
    """One evaluation over all ranks; every rank writes the same values."""

    kind: ClassVar[str] = "eval"
    step: Annotated[int, doc("Number of the last step before the evaluation."), LOOP]
    loss: Annotated[
        float | None,
        Unit("nats"),
        doc("Mean cross-entropy over all evaluation examples; null if not finite."),
        TORCH,
        last_as("eval_loss", "Mean cross-entropy in the last evaluation; null without one, and if not finite."),
        InTable(6),
    ]
    accuracy: Annotated[
        float,
        Unit("share of 1"),
        doc("Correctly classified examples / examples."),
        TORCH,
        last_as("eval_accuracy", "Correctly classified examples / eval_examples, in the last evaluation."),
        InTable(1),
    ]
    macro_f1: Annotated[
        float | None,
        Unit("share of 1"),
        doc(
            "Mean over the classes of 2 x correct / (predicted + labelled examples); classes that neither labels nor"
            " predictions have do not count. Null in earlier releases."
        ),
        TORCH,
        last_as("eval_macro_f1", "Mean F1 score of the classes, in the last evaluation."),
    ] = None
    examples: Annotated[
        int,
        doc("Number of examples over all ranks, each counted once."),
        LOOP,
        last_as("eval_examples", "Number of examples in the last evaluation, over all ranks."),
    ]
    elapsed_s: Annotated[float, Unit("s"), doc("Duration of the complete evaluation."), HOST_CLOCK]


@dataclass(frozen=True, kw_only=True)
class CheckpointRecord:
    """The outcome of one checkpoint; written by rank 0."""

    kind: ClassVar[str] = "checkpoint"
    step: Annotated[int, doc("Number of the last step in the checkpoint."), LOOP]
    blocked_ms: Annotated[
        float,
        Unit("ms"),
        doc("Time that training waited: for the copy, and for an earlier write that was not complete."),
        HOST_CLOCK,
    ]
    write_s: Annotated[
        float, Unit("s"), doc("Duration of the write in the background, while training continues."), HOST_CLOCK
    ]
    size_bytes: Annotated[int | None, Unit("bytes"), doc("Size of the file; null if the write failed."), SYSTEM]
    error: Annotated[str | None, doc("Reason why the write failed; null if it succeeded."), EXCEPTION]


@dataclass(frozen=True, kw_only=True)
class TelemetryRecord:
    """One sample of a rank's GPU (or MIG slice) and host, every telemetry_every_s seconds.

    A figure that cannot be read is null. For a MIG slice, most drivers report only the memory.
    """

    kind: ClassVar[str] = "telemetry"
    time_s: Annotated[float, Unit("s since 1970"), doc("Time of the sample."), WALL]
    gpu_util_percent: Annotated[
        float | None,
        Unit("%"),
        doc("Share of NVML's last sample period in which a kernel ran."),
        NVML,
        mean_of_samples(),
    ] = None
    gpu_memory_used_mib: Annotated[
        float | None,
        Unit("MiB"),
        doc("GPU memory in use, including that of other processes."),
        NVML,
        peak_of_samples("gpu_memory_peak_mib"),
    ] = None
    gpu_power_w: Annotated[
        float | None,
        Unit("W"),
        doc("Power draw of the complete board, including work of other processes."),
        NVML,
        mean_of_samples(),
    ] = None
    gpu_temperature_c: Annotated[
        float | None,
        Unit("deg C"),
        doc("Temperature of the GPU chip."),
        NVML,
        peak_of_samples("gpu_temperature_peak_c"),
    ] = None
    gpu_sm_clock_mhz: Annotated[float | None, Unit("MHz"), doc("Clock of the GPU's multiprocessors."), NVML] = None
    gpu_memory_clock_mhz: Annotated[float | None, Unit("MHz"), doc("Clock of the GPU's memory."), NVML] = None
    gpu_throttle: Annotated[
        tuple[str, ...] | None,
        doc("Reasons why the GPU's clocks are reduced; empty if there are none."),
        NVML,
        union_of_samples("All reasons for reduced GPU clocks in rank 0's samples; empty if there are none."),
    ] = None
    gpu_energy_j: Annotated[
        float | None,
        Unit("J"),
        doc(
            "Energy of the complete board since the first sample, also if ranks share it or it has MIG slices:"
            " difference of the energy counter; without a counter, sum of mean power x time between samples."
        ),
        NVML,
    ] = None
    gpu_energy_source: Annotated[
        str | None, doc("Method for gpu_energy_j: counter or power."), NVML, FIRST_OF_SAMPLES
    ] = None
    process_cpu_percent: Annotated[
        float | None,
        Unit("%"),
        doc(
            "CPU time of the rank and its data workers / time since the previous sample;"
            " 100 is one core; null in the first sample."
        ),
        SYSTEM,
        mean_of_samples(),
    ] = None
    process_memory_mib: Annotated[
        float | None,
        Unit("MiB"),
        doc(
            "Resident memory of the rank, including mapped files; without its data workers,"
            " because pages that they share would count twice."
        ),
        SYSTEM,
        peak_of_samples("process_memory_peak_mib"),
    ] = None
    host_cpu_percent: Annotated[
        float | None,
        Unit("%"),
        doc("Load of all cores of the host since the previous sample; null in the first sample."),
        PSUTIL,
    ] = None
    host_memory_used_mib: Annotated[
        float | None, Unit("MiB"), doc("Memory in use on the host: total - available."), PSUTIL
    ] = None
    error: Annotated[
        str | None,
        doc("Error of a figure that an earlier sample could read; an unsupported figure is not an error."),
        EXCEPTION,
    ] = None


@dataclass(frozen=True, kw_only=True)
class EndRecord:
    """The last line of a rank that completed its run."""

    kind: ClassVar[str] = "end"
    time_s: Annotated[float, Unit("s since 1970"), doc("Time at which training ended."), WALL]
    steps: Annotated[int, doc("Number of optimizer steps."), LOOP, last_as()]
    train_s: Annotated[
        float,
        Unit("s"),
        doc("Duration of the training loop without evaluations, including the earlier attempts that it resumes."),
        HOST_CLOCK,
        last_as(),
        InTable(5),
    ]


Record = (
    StartRecord
    | CheckRecord
    | StartupRecord
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
