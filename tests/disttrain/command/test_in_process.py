"""One rank of a script runs in this process, as under the debug executor; the other one is a process of its own."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from disttrain.command import signals
from disttrain.command_run import run_command
from disttrain.config.command.command_config import CommandConfig
from disttrain.environment.rank_env import RankEnv
from disttrain.errors import ScriptFailed, ScriptStopped, UserError
from disttrain.records.record_files import failure_name, read_failure, read_summary
from tests.disttrain.command.conftest import StartScript
from tests.disttrain.command.ranks import Ranks, in_slurm_cgroup, slurm_variables

pytestmark = pytest.mark.process

SCRIPT = """
import json, os, signal, sys, time
from pathlib import Path
signal.signal(signal.SIGTERM, lambda *_: sys.exit(85))
rank, folder = os.environ["RANK"], Path(os.environ["SWEEP_RUN_DIR"])
with open(os.environ["SWEEP_METRICS"], "a") as file:
    print(json.dumps({"step": 7, "loss": 0.5}), file=file)
(folder / f"ready-{rank}").touch()
what = sys.argv[2]
if what == "waits" or what == f"waits {rank}":
    time.sleep(60)
if what == f"fails {rank}":
    raise ValueError("boom")
sys.exit(85 if what == "stops" else 0)
"""
Run = Callable[..., Ranks]


@pytest.fixture
def run(tmp_path: Path, start_script: StartScript, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a script of two ranks: the given one here."""

    def run(rank: int, what: str, **options: Any) -> Ranks:
        job_id = str(uuid.uuid4().int % 10**9)
        ranks = start_script(SCRIPT, {"what": what}, per_node=2, only=[1 - rank], environ={"SLURM_JOB_ID": job_id})
        config = CommandConfig(f"{sys.executable} train.py", {"what": what}, working_dir=str(tmp_path / "work"))
        for name, value in slurm_variables(rank, 1, 2, job_id).items():
            monkeypatch.setenv(name, value)
        run_command(config, RankEnv.from_environ(os.environ), tmp_path / "run", **options)
        return ranks

    return run


@pytest.mark.parametrize("rank", [0, 1])
def test_both_scripts_end(rank: int, run: Run) -> None:
    ranks = run(rank, "ends")
    assert ranks.wait() == [0]
    summary = ranks.summary
    assert summary is not None
    assert (summary["steps"], summary["world_size"], summary["metrics"]["loss"]["last"]) == (7, 2, 0.5)


@pytest.mark.parametrize("rank", [0, 1])
def test_both_scripts_stop(rank: int, run: Run) -> None:
    with pytest.raises(ScriptStopped) as caught:
        run(rank, "stops")
    assert (caught.value.logged_step, caught.value.warned, caught.value.terminated) == (7, False, False)


@pytest.mark.parametrize(("rank", "failing"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_one_script_fails(rank: int, failing: int, run: Run, tmp_path: Path) -> None:
    with pytest.raises(ScriptFailed):
        run(rank, f"fails {failing}")
    assert read_summary(tmp_path / "run") is None
    assert read_failure(tmp_path / "run" / failure_name(failing)) is not None


@pytest.mark.parametrize("rank", [0, 1])
def test_the_other_script_is_ended(rank: int, run: Run, tmp_path: Path) -> None:
    threading.Thread(target=_kill_other, args=(tmp_path / "run", 1 - rank), daemon=True).start()
    with pytest.raises(ScriptFailed):
        run(rank, "waits")
    assert read_summary(tmp_path / "run") is None


def _kill_other(run_dir: Path, rank: int) -> None:
    """Ends the supervisor of the other rank, when both scripts run."""
    while not all((run_dir / "output" / f"ready-{number}").exists() for number in range(2)):
        time.sleep(0.02)
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                environ = (folder / "environ").read_bytes().split(b"\0")
                words = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if f"SLURM_PROCID={rank}".encode() in environ and bytes(run_dir) in words:
                os.kill(int(folder.name), signal.SIGKILL)


def test_a_termination_is_passed_on(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_CGROUP", Path(in_slurm_cgroup(tmp_path)["TEST_CGROUP"]))

    def terminate() -> None:
        while not (tmp_path / "run" / "output" / "ready-0").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGUSR2)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=terminate, daemon=True).start()
    with pytest.raises(ScriptStopped) as caught:
        run(0, "waits 0")
    assert (caught.value.warned, caught.value.terminated) == (True, True)


def test_a_program_that_does_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    config = CommandConfig("pythom train.py", {}, working_dir=str(tmp_path))
    with pytest.raises(UserError, match="pythom: command not found on PATH"):
        run_command(config, RankEnv(job_id="1"), tmp_path / "run")
    assert read_failure(tmp_path / "run" / failure_name(0)) is not None
