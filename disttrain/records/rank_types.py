"""Figures of one rank that are not written: the summary has their statistics over all ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Unit, doc

from disttrain.records.figure_sources import NVML
from disttrain.records.figures import MEAN_AND_LARGEST, MEAN_AND_SMALLEST


@dataclass(frozen=True, kw_only=True)
class RankTelemetry:
    """The samples of a rank's GPU in its last start, without the one before the first step.

    A figure is the one that the summary has of rank 0 under the same name; null if it was not sampled.
    """

    gpu_util_percent: Annotated[
        float | None,
        Unit("%"),
        doc("Share of NVML's sample periods in which a kernel ran, mean over a rank's samples"),
        NVML,
        MEAN_AND_SMALLEST,
    ] = None
    gpu_power_w: Annotated[
        float | None, Unit("W"), doc("Power draw of a rank's board, mean over its samples"), NVML, MEAN_AND_SMALLEST
    ] = None
    gpu_memory_peak_mib: Annotated[
        float | None,
        Unit("MiB"),
        doc("GPU memory in use, maximum over a rank's samples"),
        NVML,
        MEAN_AND_LARGEST,
    ] = None
