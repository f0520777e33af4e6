"""The cost of measuring: the arithmetic, the number of calls in a real step, and a tiny real run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest

from disttrain.config.train_config import TrainConfig
from disttrain.environment.rank_env import RankEnv
from disttrain.measure.phase_timer import PhaseTimer
from disttrain.run import run
from disttrain.training.step_writer import StepWriter
from tests.benchmarks.overheads import LAPS, Cost, Repetition, RunTimes, parts, tiny, totals
from tests.benchmarks.tables import HEAD

pytestmark = pytest.mark.process


def repetition(step_ms: float, lap_us: float) -> Repetition:
    costs = (Cost("timing", "a lap", lap_us, 4), Cost("probes", "a bucket", 50.0, 2, probes=True))
    return Repetition(RunTimes(step_ms, 0, 0.1), RunTimes(step_ms + 1, 2, 0.6), costs)


def test_share_is_cost_times_calls() -> None:
    short, long = repetition(10.0, 5.0), repetition(20.0, 5.0)
    assert short.costs[0].share(10.0) == 4 * 5 / 10_000
    assert short.total(probes=False) == 0.002
    assert short.total(probes=True) == 0.012
    lap, bucket = parts({"work": [short, long]}).rows
    assert lap == ("work", "timing", "a lap", "5.00 [5.00 to 5.00]", "4", "0.150 [0.100 to 0.200] %")
    assert bucket[3:] == ("50.00 [50.00 to 50.00]", "2", "0.750 [0.500 to 1.000] %")
    (row,) = totals({"work": [short]}).rows
    assert row == ("work", "1", "10.0", "0.200 %", "11.0", "1.200 %", "0.60")


def test_calls_in_a_real_step(tmp_path: Path, repository: Path) -> None:
    steps = 5
    flags = dict(tiny(steps).flags)
    del flags["architecture"]
    config = TrainConfig(
        model="bert",
        dataset=str(repository / "sweeps" / "data" / "sst2"),
        architecture={"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32},
        max_steps=steps,
        max_eval_examples=0,
        device="cpu",
        save_model=False,
        **flags,
    )
    with (
        patch.object(PhaseTimer, "lap", autospec=True, side_effect=PhaseTimer.lap) as laps,
        patch.object(PhaseTimer, "end_step", autospec=True, side_effect=PhaseTimer.end_step) as ends,
        patch.object(StepWriter, "add", autospec=True, side_effect=StepWriter.add) as added,
    ):
        run(config, RankEnv(), tmp_path)
    assert (laps.call_count, ends.call_count, added.call_count) == (LAPS * steps, steps, steps)


def test_tiny_run_writes_its_tables(tmp_path: Path, repository: Path) -> None:
    out = tmp_path / "table.md"
    words = [sys.executable, "-m", "tests.benchmarks.overheads", "--quick"]
    ran = subprocess.run(
        [*words, "--work", str(tmp_path / "work"), "--out", str(out)],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert out.read_text(encoding="utf-8") == f"{HEAD}\n{ran.stdout}"
    assert ran.stdout.count("| probes |") == 2
