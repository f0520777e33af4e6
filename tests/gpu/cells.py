"""The cells of the benchmark for one GPU, as checks: ours against HF Trainer on the same work."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from tests.gpu.bench import Bench
from tests.gpu.processes import end_all
from tests.gpu.ranks import CheckError, NoTimeError
from tests.gpu.wheels import REPOSITORY

# What the command of the benchmark and HF Trainer need; both models of tests/benchmarks/peers load torchvision.
NEEDED_BY_CELLS = ("accelerate", "torchvision", "PIL", "typer", "rich")


def cell(name: str) -> Callable[[Bench], str]:
    """One cell of the benchmark; its tables are added to those of the page."""

    def run(bench: Bench) -> str:
        out, work = bench.folder / f"{name}.md", bench.folder / "benchmarks"
        size = ["--repeat", "1", "--scale", "0.25", "--contenders", "ours,hf"]
        paths = ["--out", str(out), "--work", str(work)]
        command = [sys.executable, "-m", "tests.benchmarks", "--gpu", "--cells", name, "--title", name, *size, *paths]
        status, errors = run_until(command, bench.environ, bench.deadline_s)
        if out.exists():
            bench.tables.append(out.read_text(encoding="utf-8"))
        if status != 0:
            raise CheckError((errors.strip().splitlines() or ["no message"])[-1])
        return "see below"

    return run


def run_until(command: Sequence[str], environ: Mapping[str, str], deadline_s: float) -> tuple[int, str]:
    """Runs a command, and ends it with all that it started at the deadline.

    Returns:
        Its exit status and its standard error.

    Raises:
        NoTimeError: The deadline came first.
    """
    with subprocess.Popen(
        command, env=dict(environ), cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            _, errors = process.communicate(timeout=deadline_s - time.monotonic())
        except subprocess.TimeoutExpired:
            raise NoTimeError("no time was left") from None
        finally:
            end_all(process)
    return process.returncode, errors
