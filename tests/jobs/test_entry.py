"""The entry point of a rank: the config comes from the run's folder, the rank from the scheduler."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import disttrain.command_run
import disttrain.run
from disttrain.config.command.command_config import CommandConfig
from disttrain.config.train_config import TrainConfig
from disttrain.environment.rank_env import RankEnv
from disttrain.errors import UserError
from disttrain.records.lifecycle.attempt_log import ResumePolicy
from disttrain.records.record_files import FAILURE_GLOB, failure_name
from jobs.entry import RankTask

CONFIG = TrainConfig(model="bert", lr=1e-3, architecture={"hidden_size": 32}).resolved()
HANDLED = (signal.SIGTERM, signal.SIGCONT, signal.SIGUSR2)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    description = {"run_id": "2x1-a", "point": {}, "train": dataclasses.asdict(CONFIG), "versions": {}, "git": None}
    (tmp_path / "run.json").write_text(json.dumps(description))
    return tmp_path


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[TrainConfig, RankEnv, Path]]]:
    """The calls of the training core, in a process with the signal handlers that submitit sets."""
    recorded: list[tuple[TrainConfig, RankEnv, Path]] = []
    monkeypatch.setattr(disttrain.run, "run", lambda *arguments: recorded.append(arguments[:3]))
    for name in list(os.environ):
        if name.startswith(("SLURM", "SUBMITIT", "CUDA", "OMP")):
            monkeypatch.delenv(name)
    before = {number: signal.signal(number, lambda *_: None) for number in HANDLED}
    yield recorded
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_slurm_rank(
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
    # SIGTERM ends a rank. USR2, a warning, does not.
    assert [signal.getsignal(number) for number in HANDLED] == [signal.SIG_DFL, signal.SIG_DFL, signal.SIG_IGN]


@pytest.mark.parametrize(("user", "threads"), [(None, "3"), ("8", "8")])
def test_a_local_rank_is_folded(
    user: str | None,
    threads: str,
    run_dir: Path,
    calls: list[tuple[TrainConfig, RankEnv, Path]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    environ = {
        "SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_JOB_ID": "812", "SUBMITIT_LOCAL_NTASKS": "4",
        "SUBMITIT_LOCAL_GLOBALID": "3", "SUBMITIT_LOCAL_LOCALID": "3", "CUDA_VISIBLE_DEVICES": "0,1",
        "PYTHONSAFEPATH": "1",
    } | ({"OMP_NUM_THREADS": user} if user else {})  # fmt: skip
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", ""))  # restored after the test
    if user is None:
        monkeypatch.delenv("OMP_NUM_THREADS")
    RankTask(str(run_dir), nodes=2, gpus_per_node=2, folded=True, visible_gpus="", threads=3)()
    ((config, env, _),) = calls
    assert config.setup == "2x2"
    assert (env.rank, env.node_rank, env.local_rank, env.allocation, env.folded) == (3, 1, 1, "2x2", True)
    assert (os.environ["CUDA_VISIBLE_DEVICES"], os.environ["OMP_NUM_THREADS"]) == ("", threads)
    assert "PYTHONSAFEPATH" not in os.environ  # programs that the rank starts import from their own folder


@pytest.mark.parametrize(("model", "searched"), [("bert", False), ("own:Family", True)])
def test_only_an_own_family_searches_its_folders(
    model: str, searched: bool, run_dir: Path, calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [str(run_dir), "/working/directory"]
    train = dataclasses.asdict(dataclasses.replace(CONFIG, model=model, dataset="imdb"))
    (run_dir / "run.json").write_text(json.dumps({"train": train, "import_path": folders}))
    paths: list[list[str]] = []
    monkeypatch.setattr(disttrain.run, "run", lambda *_: paths.append(list(sys.path)))
    before = list(sys.path)
    RankTask(str(run_dir), nodes=1, gpus_per_node=1)()
    assert paths == [before + folders if searched else before]  # last: an installed package wins
    assert sys.path == before


@pytest.mark.parametrize(
    "environ", [{"SLURM_PROCID": "3"}, {"SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_GLOBALID": "3"}]
)
def test_a_rank_that_cannot_start_leaves_its_failure(
    environ: dict[str, str], run_dir: Path, calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Variables of its launcher are missing; sweep status has the reason, and the rank, from this file."""
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as caught:
        RankTask(str(run_dir), nodes=2, gpus_per_node=2)()
    (path,) = run_dir.glob(FAILURE_GLOB)
    failure = json.loads(path.read_text())
    assert (path.name, failure["rank"], failure["message"]) == (failure_name(3), 3, str(caught.value))
    assert calls == []


