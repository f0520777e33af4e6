"""What the tests of real sweeps share: the `sweep` command as a user starts it, tiny sweeps, a look at processes."""

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

T = TypeVar("T")

DATA = Path(__file__).resolve().parents[2] / "sweeps" / "data"
COMMAND_TIMEOUT_S = 60.0
# A failing run must be over this long after its first rank has failed.
END_LIMIT_S = 30.0

_TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
TINY_BERT = {**_TINY, "vocab_size": 1000}
TINY_VIT = {**_TINY, "patch_size": 8}


def tiny_base(**changes: Any) -> dict[str, Any]:
    """A `base` of a few short steps of a tiny BERT from scratch on the CPU."""
    return {
        "model": "bert", "dataset": str(DATA / "sst2"), "architecture": TINY_BERT, "device": "cpu", "num_workers": 0,
        "per_gpu_batch": 4, "max_steps": 4, "max_train_examples": 200, "max_eval_examples": 40,
        "timing_warmup_steps": 1, **changes,
    }  # fmt: skip


def write_sweep(path: Path, **sections: Any) -> Path:
    """A sweep file with these sections, named after the file."""
    path.write_text(yaml.safe_dump({"name": path.stem, **sections}, sort_keys=False))
    return path


class Sweeping:
    """The `sweep` command in one working directory and environment."""

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        self.folder = folder
        self.environ = {**environ, "PYTHONUNBUFFERED": "1"}

    def command(self, *arguments: str | Path) -> list[str]:
        """The command line, with the script that the package's installation made."""
        return [str(Path(sys.executable).with_name("sweep")), *map(str, arguments)]

    def run(
        self, *arguments: str | Path, exit_code: int = 0, timeout_s: float = COMMAND_TIMEOUT_S
    ) -> subprocess.CompletedProcess[str]:
        """Runs it to its end, which must come with this exit status."""
        done = subprocess.run(
            self.command(*arguments), cwd=self.folder, env=self.environ, stdin=subprocess.DEVNULL, capture_output=True,
            text=True, timeout=timeout_s, check=False,
        )  # fmt: skip
        assert done.returncode == exit_code, f"{done.args}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def status(self, *arguments: str | Path) -> list[dict[str, Any]]:
        """The rows of `sweep status --json`, whatever its exit status says of the runs."""
        done = subprocess.run(
            self.command("status", "--json", *arguments), cwd=self.folder, env=self.environ, capture_output=True,
            text=True, timeout=COMMAND_TIMEOUT_S, check=False,
        )  # fmt: skip
        assert done.returncode in (0, 1), done.stderr
        rows: list[dict[str, Any]] = json.loads(done.stdout)["runs"]
        failed = any(
            row["state"] not in ("NOT_SUBMITTED", "PENDING", "REQUEUED", "RUNNING", "COMPLETED") for row in rows
        )
        assert done.returncode == int(failed)
        return rows

    def outside(self, *command: str | Path) -> str:
        """What another command prints, sacct or scontrol say; it must succeed."""
        done = subprocess.run(
            list(map(str, command)), cwd=self.folder, env=self.environ, stdin=subprocess.DEVNULL, capture_output=True,
            text=True, timeout=COMMAND_TIMEOUT_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout


def wait_for(look: Callable[[], T | None], what: str, *, limit_s: float, pause_s: float = 0.25) -> T:
    """What `look` finds, once it finds something."""
    deadline = time.monotonic() + limit_s
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < deadline, f"no {what} within {limit_s:.0f} s"
        time.sleep(pause_s)


def records(run_dir: Path, rank: int, kind: str) -> list[dict[str, Any]]:
    """The records of one kind that a rank has written so far."""
    path = run_dir / f"metrics-rank{rank:05d}.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    return [record for record in found if record["kind"] == kind]


def processes_with(*entries: str) -> dict[int, str]:
    """Command lines, by process id, of the living processes that have all these entries in their environment."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal() or folder.name == str(os.getpid()):
            continue
        try:
            environ = (folder / "environ").read_bytes().split(b"\0")  # empty of a zombie
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it has just ended
        if all(entry.encode() in environ for entry in entries):
            found[int(folder.name)] = command
    return found


def by_run(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Result rows by run id."""
    return {row["run_id"]: row for row in rows}
