"""The scripts of sweeps/examples under torchrun and alone, as their users start them, without a sweep."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.jobs.sweeping import wait_for

pytestmark = pytest.mark.process

EXAMPLES = Path(__file__).resolve().parents[2] / "sweeps" / "examples"
SCRIPTS = ("ddp_loop.py", "hf_trainer.py", "accelerate_loop.py")
TORCHRUN = (str(Path(sys.executable).with_name("torchrun")), "--standalone", "--nproc_per_node=2")
STOPPED = 85
LIMIT_S = 120.0
# Enough steps that the signal comes before the last one.
LONG = {
    "ddp_loop.py": ("--batch_size", "4", "--epochs", "1"),
    "hf_trainer.py": ("--per_gpu_batch", "4", "--epochs", "1"),
}


@pytest.fixture(scope="module")
def hf_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of the data library, so that the tests do not use that of the user."""
    return tmp_path_factory.mktemp("hf")


class Folder:
    """A working directory, in which the folder of the run is `run`, and the metrics are `metrics.jsonl`."""

    def __init__(self, path: Path, hf_home: Path) -> None:
        self.path = path
        self.run_dir = path / "run"
        self.metrics_file = path / "metrics.jsonl"
        self.run_dir.mkdir(parents=True)
        outside = ("SLURM_", "SWEEP_", "TORCHELASTIC_")
        clean = {name: value for name, value in os.environ.items() if not name.startswith(outside)}
        self.environ = {**clean, "HF_HOME": str(hf_home), "OMP_NUM_THREADS": "1"}

    def start(self, *command: str, **environ: str) -> subprocess.Popen[str]:
        """Starts a command as a run of a sweep."""
        of_run = {"SWEEP_RUN_DIR": str(self.run_dir), "SWEEP_METRICS": str(self.metrics_file)}
        return subprocess.Popen(
            command, cwd=self.path, env={**self.environ, **of_run, **environ}, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def start_ranks(self, script: str, *flags: str) -> list[subprocess.Popen[str]]:
        """Starts two ranks as a sweep does: with torchrun's variables, without torchrun."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        return [
            self.start(
                sys.executable, str(EXAMPLES / script), *flags, RANK=rank, LOCAL_RANK=rank, WORLD_SIZE="2",
                LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port,
            )
            for rank in ("0", "1")
        ]  # fmt: skip

    def metrics(self) -> list[dict[str, Any]]:
        """The metrics that the run has logged so far."""
        lines = self.metrics_file.read_text().splitlines(keepends=True) if self.metrics_file.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def losses(self) -> dict[int, float]:
        return {line["step"]: line["loss"] for line in self.metrics() if "loss" in line}


@pytest.fixture
def folder(tmp_path: Path, hf_home: Path) -> Folder:
    return Folder(tmp_path / "work", hf_home)


def end(processes: Sequence[subprocess.Popen[str]]) -> list[int]:
    """The exit statuses of processes, which are killed after LIMIT_S."""
    try:
        for process in processes:
            output, _ = process.communicate(timeout=LIMIT_S)
            print(output)
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes]


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("launcher", [TORCHRUN, (sys.executable,)], ids=["torchrun", "alone"])
def test_it_learns(launcher: tuple[str, ...], script: str, folder: Folder) -> None:
    assert end([folder.start(*launcher, str(EXAMPLES / script), "--lr", "3e-3")]) == [0]
    metrics = folder.metrics()
    assert all(isinstance(value, int | float) for line in metrics for value in line.values())
    steps = [line["step"] for line in metrics]
    assert steps == sorted(steps)
    losses = list(folder.losses().values())
    assert sum(losses[-3:]) < 0.95 * sum(losses[:3])
    assert len({line["step"] for line in metrics if "loss" in line}) == len(losses)  # only one rank logs
    speeds = [line["samples_per_s"] for line in metrics if "samples_per_s" in line]
    assert len(speeds) == len(losses) - 1  # the first steps are slower, and do not count
    assert min(speeds) > 0
    accuracy = metrics[-1].get("accuracy", metrics[-1].get("eval_accuracy", 0))
    assert accuracy > (0.25 if script == "accelerate_loop.py" else 0.6)  # 10 classes, or 2


def test_outside_a_sweep_it_writes_nothing(folder: Folder) -> None:
    command = [sys.executable, str(EXAMPLES / "ddp_loop.py"), "--lr", "1e-3", "--epochs", "1"]
    subprocess.run(command, cwd=folder.path, env=folder.environ, check=True, timeout=LIMIT_S, stdout=subprocess.DEVNULL)
    assert list(folder.path.rglob("*")) == [folder.run_dir]


@pytest.mark.parametrize("script", LONG)
def test_it_saves_at_the_warning_and_resumes(script: str, folder: Folder, tmp_path: Path, hf_home: Path) -> None:
    """The warning of only one rank stops both after the same step."""
    ranks = folder.start_ranks(script, "--lr", "1e-3", *LONG[script])
    wait_for(lambda: len(folder.losses()) >= 2, "metrics", limit_s=LIMIT_S, pause_s=0.02)
    ranks[1].send_signal(signal.SIGUSR2)
    assert end(ranks) == [STOPPED, STOPPED]
    stopped_after = max(folder.losses())
    assert not any("accuracy" in name for line in folder.metrics() for name in line)

    assert end(folder.start_ranks(script, "--lr", "1e-3", *LONG[script])) == [0, 0]
    steps = [line["step"] for line in folder.metrics() if "loss" in line]
    assert steps == list(range(10, max(steps) + 1, 10))  # no step twice
    assert stopped_after < max(steps)

    undisturbed = Folder(tmp_path / "undisturbed", hf_home)
    if script == "hf_trainer.py":  # the tokenizer of another process numbers its tokens in another order
        (folder.run_dir / "tokenizer").rename(undisturbed.run_dir / "tokenizer")
    assert end(undisturbed.start_ranks(script, "--lr", "1e-3", *LONG[script])) == [0, 0]
    assert folder.losses() == undisturbed.losses()


def test_torchrun_names_the_exit_status(folder: Folder) -> None:
    """Its own exit status is 1."""
    launcher = folder.start(*TORCHRUN, str(EXAMPLES / "ddp_loop.py"), "--lr", "1e-3", *LONG["ddp_loop.py"])
    wait_for(lambda: folder.losses(), "metrics", limit_s=LIMIT_S, pause_s=0.02)
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGUSR2)
    output, _ = launcher.communicate(timeout=LIMIT_S)
    assert launcher.returncode == 1
    assert f"exitcode  : {STOPPED} " in output
    assert (folder.run_dir / "checkpoint.pt").exists()
