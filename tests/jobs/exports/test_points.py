"""What an export reads of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from disttrain.records.json_values import DamagedFile
from jobs.exports.points import Point, Progress, new_points
from tests.jobs.exports.recorded import SAMPLE, START_S, append, start, step, three_steps


def read(run_dir: Path, progress: Progress, *, is_command: bool = False) -> list[Point]:
    return list(new_points(run_dir, progress, is_command=is_command))


def test_all_series_have_their_step(tmp_path: Path) -> None:
    append(tmp_path / "metrics-rank00000.jsonl", three_steps())
    first, _, third, evaluation, sample = read(tmp_path, Progress())
    assert first.values["train/loss"] == 1
    assert first.values["train/samples_per_s"] == 40
    assert first.values["phases/backward_ms"] == 60
    assert "phases/exposed_comm_ms" not in first.values
    assert third.time_s == pytest.approx(START_S + 0.3)
    assert (evaluation.step, dict(evaluation.values)) == (3, {"eval/loss": 0.25, "eval/accuracy": 0.75})
    assert (sample.step, dict(sample.values)) == (3, {"telemetry/host_cpu_percent": 40})


def test_only_new_lines_are_read_again(tmp_path: Path) -> None:
    file, progress = append(tmp_path / "metrics-rank00000.jsonl", three_steps()), Progress()
    assert len(read(tmp_path, progress)) == 5
    with file.open("a") as lines:
        lines.write('{"kind": "step", "st')
    assert read(tmp_path, progress) == []
    file.write_text(file.read_text().rpartition("\n")[0] + "\n")
    append(file, [step(4)])
    assert [point.step for point in read(tmp_path, progress)] == [4]


def test_a_repeated_step_counts_once(tmp_path: Path) -> None:
    file, progress = append(tmp_path / "metrics-rank00000.jsonl", three_steps()), Progress()
    read(tmp_path, progress)
    replaced = append(tmp_path / "new", [start(), step(1), step(2), start(3), step(3, 9.0), step(4)])
    replaced.rename(file)
    assert [point.step for point in read(tmp_path, progress)] == [4]


def test_a_loss_that_is_not_finite_is_left_out(tmp_path: Path) -> None:
    append(tmp_path / "metrics-rank00000.jsonl", [{**step(1), "loss": None}])
    (point,) = read(tmp_path, Progress())
    assert "train/loss" not in point.values


def test_metrics_of_a_script_are_of_all_attempts(tmp_path: Path) -> None:
    folder, progress = tmp_path / "script-metrics", Progress()
    append(folder / "rank00000-attempt001.jsonl", [{"step": 1, "loss": 3}, {"step": 2, "loss": 2}, {"step": 2, "f": 1}])
    append(folder / "rank00000-attempt002.jsonl", [{"step": 2, "loss": 9}, {"step": 3, "loss": 1, "note": "text"}])
    append(tmp_path / "metrics-rank00000.jsonl", [SAMPLE, {**SAMPLE, "time_s": START_S + 2}])
    points = [(point.step, dict(point.values)) for point in read(tmp_path, progress, is_command=True)]
    samples = [(number, {"telemetry/host_cpu_percent": 40}) for number in range(2)]
    assert points == [(1, {"loss": 3}), (2, {"loss": 2}), (2, {"f": 1}), (3, {"loss": 1}), *samples]
    assert read(tmp_path, progress, is_command=True) == []


def test_a_damaged_record_names_the_file(tmp_path: Path) -> None:
    append(tmp_path / "metrics-rank00000.jsonl", [{"kind": "other"}])
    with pytest.raises(DamagedFile, match="metrics-rank00000"):
        read(tmp_path, Progress())
