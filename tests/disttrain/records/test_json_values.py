"""JSON that is written has only numbers that are finite, at any depth; what is read is checked."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from disttrain.config.train_config import TrainConfig
from disttrain.environment.rank_env import RankEnv
from disttrain.records.json_values import DamagedFile, parse_json, to_json
from disttrain.records.record_files import (
    RecordWriter,
    decode,
    encode,
    metrics_name,
    read_records,
    read_summary,
    write_json,
)
from disttrain.records.record_types import ExchangeRecord, LinkRecord, StepRecord
from disttrain.records.run_folder import begin_run, run_info
from jobs.results.tables import to_csv
from tests.jobs.results.rows import make_result

NAN, INF = math.nan, math.inf
STEP = StepRecord(
    step=1, epoch=0, start_s=0.0, loss=1.0, lr=1e-3, examples=4, data_ms=1.0, forward_ms=1.0, backward_ms=1.0,
    optimizer_ms=1.0, step_ms=4.0,
)  # fmt: skip


def refuse(text: str) -> float:
    raise AssertionError(f"{text} is no JSON")


def strict(text: str) -> Any:
    """The value, as a parser of another language reads it."""
    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ({"a": NAN}, {"a": None}),
        ({"a": [1.0, -INF, {"b": (INF, 2)}]}, {"a": [1.0, None, {"b": [None, 2]}]}),
        ([[[NAN]]], [[[None]]]),
        ({"a": 1e308, "b": "NaN", "c": True, "d": None}, {"a": 1e308, "b": "NaN", "c": True, "d": None}),
        (INF, None),
        ({INF: 1}, {"inf": 1}),
    ],
)
def test_infinity_is_null_at_any_depth(value: Any, written: Any) -> None:
    assert strict(to_json(value)) == written
    assert strict(to_json(value, indent=2)) == written


def test_a_summary_with_infinity_is_written(tmp_path: Path) -> None:
    """A bucket whose all-reduce took no measurable time has an infinite bandwidth."""
    write_json(tmp_path / "summary.json", {"steps": 3, "buckets": ({"size_bytes": 8.0, "bus_gb_per_s": INF},)})
    strict((tmp_path / "summary.json").read_text())
    summary = read_summary(tmp_path)
    assert summary is not None
    assert summary["buckets"] == ({"size_bytes": 8.0, "bus_gb_per_s": None},)


@pytest.mark.parametrize(
    "record",
    [
        ExchangeRecord(step=1, bucket_bytes=(8,), ready_ms=(NAN,), done_ms=(INF,)),
        LinkRecord(
            size_bytes=4, repeats=1, median_ms=0.0, min_ms=0.0, p95_ms=0.0, algorithm_gb_per_s=INF, bus_gb_per_s=INF
        ),
    ],
)
def test_a_record_with_infinity_is_written(record: ExchangeRecord | LinkRecord) -> None:
    assert strict(encode(record))["kind"] == record.kind


def test_results_with_infinity_are_json_in_csv() -> None:
    row = make_result(buckets=({"bus_gb_per_s": INF},))
    assert '[{""bus_gb_per_s"": null}]' in to_csv([row])


@pytest.mark.parametrize("line", ["3", "[]", "{}", '{"kind": 3}', '{"kind": "end"}', "", '{"kind": "step", "step": 1}'])
def test_a_line_that_is_no_record(line: str) -> None:
    with pytest.raises(ValueError, match=r"^it |^kind") as caught:
        decode(line)
    assert "\n" not in str(caught.value)


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / metrics_name(0)
    with RecordWriter(path) as writer:
        writer.write([STEP, STEP])
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"\xff\n" + lines[1])
    with pytest.raises(DamagedFile) as caught:
        list(read_records(path))
    assert str(caught.value) == f"{tmp_path}: {path.name} is damaged: line 2: it is not UTF-8 text"
    path.write_bytes(lines[0] + lines[1][:-1])
    assert list(read_records(path)) == [STEP], "the last line is being written"


@pytest.mark.parametrize("times", ["[1.0, null]", '[1.0, "2"]', "[1.0, true]", "[1.0, [2.0]]"])
def test_one_wrong_item_is_damage(times: str) -> None:
    line = f'{{"kind": "exchange", "step": 1, "bucket_bytes": [8, 8], "ready_ms": {times}, "done_ms": [1.0, 2.0]}}'
    with pytest.raises(ValueError, match=r"^ready_ms is "):
        decode(line)


def test_other_line_separators_are_part_of_a_text() -> None:
    assert parse_json('{"reason": "a\u2028b\x85c"}') == {"reason": "a\u2028b\x85c"}


@pytest.mark.parametrize("content", ["", "{", "{}", "[]", '{"steps": "x"}'])
def test_a_restarted_run_ignores_a_damaged_summary(content: str, tmp_path: Path) -> None:
    env = RankEnv(restart_count=1)
    config = TrainConfig(model="bert").resolved()
    write_json(tmp_path / "run.json", vars(run_info(config, env)))
    (tmp_path / "summary.json").write_text(content)
    assert begin_run(config, env, tmp_path) is None


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]"])
def test_a_damaged_run_file_is_written_again(content: bytes, tmp_path: Path) -> None:
    config = TrainConfig(model="bert").resolved()
    (tmp_path / "run.json").write_bytes(content)
    assert begin_run(config, RankEnv(), tmp_path) is None
    assert json.loads((tmp_path / "run.json").read_text())["run_id"] == run_info(config, RankEnv()).run_id
