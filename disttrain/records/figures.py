"""The definition of a figure: the annotations of its field, and the statistics that the summary has of it."""

from __future__ import annotations

import dataclasses
import inspect
import statistics
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from annotated_types import DocInfo, Unit

from disttrain.records.figure_sources import Source


@dataclass(frozen=True)
class Statistic:
    """One figure of the summary, computed from the values of one field.

    Attributes:
        name: The name of the figure; ``{stem}`` and ``{unit}`` are the parts of the field's name: data, _ms.
        meaning: The meaning of the figure; ``{meaning}`` is that of the field, ``{name}`` its name.
        compute: The figure from the values: one or more, none of them missing.
        gives: What the figure is: a value of the field's kind, or, without its unit, the index of one (a rank), or the
            host of the rank with this index.
    """

    name: str
    meaning: str
    compute: Callable[[Sequence[Any]], Any]
    gives: Literal["value", "rank", "host"] = "value"


@dataclass(frozen=True)
class Summarised:
    """The annotation of a field that the summary uses.

    Attributes:
        statistics: The figures that the summary has of the field.
        skip_missing: Whether missing values are left out. Without it, one missing value makes the figures null.
        only_last: Whether only the last value counts, also if it is missing.
    """

    statistics: tuple[Statistic, ...]
    skip_missing: bool = False
    only_last: bool = False


@dataclass(frozen=True)
class InTable:
    """The annotation of a figure that is a column of the printed table.

    Attributes:
        rank: The place in the order in which columns are left out: a narrow table first drops the highest rank.
    """

    rank: int


@dataclass(frozen=True)
class Figure:
    """A figure of a record or of the summary, as its annotations define it."""

    name: str
    type: Any
    unit: str
    meaning: str
    source: Source
    table_rank: int | None
    summarised: Summarised | None


