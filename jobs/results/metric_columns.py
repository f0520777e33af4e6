"""The columns of the metrics that a user's own script has logged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from disttrain.records.script_metrics import SAMPLES_PER_S

Metrics = Mapping[str, Mapping[str, float | None]]  # the figures of each metric, by their names

PREFIX = "metrics."
_STATISTICS = ("last", "best", "mean")
_ENDINGS = tuple(f".{name}" for name in _STATISTICS)
# What follows from the config, or says nothing of the result. samples_per_s has its own column.
_NOT_SHOWN = frozenset({"epoch", "grad_norm", "learning_rate", "lr", SAMPLES_PER_S})


def metric_column(name: str, statistic: str = "last") -> str:
    """The column of a figure of a metric. That of its last value has the name of the metric.

    Example:
        >>> metric_column("loss"), metric_column("loss", "best"), metric_column("loss.best")
        ('metrics.loss', 'metrics.loss.best', 'metrics.loss.best.last')
    """
    if statistic == "last" and not name.endswith(_ENDINGS):
        return f"{PREFIX}{name}"
    return f"{PREFIX}{name}.{statistic}"


def metric_columns(metrics: Metrics) -> dict[str, float | None]:
    """The columns of metrics: last, best and mean of each. All their figures are in the column `metrics`."""
    return {
        metric_column(name, statistic): figures.get(statistic)
        for name, figures in metrics.items()
        for statistic in _STATISTICS
    }


def shown_metrics(rows: Sequence[Metrics], most: int) -> list[str]:
    """The metrics that the printed table may have: those of most rows first, then as the scripts log them."""
    counts = Counter(name for metrics in rows for name in metrics if name not in _NOT_SHOWN)
    return [name for name, _ in counts.most_common(most)]
