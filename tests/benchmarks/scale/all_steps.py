"""Measures `sweep collect` of runs with all their steps: python -m tests.benchmarks.scale.all_steps --help."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from disttrain.records.record_files import METRICS_GLOB
from jobs.storage.sweep_folder import SweepFolder
from tests.benchmarks import store, tables
from tests.benchmarks.cells import BenchmarkError
from tests.benchmarks.contenders import REPOSITORY
from tests.benchmarks.scale.fake_slurm import FakeSlurm
from tests.benchmarks.scale.large_sweep import LEAST_RUNS, write_large_sweep

TITLE = "Collect of runs with all steps"
RUNS, STEPS = 2_000, 1_000
GOAL_S, GOAL_MB = 5.0, 500.0


def benchmark(
    repeat: Annotated[int, typer.Option(min=1, help="Number of repetitions.")] = 3,
    work: Annotated[Path, typer.Option(help="Folder of the sweep; it needs 0.7 GB.")] = Path("runs/benchmarks/steps"),
    out: Annotated[Path | None, typer.Option(help="The Markdown file to write.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Measure a small sweep, once, as a test.")] = False,
) -> None:
    """Measures collect as a complete process: its time and its largest memory."""
    runs, steps, repeat = (LEAST_RUNS, 20, 1) if quick else (RUNS, STEPS, repeat)
    root = work.absolute()
    try:
        environ = _submitted(root, runs, steps)
        measured = [_collect(root, environ) for _ in range(repeat)]
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
    shutil.rmtree(root)
    facts = tables.facts("tests.benchmarks.scale.all_steps", store.machine())
    tables.publish(TITLE, facts, [_table(measured, runs, steps)], out)


def _submitted(root: Path, runs: int, steps: int) -> dict[str, str]:
    """Submits a sweep, writes the records of its runs, and returns the environment of the commands."""
    shutil.rmtree(root, ignore_errors=True)
    write_large_sweep(root, runs)
    slurm = FakeSlurm(root / "slurm")
    environ = {
        **os.environ,
        "PATH": f"{slurm.programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "SWEEP_ROOT": str(root / "runs"),
    }
    environ.pop("SWEEP_CLUSTER", None)
    _sweep(("submit", "s.yaml"), root, environ)
    folder = SweepFolder(root / "runs" / "s" / "slurm")
    slurm.answer(folder)
    text = _records(steps)
    for file in folder.path.glob(f"runs/*/{METRICS_GLOB}"):
        file.write_text(text, encoding="utf-8")
    return environ


def _records(steps: int) -> str:
    """The steps of a rank, with all fields of a step record."""
    step = {
        "kind": "step", "epoch": 0, "start_s": 3264.986170007, "loss": 0.6924282312393188, "lr": 1e-05, "examples": 16,
        "data_ms": 0.36052599989488954, "forward_ms": 0.9934049999174022, "backward_ms": 4.839499000354408,
        "optimizer_ms": 0.8940069997152023, "step_ms": 7.087436999881902, "exposed_comm_ms": 1.5,
        "overlapped_comm_ms": 0.25, "skipped": None, "grad_norm": None,
    }  # fmt: skip
    return "".join(json.dumps({**step, "step": number}) + "\n" for number in range(1, steps + 1))


def _collect(root: Path, environ: dict[str, str]) -> tuple[float, float]:
    """The seconds and the 10^6 bytes of one collect."""
    start_s = time.perf_counter()
    shown = _sweep(("collect",), root, environ)
    elapsed_s = time.perf_counter() - start_s
    head, _, peak_kib = shown.strip().rpartition("\n")
    if " COMPLETED" not in head:
        raise BenchmarkError(f"sweep collect does not show the prepared states: {head[:200]}")
    return elapsed_s, int(peak_kib) * 1024 / 1e6


# Runs the command as `python -m jobs` does, and prints its largest memory: Linux counts it in KiB.
_MEASURED = """\
import resource
from jobs.cli import main
try:
    main()
finally:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def _sweep(arguments: tuple[str, ...], folder: Path, environ: dict[str, str]) -> str:
    """What a command prints."""
    words = [sys.executable, "-c", _MEASURED, *arguments]
    ended = subprocess.run(words, cwd=folder, env=environ, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        raise BenchmarkError(f"sweep {' '.join(arguments)} ended with {ended.returncode}: {ended.stderr}")
    return ended.stdout


def _table(measured: list[tuple[float, float]], runs: int, steps: int) -> tables.Grid:
    note = (
        "`sweep collect` as a complete process. Each run has the records of all its steps and, if it is done, its"
        " summary: collect reads the summaries, not the steps. The programs of Slurm are replaced by scripts that print"
        " prepared answers. Median over the repetitions [minimum to maximum]."
    )
    header = ("runs", "steps of each", "time, s", "goal, s", "largest memory, MB", "goal, MB")
    seconds, megabytes = ([values[place] for values in measured] for place in (0, 1))
    times, memory = tables.spread(seconds, "{:.2f}"), tables.spread(megabytes, "{:.0f}")
    row = (f"{runs:,}", f"{steps:,}", times, f"{GOAL_S:g}", memory, f"{GOAL_MB:g}")
    return tables.Grid("Time and memory", note, header, (row,))


if __name__ == "__main__":
    typer.run(benchmark)
