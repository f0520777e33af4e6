"""What runs on each rank: the config of the run's own folder, in the place that the scheduler gave the rank."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import disttrain.run
from disttrain.config.train_config import TrainConfig
from disttrain.environment.rank_env import RankEnv
from jobs.entry import RankTask

CONFIG = TrainConfig(model="bert", lr=1e-3, architecture={"hidden_size": 32}).resolved()
HANDLED = (signal.SIGTERM, signal.SIGCONT, signal.SIGUSR2)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    laid = {"run_id": "2x1-a", "point": {}, "train": dataclasses.asdict(CONFIG), "versions": {}, "git": None}
    (tmp_path / "run.json").write_text(json.dumps(laid))
    return tmp_path


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[TrainConfig, RankEnv, Path]]]:
    """What the training core is called with; as submitit leaves the process, its handlers set."""
    found: list[tuple[TrainConfig, RankEnv, Path]] = []
    monkeypatch.setattr(disttrain.run, "run", lambda *arguments: found.append(arguments))
    for name in list(os.environ):
        if name.startswith(("SLURM", "SUBMITIT", "CUDA", "OMP")):
            monkeypatch.delenv(name)
    before = {number: signal.signal(number, lambda *_: None) for number in HANDLED}
    yield found
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_rank_of_slurm(
    run_dir: Path, calls: list[tuple[TrainConfig, RankEnv, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = {
        "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0",
        "SLURM_NODEID": "1", "SLURM_NNODES": "2", "SLURM_TASKS_PER_NODE": "1(x2)", "SLURM_STEP_NODELIST": "n[3-4]",
        "CUDA_VISIBLE_DEVICES": "3",
    }  # fmt: skip
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    RankTask(str(run_dir), nodes=2, gpus_per_node=1)()
    ((config, env, folder),) = calls
    assert config == dataclasses.replace(CONFIG, setup="2x1")
    assert folder == run_dir
    assert (env.rank, env.allocation, env.folded, env.launcher) == (1, "2x1", False, "slurm")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"
    assert "OMP_NUM_THREADS" not in os.environ
    # A rank ends when Slurm says so, and goes on when it only warns.
    assert [signal.getsignal(number) for number in HANDLED] == [signal.SIG_DFL, signal.SIG_DFL, signal.SIG_IGN]


@pytest.mark.parametrize(("user", "threads"), [(None, "3"), ("8", "8")])
def test_a_rank_of_the_local_executor_is_folded(
    user: str | None,
    threads: str,
    run_dir: Path,
    calls: list[tuple[TrainConfig, RankEnv, Path]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    environ = {
        "SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_JOB_ID": "812", "SUBMITIT_LOCAL_NTASKS": "4",
        "SUBMITIT_LOCAL_GLOBALID": "3", "SUBMITIT_LOCAL_LOCALID": "3", "CUDA_VISIBLE_DEVICES": "0,1",
    } | ({"OMP_NUM_THREADS": user} if user else {})  # fmt: skip
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", ""))  # comes back after the test
    if user is None:
        monkeypatch.delenv("OMP_NUM_THREADS")
    RankTask(str(run_dir), nodes=2, gpus_per_node=2, folded=True, visible_gpus="", threads=3)()
    ((config, env, _),) = calls
    assert config.setup == "2x2"
    assert (env.rank, env.node_rank, env.local_rank, env.allocation, env.folded) == (3, 1, 1, "2x2", True)
    assert (os.environ["CUDA_VISIBLE_DEVICES"], os.environ["OMP_NUM_THREADS"]) == ("", threads)


def test_a_task_travels_by_reference_and_holds_no_config() -> None:
    task = RankTask("/sweeps/s/site/runs/a", nodes=2, gpus_per_node=2)
    data = pickle.dumps(task)
    assert pickle.loads(data) == task
    assert b"jobs.entry" in data
    assert len(data) < 300
