"""The figures that the summary has of each metric of a script, and which value of a metric is the best one."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from disttrain.errors import shorten

MOST_NAMES = 200
LOSS, SAMPLES_PER_S = "loss", "samples_per_s"  # metrics that the tool shows as its own figures

_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|\d+")
_RATE = re.compile(r"/ ?(?:s|sec|second)$")
_LOWER_ENDINGS = ("loss", "losses", "error", "errors", "perplexity", "entropy", "divergence", "latency")
_SECONDS = frozenset({"s", "sec", "second", "seconds"})
_LOWER_WORDS = _SECONDS | {
    "bpb", "bpc", "bpd", "brier", "cer", "cost", "duration", "ece", "eer", "elapsed", "err", "fid", "fvd", "kl",
    "lpips", "mae", "mape", "misclassification", "ms", "mse", "nll", "ppl", "regret", "rmse", "runtime", "steptime",
    "ter", "time", "walltime", "wer",
}  # fmt: skip


@dataclass(frozen=True)
class ScriptMetrics:
    """What a script has logged, on one rank or on all.

    Attributes:
        metrics: By name: last, mean, best, min, max and count. `last` is None if the last value is not finite; the
            others are over the finite values, and None without one. `count` is the number of all values.
        steps: The highest step; None if no line has one.
        damaged_lines: The number of lines that are no JSON object.
        has_more_names: Whether names were left out, because there are too many, or because they are too long.
        error: Why a file cannot be read; None if all can.
    """

    metrics: dict[str, dict[str, float | None]] = field(default_factory=dict)
    steps: int | None = None
    damaged_lines: int = 0
    has_more_names: bool = False
    error: str | None = None

    def notices(self) -> tuple[str, ...]:
        """What the summary says of metrics that are missing."""
        texts = []
        if self.damaged_lines:
            noun = "line" if self.damaged_lines == 1 else "lines"
            texts.append(f"{self.damaged_lines} damaged {noun} of $SWEEP_METRICS left out")
        if self.has_more_names:
            texts.append(f"metrics after the first {MOST_NAMES} names, and those of long names, left out")
        if diverged := [name for name, figures in self.metrics.items() if figures["last"] is None]:
            texts.append(f"the last value of {', '.join(map(shorten, diverged))} is not finite")
        if self.error is not None:
            texts.append(self.error)
        return tuple(texts)

    def figures(self, world_size: int) -> dict[str, Any]:
        """The figures of the summary that follow from the metrics.

        Args:
            world_size: The number of ranks.
        """
        figures: dict[str, Any] = {"metrics": self.metrics, "steps": self.steps or 0}
        speed = self.metrics.get(SAMPLES_PER_S, {}).get("mean")
        if speed is not None:
            figures |= {"samples_per_s": speed, "samples_per_s_per_gpu": speed / world_size}
        return figures


def merge_ranks(by_rank: Mapping[int, ScriptMetrics]) -> ScriptMetrics:
    """The metrics of a run: each from the lowest rank that has logged it."""
    ranks = [by_rank[rank] for rank in sorted(by_rank)]
    metrics: dict[str, dict[str, float | None]] = {}
    for rank in ranks:
        for name, figures in rank.metrics.items():
            metrics.setdefault(name, figures)
    return ScriptMetrics(
        metrics=dict(itertools.islice(metrics.items(), MOST_NAMES)),
        steps=max((rank.steps for rank in ranks if rank.steps is not None), default=None),
        damaged_lines=sum(rank.damaged_lines for rank in ranks),
        has_more_names=len(metrics) > MOST_NAMES or any(rank.has_more_names for rank in ranks),
        error=next((rank.error for rank in ranks if rank.error is not None), None),
    )


def lower_is_better(name: str) -> bool:
    """Whether the best value of a metric is the lowest one, by its name: a loss, an error, a time.

    Example:
        >>> lower_is_better("eval/loss"), lower_is_better("step_time_s"), lower_is_better("accuracy")
        (True, True, False)
        >>> lower_is_better("samples_per_second"), lower_is_better("tokens/s"), lower_is_better("ms_per_step")
        (False, False, True)
        >>> lower_is_better("bits_per_byte"), lower_is_better("bits_per_s"), lower_is_better("uptime")
        (True, False, False)
    """
    if _RATE.search(name):
        return False
    words = [word.lower() for word in _WORD.findall(name)]
    if "per" in words:
        place = words.index("per")
        words, unit = words[:place], words[place + 1 :]
        if words[-1:] == ["bits"] and _SECONDS.isdisjoint(unit):
            return True
    return any(word in _LOWER_WORDS or word.endswith(_LOWER_ENDINGS) for word in words)
