"""Starts ranks of bert.py or vit.py for a check, waits until all are gone, and reads what they wrote."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.gpu.processes import end_all
from tests.gpu.wheels import REPOSITORY

_SCRIPT = REPOSITORY / "tests" / "gpu" / "rank.py"
_BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
_TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


class CheckError(Exception):
    """A check failed; the message is one line."""


class NoTimeError(Exception):
    """The time of `make gpu` ended before the check did."""


@dataclass(frozen=True)
class Sizes:
    """How large the runs are: BERT-base and ViT-B/16 on a GPU, small ones in a test."""

    steps: int = 200
    quick: bool = False
    timeout_s: float = 15.0  # of a collective, in the checks of faults

    def architecture(self, model: str) -> dict[str, Any]:
        base = _TINY if self.quick else _BASE
        if model == "bert":
            return {**base, "vocab_size": 300 if self.quick else 8000}
        return {**base, "patch_size": 16}

    def flags(self, model: str) -> list[str]:
        data = "sst2" if model == "bert" else "cifar10"
        flags = [
            f"--dataset={REPOSITORY / 'sweeps' / 'data' / data}",
            "--per_gpu_batch=16",
            f"--max_steps={self.steps}",
        ]
        if self.quick:
            flags += ["--max_train_examples=320", "--max_eval_examples=64", "--start_check_s=0", "--num_workers=0"]
            flags += ["--image_size=32"] if model == "vit" else []
        return [*flags, f"--architecture={json.dumps(self.architecture(model))}", "--eval_every=1000000"]


@dataclass(frozen=True)
class Ran:
    """Ranks that have ended."""

    folder: Path
    status: int
    output: str
    ended_s: float

    @property
    def summary(self) -> dict[str, Any]:
        try:
            summary: dict[str, Any] = json.loads((self.folder / "run" / "summary.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            last = next((line for line in reversed(self.output.splitlines()) if line.strip()), "no output")
            raise CheckError(f"exit status {self.status}, no summary: {last}") from None
        return summary

    def records(self, kind: str, rank: int = 0) -> list[dict[str, Any]]:
        lines = (self.folder / "run" / f"metrics-rank{rank:05d}.jsonl").read_text(encoding="utf-8").splitlines()
        return [record for record in map(json.loads, lines) if record["kind"] == kind]

    def losses(self, rank: int = 0) -> list[float]:
        return [record["loss"] for record in self.records("step", rank)]

    def gone_after_s(self) -> float:
        """Seconds from the fault until no process was left."""
        return self.ended_s - float((self.folder / "failed-at").read_text(encoding="ascii"))


def run_ranks(
    model: str,
    flags: Sequence[str],
    folder: Path,
    environ: Mapping[str, str],
    *,
    ranks: int = 1,
    options: Mapping[str, Any] | None = None,
    timeout_s: float = 120.0,
    deadline_s: float = math.inf,
    kill_at: Path | None = None,
) -> Ran:
    """Runs all ranks to their end, by torchrun if there are several.

    Args:
        model: bert or vit.
        flags: The flags of the run.
        folder: A folder for this check; the run's own is `run` in it, and exists already if the run resumes.
        environ: The environment of the ranks.
        ranks: The number of ranks.
        options: What tests/gpu/rank.py adds to the run.
        timeout_s: The time limit of this run.
        deadline_s: The time on the monotonic clock at which every run is ended.
        kill_at: All ranks are killed when this pattern's first file exists.

    Raises:
        CheckError: The run took longer than its limit.
        NoTimeError: The deadline came first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    words = [str(_SCRIPT), model, json.dumps({"folder": str(folder), **(options or {})}), *flags]
    command = [sys.executable, *words, f"--output_dir={folder / 'run'}"]
    if ranks > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
        command = [sys.executable, *launcher, *command[1:]]
    log = folder / "log.txt"
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            command, env=dict(environ), cwd=REPOSITORY, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        limit_s = time.monotonic() + timeout_s
        try:
            while process.poll() is None or _alive(folder):
                if kill_at is not None and list(kill_at.parent.glob(kill_at.name)):
                    _kill(process, folder)
                if time.monotonic() > deadline_s:
                    raise NoTimeError("no time was left")
                if time.monotonic() > limit_s:
                    raise CheckError(f"not complete after {timeout_s:.0f} s")
                time.sleep(0.02)
        finally:
            _kill(process, folder)
    return Ran(folder, process.wait(), log.read_text(encoding="utf-8", errors="replace"), time.time())


def _alive(folder: Path) -> list[int]:
    """The ranks whose processes still exist."""
    pids = [int(path.read_text(encoding="ascii") or 0) for path in folder.glob("pid-*")]
    return [pid for pid in pids if _is_rank(pid)]


def _is_rank(pid: int) -> bool:
    try:
        return str(_SCRIPT).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()  # empty for a zombie
    except OSError:
        return False


def _kill(process: subprocess.Popen[bytes], folder: Path) -> None:
    end_all(process)
    for pid in _alive(folder):  # torchrun had ended without them
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
