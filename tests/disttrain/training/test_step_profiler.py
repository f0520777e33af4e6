"""The traces of torch.profiler: their steps, their all-reduces, and what they leave out of the measured figures."""

from __future__ import annotations

import dataclasses
import gzip
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from disttrain.config.run_id import run_id
from disttrain.config.train_config import TrainConfig
from disttrain.training.step_profiler import StepProfiler, profile_name

if TYPE_CHECKING:
    from tests.disttrain.conftest import RunRanks

STEPS = 3


def test_the_default_changes_no_run_id() -> None:
    config = TrainConfig(model="bert")
    assert run_id("1x1", dataclasses.replace(config, profile_steps=0)) == run_id("1x1", config)
    assert run_id("1x1", dataclasses.replace(config, profile_steps=3)) != run_id("1x1", config)


def records(folder: Path, rank: int, kind: str) -> list[dict[str, Any]]:
    lines = (folder / f"metrics-rank{rank:05d}.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def test_two_ranks(vit_config: TrainConfig, run_ranks: RunRanks) -> None:
    """Each rank has a trace with the all-reduces of these steps: one for each bucket. They are not measured."""
    config = dataclasses.replace(
        vit_config, detailed_timing=True, profile_steps=STEPS, max_steps=9, bucket_cap_mb=0.02, eval_every=9
    )
    finished = run_ranks(config, 2)
    folder = finished.output_dir
    for rank in (0, 1):
        steps = records(folder, rank, "step")
        assert [step["step"] for step in steps if step["profiled"]] == [3, 4, 5]
        exchanges = [record for record in records(folder, rank, "exchange") if record["step"] in (3, 4, 5)]
        with gzip.open(folder / profile_name(rank), "rt") as file:
            events = json.load(file)["traceEvents"]
        names = [event["name"] for event in events if event.get("ph") == "X"]
        buckets = sum(len(exchange["bucket_bytes"]) for exchange in exchanges)
        assert buckets > STEPS
        assert sum(name == "gloo:all_reduce" for name in names) == buckets
    assert json.loads((folder / "summary.json").read_text())["measured_steps"] == 9 - 2 - STEPS
    assert not list(folder.glob(".profile*"))


def test_without_steps_nothing_is_recorded(tmp_path: Path) -> None:
    profiler = StepProfiler(tmp_path / "p.json.gz", 3, 0)
    profiler.before(3, lambda: pytest.fail("it restarts the timer"))
    profiler.close()
    assert not profiler.is_on
    assert not list(tmp_path.iterdir())


def test_a_run_that_ends_earlier_has_its_trace(tmp_path: Path) -> None:
    restarts: list[int] = []
    profiler = StepProfiler(tmp_path / "p.json.gz", 3, 5)
    profiler.before(2, lambda: restarts.append(2))
    for step in (3, 4):
        profiler.before(step, lambda: restarts.append(0))
        profiler.after(step, lambda: restarts.append(1))
    profiler.close()
    assert restarts == [0]
    assert [path.name for path in tmp_path.iterdir()] == ["p.json.gz"]
