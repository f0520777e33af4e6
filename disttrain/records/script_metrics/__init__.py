"""The metrics that a user's own script logs: the files to which it appends, and their figures in the summary."""

from __future__ import annotations

from disttrain.records.script_metrics.lines import (
    FILE_FORMAT,
    STEP,
    last_step,
    latest_values,
    metrics_files,
    new_metrics_file,
    new_metrics_folder,
)
from disttrain.records.script_metrics.metric_figures import (
    LOSS,
    SAMPLES_PER_S,
    ScriptMetrics,
    lower_is_better,
    merge_ranks,
)
from disttrain.records.script_metrics.summarise import summarise_all, summarise_file

__all__ = [
    "FILE_FORMAT",
    "LOSS",
    "SAMPLES_PER_S",
    "STEP",
    "ScriptMetrics",
    "last_step",
    "latest_values",
    "lower_is_better",
    "merge_ranks",
    "metrics_files",
    "new_metrics_file",
    "new_metrics_folder",
    "summarise_all",
    "summarise_file",
]
