"""Measures `sweep` with thousands of runs: python -m tests.benchmarks.scale --help."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from jobs.storage.sweep_folder import SweepFolder
from tests.benchmarks import store, tables
from tests.benchmarks.cells import BenchmarkError
from tests.benchmarks.contenders import REPOSITORY
from tests.benchmarks.scale.fake_slurm import FakeSlurm
from tests.benchmarks.scale.large_sweep import LEAST_RUNS, write_large_sweep

TITLE = "Sweeps of thousands of runs"
RUNS = (2_000, 10_000, 32_000)
# The commands in their order, and the goal for 10,000 runs in seconds.
COMMANDS = {
    "sweep plan": (("plan", "s.yaml"), 2.0),
    "sweep submit": (("submit", "s.yaml"), 5.0),
    "sweep status, the first": (("status",), 3.0),
    "sweep status": (("status",), 3.0),
    "sweep status --all-runs": (("status", "--all-runs"), None),
    "sweep collect": (("collect",), 5.0),
    "sweep submit, again": (("submit", "s.yaml"), 5.0),
}


@dataclass(frozen=True)
class Times:
    """The times of one command.

    Attributes:
        wall_s: From its start to its end.
        cpu_s: On all processors, with the programs that it starts.
        submitit_s: The part of `wall_s` in submitit, with sbatch; None for other commands.
    """

    wall_s: float
    cpu_s: float
    submitit_s: float | None = None


def benchmark(
    repeat: Annotated[int, typer.Option(min=1, help="Number of repetitions.")] = 3,
    work: Annotated[Path, typer.Option(help="Folder of the sweeps.")] = Path("runs/benchmarks/scale"),
    out: Annotated[Path | None, typer.Option(help="The Markdown file to write.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Measure a small sweep, once, as a test.")] = False,
) -> None:
    """Measures plan, submit, status and collect as complete processes, with prepared answers in place of Slurm's."""
    sizes, repeat = ((LEAST_RUNS,), 1) if quick else (RUNS, repeat)
    measured: dict[str, dict[int, list[Times]]] = {name: {size: [] for size in sizes} for name in COMMANDS}
    try:
        for number in range(repeat):
            for size in sizes:
                for name, times in measure(size, work.absolute()).items():
                    measured[name][size].append(times)
                print(f"{size} runs, {number + 1}/{repeat}", file=sys.stderr, flush=True)
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
    facts = tables.facts("tests.benchmarks.scale", store.machine())
    tables.publish(TITLE, facts, [seconds(measured, sizes)], out)


def measure(runs: int, root: Path) -> dict[str, Times]:
    """The times of each command on a new sweep.

    Raises:
        BenchmarkError: A command failed.
    """
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
    measured = {}
    for name, (arguments, _) in COMMANDS.items():
        measured[name] = _run(arguments, root, environ)
        if name == "sweep submit":
            slurm.answer(SweepFolder(root / "runs" / "s" / "slurm"))
    shutil.rmtree(root)
    return measured


# Runs the command as `python -m jobs` does, and writes the time in submitit to stderr.
_TIMED_SUBMIT = """\
import sys, time
from submitit import SlurmExecutor
from jobs.cli import main
submit_array, seconds = SlurmExecutor.submit_array, []
def timed(*arguments):
    start_s = time.perf_counter()
    try:
        return submit_array(*arguments)
    finally:
        seconds.append(time.perf_counter() - start_s)
SlurmExecutor.submit_array = timed
try:
    main()
finally:
    print("submitit", sum(seconds), file=sys.stderr)
"""


def _run(arguments: tuple[str, ...], folder: Path, environ: Mapping[str, str]) -> Times:
    program = ["-m", "jobs"]
    if arguments[0] == "submit":
        program = ["-c", _TIMED_SUBMIT]
    before, start_s = _cpu_s(), time.perf_counter()
    with (folder / "output.txt").open("w", encoding="utf-8") as output:
        ended = subprocess.run(
            [sys.executable, *program, *arguments],
            cwd=folder,
            env=environ,
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    wall_s = time.perf_counter() - start_s
    if ended.returncode != 0:
        raise BenchmarkError(f"sweep {' '.join(arguments)} ended with {ended.returncode}: {ended.stderr}")
    shown = (folder / "output.txt").read_text(encoding="utf-8")
    if arguments[0] in ("status", "collect") and not (" COMPLETED" in shown and " FAILED" in shown):
        raise BenchmarkError(f"sweep {' '.join(arguments)} does not show the prepared states: {shown[:200]}")
    submitit_s = None
    if arguments[0] == "submit":
        submitit_s = float(ended.stderr.split()[-1])
    return Times(wall_s, _cpu_s() - before, submitit_s)


def _cpu_s() -> float:
    """The processor time of all processes that this one has started and that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def seconds(measured: Mapping[str, Mapping[int, list[Times]]], sizes: tuple[int, ...]) -> tables.Grid:
    """The table of the times: for each command, a row for each number of runs."""
    rows = []
    for name, by_size in measured.items():
        goal = COMMANDS[name][1]
        for size in sizes:
            times = by_size[size]
            in_submitit = tables.NONE
            if (parts := [item.submitit_s for item in times if item.submitit_s is not None]) and max(parts) > 0:
                in_submitit = tables.spread(parts, "{:.2f}")
            own = [item.wall_s - (item.submitit_s or 0) for item in times]
            goal_text = tables.NONE
            if size == 10_000 and goal is not None:
                goal_text = f"{goal:g}"
            rows.append(
                (
                    *(name, f"{size:,}", tables.spread(own, "{:.2f}"), goal_text, in_submitit),
                    tables.spread([item.cpu_s for item in times], "{:.2f}"),
                )
            )
    note = (
        "Complete processes, with their start of about 0.5 s. The programs of Slurm are replaced by scripts that print"
        " prepared answers: of 25 runs, 23 are done, one has failed, one runs, and the last 3 % of each array wait."
        " Own work is the time of the command without that in submitit, which writes a file for each run and calls"
        " sbatch. The first status also saves the answer of sacct; the second submit sends the runs that have failed."
        " Processor time includes submitit and the scripts. Median over the repetitions [minimum to maximum]."
    )
    header = ("command", "runs", "own work, s", "goal, s", "submitit and sbatch, s", "processor time, s")
    return tables.Grid("Seconds of a command", note, header, tuple(rows))


if __name__ == "__main__":
    typer.run(benchmark)
