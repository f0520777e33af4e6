"""Which rows of a sweep may be compared, and why others may not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from disttrain.config.recipe import FIRST_VERSION
from disttrain.config.train_config import LINK
from disttrain.records.versions import STARTING
from jobs.results.result import Result

SHARED_GPU, ONE_HOST = "ranks shared a GPU", "all nodes were one host"
_AUTO = "auto"  # the default of the field `device`


@dataclass(frozen=True)
class _Fact:
    """Something on which times depend, although the sweep does not vary it.

    Attributes:
        text: The reason for a row in which it differs; `{value}` is the row's, `{usual}` that of most rows.
        figure: The name of the figure.
        same_allocation: Whether only rows of one allocation must agree.
        same_exchange: Whether only rows whose configs ask for the same exchange of gradients must agree.
        before: The value in rows of releases that did not record it; None if it is not known.
    """

    text: str
    figure: str
    same_allocation: bool = False
    same_exchange: bool = False
    before: Any = None


_FACTS = (
    _Fact("{device} differs: {value} instead of {usual}", "device_name"),
    _Fact("CUDA {value} instead of {usual}", "cuda_version"),
    _Fact("NCCL {value} instead of {usual}", "nccl_version"),
    _Fact("GPU driver {value} instead of {usual}", "driver_version"),
    _Fact("GPU power cap {value} W instead of {usual} W", "gpu_power_cap_w"),
    _Fact("highest GPU clock {value} MHz instead of {usual} MHz", "gpu_max_sm_clock_mhz"),
    _Fact("GPU clock is set to {value} MHz instead of {usual} MHz", "gpu_sm_clock_setting_mhz"),
    _Fact("backend {value} instead of {usual}", "backend", same_allocation=True),
    _Fact("gradients over {value} instead of {usual}", "transport", same_allocation=True, same_exchange=True),
    _Fact("{value} CPUs a rank instead of {usual}", "cpus", same_allocation=True),
    _Fact("{value} CPU threads a rank instead of {usual}", "threads", same_allocation=True),
    _Fact("recipe version {value} instead of {usual}", "recipe_version", before=FIRST_VERSION),
    _Fact("nodes below {value} switches instead of {usual}", "leaf_switches", same_allocation=True),
)


def with_reasons(rows: Sequence[Result]) -> tuple[Result, ...]:
    """The rows, each with the reasons why it may not be compared with the others of the sweep.

    Where rows differ, the value of most rows is the usual one, and the other rows are not comparable. A value that is
    not known, as in a row of an earlier release, differs from nothing. Rows on CPUs are not compared with rows on
    GPUs, if the sweep varies the device. A run without a summary has no reasons.
    """
    measured = [row for row in rows if row.figures.get("comparable") is not None]
    reasons: dict[str, list[str]] = {row.run_id: list(_own_reasons(row.figures)) for row in measured}
    # A dropped run is shown apart, so it does not decide what is usual.
    sound = [row for row in measured if not reasons[row.run_id] and not row.dropped]
    for row, reason in (*_differences(measured, sound), *_version_differences(measured, sound)):
        reasons[row.run_id].append(reason)
    return tuple(_with(row, reasons.get(row.run_id)) for row in rows)


def differences(row: Result, other: Result) -> list[str]:
    """Why the times of two rows may not be compared: what is wrong with one of them, and the facts that differ.

    A fact that only rows of one allocation must share does not differ between two allocations. A value that is not
    known differs from nothing.
    """
    reasons = [*_own_reasons(row.figures), *_own_reasons(other.figures)]
    for fact in _FACTS:
        if _scope(row, fact)[1:] != _scope(other, fact)[1:]:
            continue
        values = _value(row, fact), _value(other, fact)
        if None not in values and values[0] != values[1]:
            reasons.append(fact.text.format(device=_device(row), value=_text(values[0]), usual=_text(values[1])))
    versions, others = row.figures.get("versions") or {}, other.figures.get("versions") or {}
    for package in sorted((versions.keys() & others.keys()) - set(STARTING)):
        if versions[package] != others[package]:
            reasons.append(f"{package} {versions[package]} instead of {others[package]}")
    return list(dict.fromkeys(reasons))


def _with(row: Result, reasons: Sequence[str] | None) -> Result:
    if reasons is None:
        return row
    return row.with_figures(not_comparable=tuple(reasons))


def _own_reasons(figures: Mapping[str, Any]) -> Iterator[str]:
    """Why the times of a row may not be compared with any others."""
    if figures.get("shared_gpu"):
        yield SHARED_GPU
    if figures.get("folded"):
        yield ONE_HOST
    if figures.get("comparable") is False and not (figures.get("shared_gpu") or figures.get("folded")):
        yield f"{SHARED_GPU}, or {ONE_HOST}"  # a summary of an earlier release does not say which
    if mixed := figures.get("mixed_ranks"):
        yield f"its ranks differ in {', '.join(mixed)}"
    if mixed := figures.get("mixed_starts"):
        yield f"its starts differ in {', '.join(mixed)}"


def _differences(rows: Sequence[Result], sound: Sequence[Result]) -> Iterator[tuple[Result, str]]:
    """The rows with an unusual value of a fact, and the reason."""
    for fact in _FACTS:
        if len({_value(row, fact) for row in rows} - {None}) < 2:
            continue
        usual = _usual_values(rows, fact) | _usual_values(sound, fact)  # sound rows decide, where there are any
        for row in rows:
            value = _value(row, fact)
            expected = usual.get(_scope(row, fact))
            if value is not None and expected is not None and value != expected:
                yield row, fact.text.format(device=_device(row), value=_text(value), usual=_text(expected))


def _version_differences(rows: Sequence[Result], sound: Sequence[Result]) -> Iterator[tuple[Result, str]]:
    """The rows with an unusual version of a package, and the reason."""
    packages = sorted({name for row in rows for name in row.figures.get("versions") or ()} - set(STARTING))
    for package in packages:
        version_of = _version_reader(package)
        if len(set(map(version_of, rows)) - {None}) < 2:
            continue
        usual = _most_common(version_of, sound) or _most_common(version_of, rows)
        for row in rows:
            version = version_of(row)
            if version is not None and version != usual:
                yield row, f"{package} {version} instead of {usual}"


def _version_reader(package: str) -> Callable[[Result], Any]:
    return lambda row: (row.figures.get("versions") or {}).get(package)


def _usual_values(rows: Sequence[Result], fact: _Fact) -> dict[Hashable, Any]:
    """The value of most rows in each scope, without scopes in which it is not known."""
    scopes: dict[Hashable, list[Result]] = {}
    for row in rows:
        if _value(row, fact) is not None:
            scopes.setdefault(_scope(row, fact), []).append(row)
    return {scope: _most_common(lambda row: _value(row, fact), members) for scope, members in scopes.items()}


def _value(row: Result, fact: _Fact) -> Any:
    """The value of a fact in a row; None if it is not known, or does not apply."""
    value = row.figures.get(fact.figure)
    if value is None and not row.is_command and row.config.get("model") != LINK:
        return fact.before
    return value


def _most_common(value_of: Callable[[Result], Any], rows: Sequence[Result]) -> Any:
    """The most common value, of equally common ones the first; None if no value is known."""
    counts = Counter(value for row in rows if (value := value_of(row)) is not None)
    if not counts:
        return None
    return counts.most_common(1)[0][0]


def _scope(row: Result, fact: _Fact) -> tuple[Hashable, ...]:
    """Rows with the same scope must agree in a fact."""
    allocation = None
    if fact.same_allocation:
        allocation = row.requested.allocation
    exchange: Hashable = None
    if fact.same_exchange and not row.is_command:
        # A link run exchanges no gradients; the other fields choose between all-reduce and memory.
        fields = (row.config.get("detailed_timing"), row.config.get("grad_compression"))
        exchange = (row.config.get("model") == LINK, *map(str, fields))
    return _asked_device(row), allocation, exchange


def _asked_device(row: Result) -> str:
    """The device that a run asks for. A script says nothing of it: a field of that name is the user's own."""
    if row.is_command:
        return _AUTO
    return str(row.config.get("device"))


def _device(row: Result) -> str:
    if row.figures.get("cuda_version") is not None:
        return "GPU"
    if _asked_device(row) == "cpu":
        return "CPU"
    return "device"  # of an earlier release, or chosen by the run


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)
