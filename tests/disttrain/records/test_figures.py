"""The figures that the annotations of record fields define."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, get_args

import pytest
from annotated_types import Unit, doc

from disttrain.records.figure_sources import HOST_CLOCK, NVML, Source
from disttrain.records.figures import (
    FIRST_OF_SAMPLES,
    OVER_STEPS,
    Figure,
    figures_of,
    percentile_95,
    summarise_fields,
    summary_figures_of,
)
from disttrain.records.record_types import KINDS, EndRecord, EvalRecord, TelemetryRecord
from disttrain.records.step_types import StartupRecord, StepTimes
from disttrain.records.summary_types import SUMMARISED_TYPES, SUMMARY_FIGURES, Failure, RunFigures, RunInfo
from disttrain.records.timing_types import CrossCheckRecord

# The unit of a figure whose name ends so; the longest ending counts.
UNITS = {
    "_ms": "ms",
    "_s": "s",
    "_per_s": "1/s",
    "_per_s_per_gpu": "1/s",
    "_gb_per_s": "10^9 bytes/s",
    "_gflop_per_s": "10^9 operations/s",
    "_mib": "MiB",
    "_bytes": "bytes",
    "_percent": "%",
    "_w": "W",
    "_c": "deg C",
    "_mhz": "MHz",
    "_j": "J",
}
# The units of figures whose names have no such ending.
OTHER_UNITS = {"", "nats", "share of 1"}


def step(**times: float | None) -> StepTimes:
    fields: dict[str, Any] = {
        "data_ms": 1.0,
        "forward_ms": 2.0,
        "backward_ms": 3.0,
        "optimizer_ms": 4.0,
        "step_ms": 10.0,
    }
    return StepTimes(**{**fields, **times})


def sample(**figures: Any) -> TelemetryRecord:
    return TelemetryRecord(time_s=1.0, **figures)


def test_three_figures_over_the_steps() -> None:
    figures = summarise_fields(StepTimes, [step(step_ms=float(ms)) for ms in (40, *range(1, 40))])
    assert (figures["step_ms"], figures["step_p95_ms"], figures["step_min_ms"]) == (20.5, 38.0, 1.0)
    assert (figures["data_ms"], figures["data_p95_ms"], figures["data_min_ms"]) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(("count", "expected"), [(1, 1.0), (19, 19.0), (20, 19.0), (21, 20.0), (100, 95.0)])
def test_percentile_is_by_nearest_rank(count: int, expected: float) -> None:
    assert percentile_95([float(value) for value in range(count, 0, -1)]) == expected


def test_one_unmeasured_step_gives_none() -> None:
    steps = [step(exposed_comm_ms=1.0, overlapped_comm_ms=5.0), step(overlapped_comm_ms=7.0)]
    figures = summarise_fields(StepTimes, steps)
    for name in ("exposed_comm", "backward_compute"):
        assert {figures[f"{name}{ending}_ms"] for ending in ("", "_p95", "_min")} == {None}
    assert (figures["overlapped_comm_ms"], figures["overlapped_comm_min_ms"]) == (6.0, 5.0)


def test_a_property_is_summarised_as_a_field() -> None:
    figures = summarise_fields(StepTimes, [step(backward_ms=9.0, exposed_comm_ms=ms) for ms in (1.0, 2.0, 6.0)])
    names = ("backward_compute_ms", "backward_compute_p95_ms", "backward_compute_min_ms")
    assert tuple(figures[name] for name in names) == (7.0, 8.0, 3.0)


def test_nothing_measured_is_none() -> None:
    for kind in SUMMARISED_TYPES:
        figures = summarise_fields(kind, [])
        assert list(figures) == [figure.name for figure in summary_figures_of(kind)]
        assert set(figures.values()) == {None}, kind


def test_the_last_value_counts() -> None:
    evals = [EvalRecord(step=5, loss=loss, accuracy=0.5, examples=4, elapsed_s=1.0) for loss in (0.7, None, 0.6)]
    evals.append(EvalRecord(step=9, loss=None, accuracy=0.25, examples=8, elapsed_s=1.0))
    assert summarise_fields(EvalRecord, evals[:3])["eval_loss"] == 0.6, "an earlier loss was not finite"
    assert summarise_fields(EvalRecord, evals) == {
        "eval_loss": None, "eval_accuracy": 0.25, "eval_macro_f1": None, "eval_examples": 8
    }  # fmt: skip
    ends = [EndRecord(time_s=1.0, steps=steps, train_s=2.5) for steps in (3, 6)]
    assert summarise_fields(EndRecord, ends) == {"steps": 6, "train_s": 2.5}


def test_a_figure_has_another_name_than_its_field() -> None:
    check = CrossCheckRecord(
        passes=1, backward_ms=9.0, no_sync_backward_ms=4.0, no_sync_exposed_ms=5.0, exposed_comm_ms=4.0,
        exchange_ms=8.0, is_check=False, ddp_exposed_ms=None, elapsed_s=1.0,
    )  # fmt: skip
    assert summarise_fields(CrossCheckRecord, [check]) == {
        "no_sync_exposed_ms": 5.0,
        "check_exposed_ms": 4.0,
        "no_sync_is_check": False,
        "ddp_exposed_ms": None,
    }


def test_samples_leave_out_missing_values() -> None:
    samples = [
        sample(gpu_power_w=100.0, gpu_memory_used_mib=5.0),
        sample(error="GPU is lost"),
        sample(gpu_power_w=200.0, gpu_memory_used_mib=3.0, gpu_energy_source="counter"),
        sample(gpu_energy_source="power"),
    ]
    figures = summarise_fields(TelemetryRecord, samples)
    assert (figures["gpu_power_w"], figures["gpu_memory_peak_mib"]) == (150.0, 5.0)
    assert figures["gpu_energy_source"] == "counter", "the first"
    assert (figures["gpu_util_percent"], figures["gpu_temperature_peak_c"]) == (None, None)
    assert "gpu_memory_used_mib" not in figures


@pytest.mark.parametrize(
    ("reasons", "expected"),
    [
        ([None, ("power", "heat"), (), ("heat", "idle")], ("power", "heat", "idle")),
        ([(), None], ()),
        ([None], None),
    ],
)
def test_names_of_all_samples(reasons: list[tuple[str, ...] | None], expected: tuple[str, ...] | None) -> None:
    """An empty union says that there was no reason; None, that it is unknown."""
    figures = summarise_fields(TelemetryRecord, [sample(gpu_throttle=names) for names in reasons])
    assert figures["gpu_throttle"] == expected


def test_the_slowest_rank_has_an_index() -> None:
    ranks = [StartupRecord(import_s=import_s, time_to_first_step_s=9.0) for import_s in (2.0, 4.0, 3.0)]
    assert summarise_fields(StartupRecord, ranks) == {
        "import_s": 4.0,
        "slowest_import_rank": 1,
        "time_to_first_step_s": 9.0,
        "slowest_time_to_first_step_rank": 0,
    }
    ranks[2] = StartupRecord(import_s=5.0, time_to_first_step_s=None)
    figures = summarise_fields(StartupRecord, ranks)
    assert (figures["import_s"], figures["slowest_import_rank"]) == (5.0, 2)
    assert (figures["time_to_first_step_s"], figures["slowest_time_to_first_step_rank"]) == (None, None)


def test_an_index_has_no_unit() -> None:
    figure = SUMMARY_FIGURES["slowest_import_rank"]
    assert (figure.type, figure.unit) == (int | None, "")
    assert (SUMMARY_FIGURES["import_s"].type, SUMMARY_FIGURES["import_s"].unit) == (float | None, "s")


def all_figures() -> Iterator[tuple[str, Figure]]:
    """The figures of every record type and of the summary, each with the name of its type."""
    for kind in (*KINDS.values(), RunInfo, Failure):
        yield from ((kind.__name__, figure) for figure in figures_of(kind))
    yield from (("Summary", figure) for figure in SUMMARY_FIGURES.values())


@pytest.mark.parametrize("figure", [pytest.param(figure, id=f"{kind}.{figure.name}") for kind, figure in all_figures()])
def test_a_figure_has_meaning_source_and_unit(figure: Figure) -> None:
    assert re.fullmatch(r"[A-Z0-9].*[^.]\.", figure.meaning), "a sentence"
    assert not re.search(r"\.\.|[{}]", figure.meaning)
    assert isinstance(figure.source, Source)
    ending = max((ending for ending in UNITS if f"_{figure.name}".endswith(ending)), key=len, default=None)
    if ending is None:
        assert figure.unit in OTHER_UNITS
    else:
        # A time of day has its origin in its unit: s since 1970.
        assert figure.unit.removesuffix(" since 1970") == UNITS[ending]


def test_an_unmeasured_figure_may_be_null() -> None:
    for kind in SUMMARISED_TYPES:
        for figure in summary_figures_of(kind):
            assert type(None) in get_args(figure.type), figure.name


def test_names_of_summary_figures_are_unique() -> None:
    figures = [*figures_of(RunFigures), *itertools.chain.from_iterable(map(summary_figures_of, SUMMARISED_TYPES))]
    assert len(figures) == len(SUMMARY_FIGURES)
    assert [figure.name for figure in figures] == list(SUMMARY_FIGURES)


def test_only_one_figure_of_a_field_is_a_column() -> None:
    """The table has the median of a phase, and not its 95th percentile and minimum."""
    ranks = {figure.name: figure.table_rank for figure in summary_figures_of(StepTimes)}
    assert ranks["step_ms"] is not None
    assert (ranks["step_p95_ms"], ranks["step_min_ms"]) == (None, None)


@dataclass(frozen=True, kw_only=True)
class StepTimesWithClip(StepTimes):
    """The recipe "add a measured figure" of CONTRIBUTING.md: one annotated field."""

    clip_ms: Annotated[float, Unit("ms"), doc("Clipping of the gradients."), HOST_CLOCK, OVER_STEPS]
    loss_scale: Annotated[float | None, doc("Factor of the loss."), HOST_CLOCK, FIRST_OF_SAMPLES] = None
    not_in_the_summary_w: Annotated[float, Unit("W"), doc("Power."), NVML] = 0.0


def test_a_new_field_is_in_the_summary() -> None:
    before = [figure.name for figure in summary_figures_of(StepTimes)]
    added = [figure for figure in summary_figures_of(StepTimesWithClip) if figure.name not in before]
    assert [(figure.name, figure.unit, figure.meaning) for figure in added] == [
        ("clip_ms", "ms", "Clipping of the gradients. Median over rank 0's measured steps."),
        ("clip_p95_ms", "ms", "95th percentile of clip_ms over rank 0's measured steps, by nearest rank."),
        ("clip_min_ms", "ms", "Minimum of clip_ms over rank 0's measured steps."),
        ("loss_scale", "", "Factor of the loss. From rank 0's samples."),
    ]
    steps = [
        StepTimesWithClip(**dataclasses.asdict(step()), clip_ms=clip_ms, loss_scale=scale)
        for clip_ms, scale in ((3.0, None), (1.0, 8.0), (2.0, 4.0))
    ]
    figures = summarise_fields(StepTimesWithClip, steps)
    assert (figures["clip_ms"], figures["clip_p95_ms"], figures["clip_min_ms"]) == (2.0, 3.0, 1.0)
    assert figures["loss_scale"] == 8.0
    assert figures.keys() == {*before, *(figure.name for figure in added)}
    assert summarise_fields(StepTimes, steps).keys() == set(before)


def test_every_summarised_field_is_in_the_summary() -> None:
    """An annotation on a type that the summary does not read would be ignored."""
    for kind in (*KINDS.values(), RunInfo, Failure):
        bases = [summarised for summarised in SUMMARISED_TYPES if issubclass(kind, summarised)]
        for figure in figures_of(kind):
            if figure.summarised is not None:
                assert bases, f"{kind.__name__}.{figure.name}"
            if figure.table_rank is not None:
                assert figure.summarised is not None, f"{kind.__name__}.{figure.name}"
