"""Records and summaries of an earlier release, with figures under their former names, are read into the current fields.

That release wrote the files in tests/golden/former_names, in a run of two gloo ranks with `detailed_timing`. They were
then shortened, and the names of the host and of the CPU were replaced.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from disttrain.analysis.measured_steps import measured_steps
from disttrain.records.figures import summarise_fields
from disttrain.records.record_files import FORMER_NAMES, SUMMARY_NAME, metrics_name, read_records, summary_from_json
from disttrain.records.record_types import CrossCheckRecord, EndRecord, ExchangeRecord, StepRecord
from disttrain.records.step_types import StepTimes

GOLDEN = Path(__file__).parents[2] / "golden" / "former_names"
RECORDS = GOLDEN / metrics_name(0)
STEP_NAMES = ("exposed_ms", "hidden_ms")


def written_records(kind: str) -> list[dict[str, Any]]:
    objects = [json.loads(line) for line in RECORDS.read_text(encoding="utf-8").splitlines()]
    return [values for values in objects if values["kind"] == kind]


def written_summary() -> dict[str, Any]:
    values: dict[str, Any] = json.loads((GOLDEN / SUMMARY_NAME).read_text(encoding="utf-8"))
    return values


def test_golden_files_have_every_former_name() -> None:
    assert set(FORMER_NAMES) <= set(written_summary())
    for step in written_records("step"):
        assert set(STEP_NAMES) <= set(step)
    for values in (written_summary(), *written_records("step"), *written_records("cross_check")):
        assert not set(FORMER_NAMES.values()) & set(values)


def test_every_former_record_is_read() -> None:
    kinds = [type(record) for record in read_records(RECORDS)]
    assert kinds == [CrossCheckRecord, StepRecord, StepRecord, ExchangeRecord, ExchangeRecord, EndRecord]


def test_former_step_figures_are_read() -> None:
    steps = [record for record in read_records(RECORDS) if isinstance(record, StepRecord)]
    written = written_records("step")
    assert [step.exposed_comm_ms for step in steps] == [values["exposed_ms"] for values in written]
    assert [step.overlapped_comm_ms for step in steps] == [values["hidden_ms"] for values in written]
    assert all(step.exposed_comm_ms and step.overlapped_comm_ms for step in steps), "the run communicated"


def test_former_cross_check_is_read() -> None:
    (check,) = [record for record in read_records(RECORDS) if isinstance(record, CrossCheckRecord)]
    (written,) = written_records("cross_check")
    assert (check.exposed_comm_ms, check.exchange_ms) == (written["exposed_ms"], written["exchange_ms"])


def test_former_records_give_the_current_phases() -> None:
    steps = measured_steps(list(read_records(RECORDS)), warmup_steps=0)
    figures = summarise_fields(StepTimes, [step.times for step in steps])
    written = written_records("step")
    for current, former in (("exposed_comm", "exposed_ms"), ("overlapped_comm", "hidden_ms")):
        extremes = (figures[f"{current}_min_ms"], figures[f"{current}_p95_ms"])
        assert extremes == tuple(sorted(values[former] for values in written))


@pytest.mark.parametrize(("former", "current"), FORMER_NAMES.items())
def test_former_summary_figures_are_read(former: str, current: str) -> None:
    written = written_summary()
    assert summary_from_json(written)[current] == written[former] > 0


def test_other_summary_fields_are_unchanged() -> None:
    written = written_summary()
    summary = summary_from_json(written)
    for name in written.keys() - FORMER_NAMES.keys():
        value = summary[name]
        assert (list(value) if isinstance(value, tuple) else value) == written[name], name
