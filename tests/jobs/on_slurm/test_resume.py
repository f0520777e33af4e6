"""On the real Slurm: runs that are preempted or reach their time limit save, start again by themselves, and finish."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from disttrain.records.lifecycle.attempt_log import read_attempts
from tests.jobs.sweeping import DATA, Sweeping, processes_with, records, wait_for, write_sweep

pytestmark = pytest.mark.slurm

THIRD_MODEL = Path(__file__).resolve().parents[2] / "third_model" / "bag_of_words.py"
# A model whose steps take at least 0.1 s, whatever the machine.
SLOW = """
import time

from bag_of_words import BagOfWords, Classifier
from disttrain.api import BuiltModel


class SlowClassifier(Classifier):
    def forward(self, batch):
        time.sleep(0.1)
        return super().forward(batch)


class Slow(BagOfWords):
    def build(self, config, encoded):
        return BuiltModel(SlowClassifier(len(encoded.reader), len(encoded.label_names)))
"""
# Steps of 0.1 s: more than fit into two time limits of one minute, of which Slurm warns up to 60 s early.
STEPS, PREEMPTED_STEPS, LOST_STEPS = 700, 200, 120
LIMIT_S = 480.0


@dataclass(frozen=True)
class Disturbed:
    """The sweeps after their end, one run in each."""

    sweeping: Sweeping
    mark: str

    def run_dir(self, name: str) -> Path:
        (run_dir,) = (self.sweeping.folder / "runs" / name / "two_nodes" / "runs").iterdir()
        return run_dir

    def row(self, name: str) -> dict[str, Any]:
        (row,) = self.sweeping.status(name)
        return row

    def losses(self, name: str, rank: int = 0) -> list[tuple[int, float]]:
        return [(record["step"], record["loss"]) for record in records(self.run_dir(name), rank, "step")]


def submit(
    sweeping: Sweeping, name: str, allocation: str, steps: int, checkpoint_every: int | None = None, **slurm: Any
) -> None:
    base = {
        "model": "slow:Slow", "dataset": str(DATA / "sst2"), "device": "cpu", "per_gpu_batch": 4, "max_steps": steps,
        "lr": 1e-2, "max_train_examples": 200, "max_eval_examples": 40, "timing_warmup_steps": 1,
        "checkpoint_every": checkpoint_every,
    }  # fmt: skip
    file = write_sweep(sweeping.folder / f"{name}.yaml", allocations=[allocation], base=base, slurm=slurm)
    sweeping.run("submit", file)


@pytest.fixture(scope="module")
def disturbed(slurm_cluster: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disturbed]:
    folder = tmp_path_factory.mktemp("resume")
    shutil.copy(THIRD_MODEL, folder)
    (folder / "slow.py").write_text(SLOW)
    # An environment variable that every process of the jobs inherits.
    sweeping = Sweeping(folder, {**os.environ, **slurm_cluster, "TEST_OF_RESUMING": str(folder)})
    disturbed = Disturbed(sweeping, f"TEST_OF_RESUMING={folder}")
    names = ("limits", "chained", "preempted", "undisturbed")  # and "lost"
    try:
        submit(sweeping, "limits", "1x1", STEPS, time="1", gpu_request="none")
        submit(sweeping, "chained", "1x1", STEPS, time="1", gpu_request="none", requeue="chain")
        submit(sweeping, "preempted", "2x2", PREEMPTED_STEPS, partition="preempt")
        wait_for(lambda: records(disturbed.run_dir("preempted"), 0, "step"), "steps", limit_s=90)
        # It needs three GPUs on both nodes, and has priority.
        sweeping.outside("sbatch", "--wrap=sleep 5", "-N2", "--gpus-per-node=3", f"--chdir={folder}", "-J", "urgent")
        wait_for(lambda: read_attempts(disturbed.run_dir("preempted"))[0].cause, "preemption", limit_s=60)
        wait_for(lambda: disturbed.row("preempted")["state"] == "COMPLETED", "its end", limit_s=LIMIT_S)
        submit(sweeping, "undisturbed", "2x2", PREEMPTED_STEPS)
        for name in names:
            wait_for(lambda name=name: disturbed.row(name)["state"] == "COMPLETED", name, limit_s=LIMIT_S, pause_s=2)  # type: ignore[misc]
        _lose_a_node(disturbed)
        yield disturbed
    finally:
        for name in (*names, "lost", "urgent"):
            subprocess.run(["scancel", f"--name={name}"], env=sweeping.environ, check=False)


def _lose_a_node(disturbed: Disturbed) -> None:
    """Runs a sweep whose second node goes down, without a warning, and comes back."""
    sweeping = disturbed.sweeping
    submit(sweeping, "lost", "2x1", LOST_STEPS, checkpoint_every=10)
    wait_for(lambda: records(disturbed.run_dir("lost"), 0, "checkpoint"), "a checkpoint", limit_s=90)
    sweeping.outside("scontrol", "update", "nodename=node2", "state=down", "reason=test")
    try:
        wait_for(lambda: disturbed.row("lost")["state"] != "RUNNING", "the end of the attempt", limit_s=60)
    finally:
        # Slurm may have taken it back by itself, and then refuses this.
        resume = ["scontrol", "update", "nodename=node2", "state=resume"]
        subprocess.run(resume, env=sweeping.environ, check=False)
    wait_for(lambda: disturbed.row("lost")["state"] == "COMPLETED", "its end", limit_s=LIMIT_S)


def test_a_run_resumes_after_its_node_was_lost(disturbed: Disturbed) -> None:
    first, second = read_attempts(disturbed.run_dir("lost"))
    assert first.cause == "node failure"
    assert second.first_step > 0
    assert [step for step, _ in disturbed.losses("lost")] == list(range(1, LOST_STEPS + 1))
    assert disturbed.row("lost")["attempts"] == 2


def test_a_preempted_run_resumes_exactly(disturbed: Disturbed) -> None:
    for rank in range(4):
        steps = disturbed.losses("preempted", rank)
        assert [step for step, _ in steps] == list(range(1, PREEMPTED_STEPS + 1)), "no step is lost or repeated"
        assert steps == disturbed.losses("undisturbed", rank)
    attempts = read_attempts(disturbed.run_dir("preempted"))
    assert {attempt.cause for attempt in attempts[:-1]} == {"preemption"}
    assert attempts[0].last_step
    # Slurm 24.11 preempts a run that has requeued itself once more after its next start. A start after the last step
    # finds the summary, and logs nothing.
    for earlier, later in pairwise(attempts):
        assert later.first_step == (earlier.last_step or earlier.first_step)
    row = disturbed.row("preempted")
    assert row["attempts"] >= len(attempts) >= 2
    assert row["reason"] is None


def test_accounting_has_all_attempts(disturbed: Disturbed) -> None:
    row = disturbed.row("preempted")
    text = disturbed.sweeping.outside(
        "sacct", "-nPXD", "-j", row["job_id"].partition("_")[0], "-o", "State,ElapsedRaw,AllocTRES"
    )
    attempts = [line.split("|") for line in text.splitlines()]
    assert row["attempts"] == len(attempts)
    states = [state for state, _, _ in attempts]
    assert states[-1] == "COMPLETED"
    assert set(states[:-1]) <= {"REQUEUED", "PREEMPTED"}
    assert all("gres/gpu=4" in tres for _, _, tres in attempts)
    assert row["gpu_hours"] == pytest.approx(sum(4 * int(seconds) for _, seconds, _ in attempts) / 3600, abs=1e-6)


@pytest.mark.parametrize("name", ["limits", "chained"])
def test_a_run_longer_than_its_time_limit_finishes(name: str, disturbed: Disturbed) -> None:
    attempts = read_attempts(disturbed.run_dir(name))
    assert len(attempts) >= 3
    assert {attempt.cause for attempt in attempts[:-1]} == {"time limit"}
    assert [attempt.last_step for attempt in attempts[:-1]] == [attempt.first_step for attempt in attempts[1:]]
    assert [step for step, _ in disturbed.losses(name)] == list(range(1, STEPS + 1))
    row = disturbed.row(name)
    assert row["attempts"] == len(attempts)
    jobs = {attempt.job_id for attempt in attempts}
    assert len(jobs) == (len(attempts) if name == "chained" else 1)
    assert row["job_id"] == attempts[-1].job_id


def test_both_ways_compute_the_same(disturbed: Disturbed) -> None:
    assert disturbed.losses("limits") == disturbed.losses("chained")


def test_no_process_is_left(disturbed: Disturbed) -> None:
    assert not processes_with(disturbed.mark)
