"""The record types of a rank's start and of its steps, with the unit, meaning and source of every field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Unit, doc

from disttrain.records.figure_sources import DEVICE_CLOCK, HOOK, LOOP, PROCESS, TORCH
from disttrain.records.figures import OVER_STEPS, SLOWEST_RANK, InTable


@dataclass(frozen=True, kw_only=True)
class StartupRecord:
    """The time that a rank takes to start, written with the first steps of each start; a link run has no steps."""

    kind: ClassVar[str] = "startup"
    import_s: Annotated[
        float,
        Unit("s"),
        doc("Time from the start of the process to the end of its imports."),
        PROCESS,
        SLOWEST_RANK,
    ]
    time_to_first_step_s: Annotated[
        float | None,
        Unit("s"),
        doc("Time from the start of the process to the end of its first step; null if it trains no step."),
        PROCESS,
        SLOWEST_RANK,
        InTable(6),
    ]


@dataclass(frozen=True, kw_only=True)
class StepTimes:
    """The times of one optimizer step of one rank, summed over its gradient accumulation.

    Four phases add up to step_ms: data, forward, backward and optimizer. exposed_comm_ms is part of backward_ms.
    overlapped_comm_ms is communication during computation, so it adds nothing to step_ms.
    """

    start_s: Annotated[
        float | None, Unit("s"), doc("Time at which the step began, on this host's monotonic clock."), DEVICE_CLOCK
    ] = None
    data_ms: Annotated[
        float,
        Unit("ms"),
        doc("Wait for the next batch and its copy to the device; every 5 s also the writing of records."),
        DEVICE_CLOCK,
        OVER_STEPS,
    ]
    forward_ms: Annotated[
        float, Unit("ms"), doc("Forward passes, including the losses."), DEVICE_CLOCK, OVER_STEPS, InTable(4)
    ]
    backward_ms: Annotated[
        float,
        Unit("ms"),
        doc("Backward passes, including the communication that they wait for."),
        DEVICE_CLOCK,
        OVER_STEPS,
        InTable(4),
    ]
    optimizer_ms: Annotated[float, Unit("ms"), doc("Optimizer step."), DEVICE_CLOCK, OVER_STEPS]
    step_ms: Annotated[
        float,
        Unit("ms"),
        doc("Complete step: data_ms + forward_ms + backward_ms + optimizer_ms."),
        DEVICE_CLOCK,
        OVER_STEPS,
        InTable(3),
    ]
    exposed_comm_ms: Annotated[
        float | None,
        Unit("ms"),
        doc(
            "The part of backward_ms that waits for communication: end of backward minus last bucket ready."
            " 0 with one rank, null if not measured."
        ),
        HOOK,
        OVER_STEPS,
        InTable(5),
    ] = None
    overlapped_comm_ms: Annotated[
        float | None,
        Unit("ms"),
        doc(
            "The communication that overlaps backward computation: time until the last bucket is ready during which at"
            " least one bucket is between ready and done. 0 with one rank, null if not measured."
        ),
        HOOK,
        OVER_STEPS,
    ] = None

    @property
    def backward_compute_ms(
        self,
    ) -> Annotated[
        float | None,
        Unit("ms"),
        doc("Backward pass without the wait for communication: backward_ms - exposed_comm_ms."),
        HOOK,
        OVER_STEPS,
    ]:
        if self.exposed_comm_ms is None:
            return None
        return self.backward_ms - self.exposed_comm_ms


@dataclass(frozen=True, kw_only=True)
class TrainedStep:
    """What a rank trained in one optimizer step."""

    step: Annotated[int, doc("Number of the step, from 1."), LOOP]
    epoch: Annotated[int, doc("Number of the epoch, from 0."), LOOP]
    loss: Annotated[
        float | None,
        Unit("nats"),
        doc("Mean cross-entropy over this rank's examples; null if it had no examples or the loss is not finite."),
        TORCH,
    ]
    lr: Annotated[float, doc("Learning rate."), LOOP]
    skipped: Annotated[
        bool | None,
        doc("True if the gradients were not finite, so that the optimizer did nothing; null in precisions but fp16."),
        TORCH,
    ] = None
    grad_norm: Annotated[
        float | None,
        doc("Norm of all gradients of the step, over all ranks and before max_grad_norm; null without max_grad_norm."),
        TORCH,
    ] = None
    examples: Annotated[int, doc("Number of this rank's examples; padded or repeated ones never count."), LOOP]
    profiled: Annotated[
        bool | None,
        doc("True if torch.profiler recorded the step (profile_steps), which is then not measured; null otherwise."),
        LOOP,
    ] = None


@dataclass(frozen=True, kw_only=True)
class StepRecord(StepTimes, TrainedStep):
    """One optimizer step of one rank.

    Four phases add up to step_ms: data, forward, backward and optimizer. exposed_comm_ms is part of backward_ms.
    overlapped_comm_ms is communication during computation, so it adds nothing to step_ms.
    """

    kind: ClassVar[str] = "step"