def percentile_95(values: Sequence[float]) -> float:
    """The 95th percentile, by nearest rank.

    Example:
        >>> percentile_95([1.0, 2.0, 3.0, 10.0])
        10.0
    """
    return sorted(values)[-(-95 * len(values) // 100) - 1]


def _last(values: Sequence[Any]) -> Any:
    return values[-1]


def _union(values: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for names in values for name in names))


def _index_of_largest(values: Sequence[float]) -> int:
    return values.index(max(values))


def _index_of_smallest(values: Sequence[float]) -> int:
    return values.index(min(values))


# Over the measured steps of rank 0.
OVER_STEPS = Summarised(
    (
        Statistic("{stem}{unit}", "{meaning}. Median over rank 0's measured steps.", statistics.median),
        Statistic(
            "{stem}_p95{unit}",
            "95th percentile of {name} over rank 0's measured steps, by nearest rank.",
            percentile_95,
        ),
        Statistic("{stem}_min{unit}", "Minimum of {name} over rank 0's measured steps.", min),
    )
)
# Over the ranks, each with its last start.
SLOWEST_RANK = Summarised(
    (
        Statistic("{stem}{unit}", "{meaning}. Maximum over the ranks.", max),
        Statistic("slowest_{stem}_rank", "The rank with the longest {name}.", _index_of_largest, "rank"),
    )
)

# Over the ranks, each with its mean over its own samples; null if the figure of a rank is not known.
MEAN_AND_SMALLEST = Summarised(
    (
        Statistic("{stem}_mean{unit}", "{meaning}. Mean over the ranks.", statistics.fmean),
        Statistic("{stem}_min{unit}", "{meaning}. Minimum over the ranks.", min),
        Statistic("{stem}_min_rank", "The rank with the minimum {name}.", _index_of_smallest, "rank"),
        Statistic("{stem}_min_host", "The host of {stem}_min_rank.", _index_of_smallest, "host"),
    )
)
MEAN_AND_LARGEST = Summarised(
    (
        Statistic("{stem}_mean{unit}", "{meaning}. Mean over the ranks.", statistics.fmean),
        Statistic("{stem}_max{unit}", "{meaning}. Maximum over the ranks.", max),
        Statistic("{stem}_max_rank", "The rank with the maximum {name}.", _index_of_largest, "rank"),
        Statistic("{stem}_max_host", "The host of {stem}_max_rank.", _index_of_largest, "host"),
    )
)


def last_as(name: str = "{stem}{unit}", meaning: str = "{meaning}.") -> Summarised:
    """The annotation of a field whose last value is a figure of the summary."""
    return Summarised((Statistic(name, meaning, _last),), only_last=True)


def mean_of_samples(name: str = "{stem}{unit}") -> Summarised:
    """The annotation of a field whose mean over rank 0's samples is a figure of the summary."""
    return Summarised((Statistic(name, "{meaning}. Mean over rank 0's samples.", statistics.fmean),), skip_missing=True)


def peak_of_samples(name: str) -> Summarised:
    """The annotation of a field whose maximum over rank 0's samples is a figure of the summary."""
    return Summarised((Statistic(name, "{meaning}. Maximum over rank 0's samples.", max),), skip_missing=True)


def union_of_samples(meaning: str) -> Summarised:
    """The annotation of a field of names; the summary has all names that occur."""
    return Summarised((Statistic("{stem}{unit}", meaning, _union),), skip_missing=True)


FIRST_OF_SAMPLES = Summarised(
    (Statistic("{stem}{unit}", "{meaning}. From rank 0's samples.", lambda values: values[0]),), skip_missing=True
)


def figures_of(kind: type[Any]) -> tuple[Figure, ...]:
    """The figures of a record type: its fields, and its properties with an annotation.

    Args:
        kind: A dataclass. Each of its fields has a meaning and a source, and a unit if it has one.
    """
    hints = typing.get_type_hints(kind, include_extras=True)
    names = {field.name: hints[field.name] for field in dataclasses.fields(kind)}
    for name, member in inspect.getmembers(kind, lambda member: isinstance(member, property)):
        returned = typing.get_type_hints(member.fget, include_extras=True)["return"]
        if typing.get_origin(returned) is typing.Annotated:
            names[name] = returned
    return tuple(_figure(name, *typing.get_args(annotation)) for name, annotation in names.items())


def _figure(name: str, plain: Any, *annotations: Any) -> Figure:
    def find(kind: type[Any]) -> Any:
        return next((item for item in annotations if isinstance(item, kind)), None)

    unit, table = find(Unit), find(InTable)
    return Figure(
        name=name,
        type=plain,
        unit=unit.unit if unit else "",
        meaning=find(DocInfo).documentation,
        source=find(Source),
        table_rank=table.rank if table else None,
        summarised=find(Summarised),
    )


def summary_figures_of(kind: type[Any]) -> Iterator[Figure]:
    """The figures that the summary has of a record type."""
    for figure in figures_of(kind):
        if figure.summarised is None:
            continue
        rank = figure.table_rank  # the first statistic is the column of the table
        for statistic in figure.summarised.statistics:
            unit, plain = figure.unit, figure.type
            if statistic.gives != "value":
                unit, plain = "", {"rank": int, "host": str}[statistic.gives]
            stem, _ = _parts(figure)
            meaning = statistic.meaning.format(meaning=figure.meaning.rstrip("."), name=figure.name, stem=stem)
            yield Figure(_name(figure, statistic), plain | None, unit, meaning, figure.source, rank, None)
            rank = None


def summarise_fields(kind: type[Any], values: Sequence[Any], hosts: Sequence[str] = ()) -> dict[str, Any]:
    """The figures that the summary has of a record type, by name; null where nothing was measured.

    Args:
        kind: The record type.
        values: The objects of this type, or of one derived from it, that the summary covers.
        hosts: The host of each rank, by rank, for values that are of one rank each.
    """
    summary: dict[str, Any] = {}
    for figure in figures_of(kind):
        if figure.summarised is None:
            continue
        column = [getattr(value, figure.name) for value in values]
        if figure.summarised.skip_missing:
            column = [value for value in column if value is not None]
        if figure.summarised.only_last:
            column = column[-1:]
        for statistic in figure.summarised.statistics:
            result = None
            if column and None not in column:
                result = statistic.compute(column)
                if statistic.gives == "host":
                    result = hosts[result]
            summary[_name(figure, statistic)] = result
    return summary


def _name(figure: Figure, statistic: Statistic) -> str:
    stem, unit = _parts(figure)
    return statistic.name.format(stem=stem, unit=unit)


def _parts(figure: Figure) -> tuple[str, str]:
    """The parts of the figure's name: data, _ms; a figure without a unit has only the first."""
    if not figure.unit or "_" not in figure.name:
        return figure.name, ""
    stem, _, ending = figure.name.rpartition("_")
    return stem, f"_{ending}"
