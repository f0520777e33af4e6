"""Reads all lines that a script has logged on a rank, in constant memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from disttrain.records.script_metrics.lines import STEP, STEP_LIMIT, metrics_files, number, parse_line, step_of
from disttrain.records.script_metrics.metric_figures import MOST_NAMES, ScriptMetrics, lower_is_better, merge_ranks

_LONGEST_NAME = 200  # in characters
_LONGEST_LINE_BYTES = 2**20
_CHUNK_LINES = 4096  # the values of this many lines are in memory


def summarise_file(run_dir: Path, rank: int) -> ScriptMetrics:
    """The metrics of a rank, from the files of all its attempts, in constant memory.

    A run that resumes from a checkpoint repeats steps. So lines of an earlier attempt do not count from the first step
    on that a later attempt has logged under the same name. Where a line without a step belongs is not known: such lines
    count only in the latest attempt that has logged the name.
    """
    reader = _Reader()
    for path in reversed(metrics_files(run_dir).get(rank, [])):
        reader.read_attempt(path)
    return reader.result()


def summarise_all(run_dir: Path) -> ScriptMetrics:
    """The metrics of a run, from the files of all ranks: each from the lowest rank that has logged it."""
    return merge_ranks({rank: summarise_file(run_dir, rank) for rank in metrics_files(run_dir)})


class _Metric:
    """The values of one name."""

    def __init__(self) -> None:
        self.last: float | None = None  # of the latest attempt that has the name
        self.pending: list[float] = []  # are not in the figures yet
        self.newest = math.nan  # of the attempt that is read
        self.count = self.finite = 0
        self.total, self.min, self.max = 0.0, math.inf, -math.inf

    def add_pending(self) -> None:
        if not self.pending:
            return
        self.newest = self.pending[-1]
        self.count += len(self.pending)
        finite = list(filter(math.isfinite, self.pending))
        if finite:
            self.finite += len(finite)
            self.total += sum(finite)
            self.min = min(self.min, min(finite))
            self.max = max(self.max, max(finite))
        self.pending.clear()

    def figures(self, name: str) -> dict[str, float | None]:
        figures: dict[str, float | None] = {"last": self.last, "mean": None, "best": None, "min": None, "max": None}
        if self.finite:
            best = self.min if lower_is_better(name) else self.max
            figures |= {"mean": self.total / self.finite, "best": best, "min": self.min, "max": self.max}
        # A value may be infinite, and so may be the sum of very large ones.
        finite = {key: value for key, value in figures.items() if value is not None and math.isfinite(value)}
        return {**dict.fromkeys(figures), **finite, "count": self.count}


class _Reader:
    """Reads the attempts of a rank, the latest one first: only then is it known which steps of an earlier one count."""

    def __init__(self) -> None:
        self._metrics: dict[str, _Metric] = {}
        self._first_steps: dict[str, int] = {}  # of each name, and of all lines as `STEP`, in the attempts so far
        self._later_names: frozenset[str] = frozenset()  # that the attempts so far have logged
        self._steps: int | None = None
        self._damaged_lines = 0
        self._has_more_names = False
        self._error: str | None = None

    def result(self) -> ScriptMetrics:
        metrics = {name: metric.figures(name) for name, metric in self._metrics.items() if metric.count}
        return ScriptMetrics(metrics, self._steps, self._damaged_lines, self._has_more_names, self._error)

    def read_attempt(self, path: Path) -> None:
        """Adds the lines of a file that is of an earlier attempt than those before."""
        first_steps: dict[str, int] = {}
        self._later_names = frozenset(self._metrics)
        try:
            with path.open("rb") as file:
                for count, line in enumerate(_lines(file), start=1):
                    self._add(line, first_steps)
                    if count % _CHUNK_LINES == 0:
                        self._add_pending()
        except OSError as error:
            self._error = f"{path.name} cannot be read: {error.strerror}"
        self._add_pending()
        for metric in self._metrics.values():
            if metric.last is None:
                metric.last = metric.newest
        for name, step in first_steps.items():
            self._first_steps[name] = min(step, self._first_steps.get(name, step))

    def _add(self, line: bytes, first_steps: dict[str, int]) -> None:
        """Adds a line, and the first steps that are not known yet."""
        values = parse_line(line)
        if values is None:
            self._damaged_lines += bool(line.strip())
            return
        step = step_of(values)
        if step is not None:
            first_steps.setdefault(STEP, step)
            if step < self._first_steps.get(STEP, STEP_LIMIT):
                self._steps = max(step, self._steps or 0)
        for name, given in values.items():
            value = number(given)
            if value is None or name == STEP:
                continue
            metric = self._metrics.get(name) or self._new_metric(name)
            if metric is None:
                continue
            if step is not None:
                first_steps.setdefault(name, step)
                if step >= self._first_steps.get(name, STEP_LIMIT):
                    continue
            elif name in self._later_names:
                continue
            metric.pending.append(value)

    def _new_metric(self, name: str) -> _Metric | None:
        if len(self._metrics) >= MOST_NAMES or len(name) > _LONGEST_NAME:
            self._has_more_names = True
            return None
        return self._metrics.setdefault(name, _Metric())

    def _add_pending(self) -> None:
        for metric in self._metrics.values():
            metric.add_pending()


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file. Of a line that is too long, only the beginning, which is damaged."""
    while line := file.readline(_LONGEST_LINE_BYTES):
        yield line
        while not line.endswith(b"\n") and len(line) == _LONGEST_LINE_BYTES:
            line = file.readline(_LONGEST_LINE_BYTES)
