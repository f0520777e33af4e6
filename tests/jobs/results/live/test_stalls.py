"""Runs that run and make no steps: what is said of them, and that it costs the other runs nothing."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from jobs.results.live.rank_tail import read_rank_tail
from jobs.results.live.stalls import RankActivity, read_stall, stall

NOW_S = 10_000.0
START = '{"kind": "start", "time_s": 1.0}\n'


@pytest.mark.parametrize(
    ("steps", "wrote_s", "median_step_ms", "line"),
    [
        ((120, 119), (9760, 9760), 50.0, "no step for 4 min (rank 1 last wrote step 119)"),
        ((120, 120), (9760, 9750), 50.0, "no step for 4 min (rank 1 last wrote step 120)"),
        ((120, 120), (9760, 9990), 50.0, None),  # one rank still writes
        ((120, 120), (9881, 9881), 50.0, None),  # less than 2 minutes
        ((200, 200), (9000, 9000), 50.0, None),  # the last step: the final checkpoint may still be written
        ((200, 199), (9000, 9000), 50.0, "no step for 16 min (rank 1 last wrote step 199)"),
        ((9, 9), (9700, 9700), 30_000.0, None),  # 5 minutes are 10 steps
        ((9, 9), (9690, 9690), 30_000.0, "no step for 5 min (rank 0 last wrote step 9)"),
        ((0, 0), (9410, 9410), None, None),  # the first step may compile the model
        ((0, 0), (9390, None), None, "no step for 10 min (rank 1 has written no step)"),
    ],
)  # fmt: skip
def test_silence(
    steps: tuple[int, int], wrote_s: tuple[float, float | None], median_step_ms: float | None, line: str | None
) -> None:
    ranks = [RankActivity(rank, step, time_s) for rank, (step, time_s) in enumerate(zip(steps, wrote_s, strict=True))]
    assert stall(0.0, 200, ranks, median_step_ms, NOW_S) == line
    assert stall(NOW_S - 100, 200, ranks, median_step_ms, NOW_S) is None, (
        "training has just resumed after an evaluation"
    )


def step_line(step: int, step_ms: float = 50.0) -> str:
    return json.dumps({"kind": "step", "step": step, "step_ms": step_ms, "loss": 0.5, "examples": 4}) + "\n"


def write_run(folder: Path, texts: Mapping[int, str], wrote_s: float, **stage: object) -> Path:
    """Writes stage.json and the records of some ranks, as they were at a time."""
    folder.mkdir(exist_ok=True)
    values = {"stage": "training", "since_s": wrote_s - 60, "steps": 200, "host": "n1", "pid": 1, **stage}
    (folder / "stage.json").write_text(json.dumps(values))
    for rank, text in texts.items():
        path = folder / f"metrics-rank{rank:05d}.jsonl"
        path.write_text(text)
        os.utime(path, (wrote_s, wrote_s))
    return folder


def test_the_rank_with_the_lowest_step_is_named(tmp_path: Path) -> None:
    texts = {0: START + step_line(119) + step_line(120), 1: START + step_line(119) + '{"kind": "st'}
    run = write_run(tmp_path, texts, wrote_s=NOW_S - 250)
    line = "no step for 4 min (rank 1 last wrote step 119)"
    assert read_stall(run, 2, None, NOW_S) == line
    assert read_stall(run, 2, NOW_S - 1000, NOW_S) == line
    assert read_stall(run, 2, NOW_S - 20, NOW_S) is None, "the files are of an earlier attempt"
    assert read_stall(run, 3, None, NOW_S) == "no step for 4 min (rank 2 has written no step)"


@pytest.mark.parametrize("stage", ["importing", "preparing data", "evaluating", "saving", "measuring"])
def test_other_stages_make_no_steps(stage: str, tmp_path: Path) -> None:
    assert read_stall(write_run(tmp_path, {0: step_line(1)}, 0.0, stage=stage), 1, None, NOW_S) is None


@pytest.mark.parametrize("text", ["", "{", '{"stage": 1}'])
def test_without_a_stage_nothing_is_said(text: str, tmp_path: Path) -> None:
    run = write_run(tmp_path, {0: step_line(1)}, 0.0)
    (run / "stage.json").write_text(text)
    assert read_stall(run, 1, None, NOW_S) is None
    (run / "stage.json").unlink()
    assert read_stall(run, 1, None, NOW_S) is None


def test_only_a_silent_run_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path, {0: step_line(1), 1: step_line(1)}, NOW_S - 30)
    opened: list[str] = []
    real = io.open

    def count(path: Path, *arguments: object, **options: object) -> object:
        opened.append(Path(path).name)
        return real(path, *arguments, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(io, "open", count)
    assert read_stall(run, 2, None, NOW_S) is None
    assert opened == ["stage.json"]
    assert read_stall(run, 2, None, NOW_S + 200) is not None
    assert opened[1:] == ["stage.json", "metrics-rank00000.jsonl", "metrics-rank00001.jsonl"]


def test_steps_before_the_latest_start_do_not_count(tmp_path: Path) -> None:
    """A run that resumes has the records of the steps before its checkpoint."""
    text = START + step_line(118) + step_line(119) + START
    run = write_run(tmp_path, {0: text}, NOW_S - 300)
    assert read_rank_tail(run, 0).last is None
    assert read_stall(run, 1, None, NOW_S) is None, "the first step of a start may take 10 minutes"
    (run / "metrics-rank00000.jsonl").write_text(text + step_line(120))
    tail = read_rank_tail(run, 0)
    assert ([step.step for step in tail.steps], tail.median_step_ms, tail.samples_per_s) == ([120], 50.0, 80.0)


def test_the_tail_of_a_long_file(tmp_path: Path) -> None:
    """The last step may be before many records of another kind; damaged values are left out."""
    other = '{"kind": "exchange", "step": 3}\n' * 1000
    damaged = '[]\n{"kind": "step", "step": "4"}\n{"kind": "step", "step": 5, "loss": null, "step_ms": -1}\n\x00\n'
    run = write_run(tmp_path, {0: START + step_line(1) * 2000 + step_line(2) + other}, time.time())
    tail = read_rank_tail(run, 0)
    assert tail.last is not None
    assert (tail.last.step, tail.last.loss, tail.last.examples) == (2, 0.5, 4)
    run = write_run(tmp_path, {0: damaged}, time.time())
    last = read_rank_tail(run, 0).last
    assert last is not None
    assert (last.step, last.loss, last.step_ms, last.examples) == (5, None, None, None)
    assert read_rank_tail(run / "gone", 0).last is None
