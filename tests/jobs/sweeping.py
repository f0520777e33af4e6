"""Helpers for tests of real sweeps: the `sweep` command as a user starts it, tiny sweeps, and running processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from disttrain.config.train_config import TrainConfig
from jobs.planning.expand import RunSpec
from jobs.slurm.states import State

T = TypeVar("T")

DATA = Path(__file__).resolve().parents[2] / "sweeps" / "data"
COMMAND_TIMEOUT_S = 60.0
# A failing run must end within this time after its first rank has failed.
END_LIMIT_S = 30.0
# What starts a command as if on another machine: with a name of its own, and process ids of its own. It needs root.
OTHER_HOST = ["unshare", "--uts", "--pid", "--fork", "--mount-proc", "sh", "-c", 'hostname login2 && exec "$@"', "sh"]

_TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
TINY_BERT = {**_TINY, "vocab_size": 1000}
TINY_VIT = {**_TINY, "patch_size": 8}


def train_config(run: RunSpec) -> TrainConfig:
    """The config of a run of our models."""
    assert isinstance(run.config, TrainConfig)
    return run.config


def tiny_base(**changes: Any) -> dict[str, Any]:
    """A `base` that trains a tiny BERT from scratch on the CPU for a few steps."""
    return {
        "model": "bert", "dataset": str(DATA / "sst2"), "architecture": TINY_BERT, "device": "cpu", "num_workers": 0,
        "per_gpu_batch": 4, "max_steps": 4, "max_train_examples": 200, "max_eval_examples": 40,
        "timing_warmup_steps": 1, **changes,
    }  # fmt: skip


def write_sweep(path: Path, **sections: Any) -> Path:
    """Writes a sweep file with these sections. The sweep has the name of the file."""
    path.write_text(yaml.safe_dump({"name": path.stem, **sections}, sort_keys=False))
    return path


class Sweeping:
    """The `sweep` command in one working directory and environment."""

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        self.folder = folder
        self.environ = {**environ, "PYTHONUNBUFFERED": "1"}

    def command(self, *arguments: str | Path) -> list[str]:
        """The command line, with the script that the installation of the package created."""
        return [str(Path(sys.executable).with_name("sweep")), *map(str, arguments)]

    def run(
        self, *arguments: str | Path, exit_code: int = 0, timeout_s: float = COMMAND_TIMEOUT_S
    ) -> subprocess.CompletedProcess[str]:
        """Runs the command until it ends, and checks its exit status."""
        completed = subprocess.run(
            self.command(*arguments), cwd=self.folder, env=self.environ, stdin=subprocess.DEVNULL, capture_output=True,
            text=True, timeout=timeout_s, check=False,
        )  # fmt: skip
        assert completed.returncode == exit_code, (
            f"{completed.args}: {completed.returncode}\n{completed.stdout}{completed.stderr}"
        )
        return completed

    def status(self, *arguments: str | Path) -> list[dict[str, Any]]:
        """The rows of `sweep status --json`. With --check the exit status must agree with their states."""
        completed = subprocess.run(
            self.command("status", "--json", "--check", *arguments), cwd=self.folder, env=self.environ, text=True,
            capture_output=True, timeout=COMMAND_TIMEOUT_S, check=False,
        )  # fmt: skip
        assert completed.returncode in (0, 1), completed.stderr
        rows: list[dict[str, Any]] = json.loads(completed.stdout)["runs"]
        failed = any(
            not State(row["state"]).is_success and State(row["state"]).is_finished for row in rows if not row["dropped"]
        )
        assert completed.returncode == int(failed)
        return rows

    def outside(self, *command: str | Path) -> str:
        """The output of another command, for example sacct or scontrol. It must succeed."""
        completed = subprocess.run(
            list(map(str, command)), cwd=self.folder, env=self.environ, stdin=subprocess.DEVNULL, capture_output=True,
            text=True, timeout=COMMAND_TIMEOUT_S, check=False,
        )  # fmt: skip
        assert completed.returncode == 0, f"{command}: {completed.stderr}"
        return completed.stdout


def wait_for(poll: Callable[[], T | None], what: str, *, limit_s: float, pause_s: float = 0.25) -> T:
    """The first true value that `poll` returns."""
    deadline = time.monotonic() + limit_s
    while True:
        value = poll()
        if value:
            return value
        assert time.monotonic() < deadline, f"no {what} within {limit_s:.0f} s"
        time.sleep(pause_s)


def records(run_dir: Path, rank: int, kind: str) -> list[dict[str, Any]]:
    """The records of one kind that a rank has written so far."""
    path = run_dir / f"metrics-rank{rank:05d}.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    complete = [json.loads(line) for line in lines if line.endswith("\n")]
    return [record for record in complete if record["kind"] == kind]


def processes_with(*entries: str) -> dict[int, str]:
    """The command lines, by process id, of the running processes with all these entries in their environment."""
    commands = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal() or folder.name == str(os.getpid()):
            continue
        try:
            environ = (folder / "environ").read_bytes().split(b"\0")  # empty for a zombie process
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it has just ended
        if all(entry.encode() in environ for entry in entries):
            commands[int(folder.name)] = command
    return commands


def without_lists(row: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a row that are one value in JSON and one text in CSV."""
    return {name: value for name, value in row.items() if not isinstance(value, list | dict)}


def csv_texts(row: Mapping[str, Any]) -> dict[str, str]:
    """The same columns as CSV has them."""
    return {name: "" if value is None else str(value) for name, value in without_lists(row).items()}


def by_run(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The result rows by run id."""
    return {row["run_id"]: row for row in rows}