def test_the_pickle_has_no_config() -> None:
    task = RankTask("/sweeps/s/site/runs/a", nodes=2, gpus_per_node=2)
    data = pickle.dumps(task)
    assert pickle.loads(data) == task
    assert b"jobs.entry" in data
    assert len(data) < 300


@pytest.mark.parametrize(("policy", "warning"), [(None, signal.SIGUSR2), ("TERM", signal.SIGTERM)])
def test_a_rank_of_a_users_script(
    policy: Any, warning: signal.Signals, run_dir: Path, calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = {"flags": "{key}={value}", "switches": ["amp"], "launcher": "torchrun", "working_dir": "/work"}
    train = {"command": "python train.py", "model": "mine", "amp": True}
    (run_dir / "run.json").write_text(json.dumps({"train": train, "script": script}))
    started: list[Any] = []
    monkeypatch.setattr(
        disttrain.command_run, "run_command", lambda *arguments, **options: started.append((arguments, options))
    )
    resume = ResumePolicy("slurm", 3600, 120, 1, 1, 1, warning_signal=policy) if policy else None
    RankTask(str(run_dir), nodes=1, gpus_per_node=4, resume=resume)()
    (((config, env, folder), options),) = started
    values = {"model": "mine", "amp": True}
    assert config == CommandConfig("python train.py", values, "{key}={value}", ("amp",), "torchrun", "/work")
    assert (env.rank, folder) == (0, run_dir)
    stop_signals = options.pop("stop_signals")
    assert options == {"gpus_per_node": 4, "warning": warning}
    assert (stop_signals is not None) == (resume is not None)
    assert calls == []
    signal.signal(signal.SIGUSR2, signal.SIG_DFL)


@pytest.mark.process
def test_the_rank_of_a_script_loads_no_torch(run_dir: Path) -> None:
    script = {"flags": "--{key} {value}", "switches": [], "launcher": "ranks", "working_dir": str(run_dir)}
    (run_dir / "run.json").write_text(json.dumps({"train": {"command": "true"}, "script": script}))
    program = (
        "import sys; from jobs.entry import RankTask; RankTask(sys.argv[1], nodes=1, gpus_per_node=1)();"
        "print([name for name in ('torch', 'numpy', 'transformers', 'disttrain.run') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program, run_dir], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert (run_dir / "summary.json").exists()


@pytest.mark.process
def test_a_killed_script_looks_killed_to_slurm(run_dir: Path) -> None:
    script = {"flags": "--{key} {value}", "switches": [], "launcher": "ranks", "working_dir": str(run_dir)}
    (run_dir / "run.json").write_text(json.dumps({"train": {"command": "sh -c 'kill -9 $$'"}, "script": script}))
    environ = {
        "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_LOCALID": "0",
        "SLURM_NODEID": "0", "SLURM_NNODES": "1", "SLURM_TASKS_PER_NODE": "1", "SLURM_STEP_NODELIST": "localhost",
    }  # fmt: skip
    program = "import sys; from jobs.entry import RankTask; RankTask(sys.argv[1], nodes=1, gpus_per_node=1)()"
    done = subprocess.run([sys.executable, "-c", program, run_dir], env={**os.environ, **environ}, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not list(run_dir.glob(FAILURE_GLOB))
