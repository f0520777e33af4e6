"""`make mutants`: changes one line of the code at a time, and reports the changes that no test notices."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Annotated

import typer
from rich.progress import Progress

from tests.mutants.mutants import LISTS, REPOSITORY, Mutant, read_mutants

MOST_SURVIVORS = 0.05  # of all mutants
TIMEOUT_S = 120.0  # a mutant whose tests do not end is noticed
_PASSED, _NO_TEST = 0, 5  # exit statuses of pytest
# Tests that start processes share ports and locks, so they run alone, and only for mutants that the others let pass.
_FAST, _SLOW = "not slurm and not process", "process and not slurm"


def main(
    only: Annotated[str, typer.Option(help="Only the mutants of modules whose path contains this.")] = "",
) -> None:
    """Applies each mutant to a copy of the code, runs the tests of its module, and lists the mutants that survive."""
    start_s = time.monotonic()
    mutants = read_mutants(LISTS, only)
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder, Progress() as progress:
        copies = [_copy(Path(folder) / str(number)) for number in range(len(os.sched_getaffinity(0)))]
        _check_tests_pass(copies[0], mutants)
        task = progress.add_task("mutants", total=len(mutants))
        free: SimpleQueue[Path] = SimpleQueue()
        for copy in copies:
            free.put(copy)

        def survives_fast(mutant: Mutant) -> bool:
            copy = free.get()
            survives = _survives(copy, mutant, _FAST)
            free.put(copy)
            progress.advance(task)
            return survives

        with ThreadPoolExecutor(len(copies)) as pool:
            outcomes = list(pool.map(survives_fast, mutants))
        left = [mutant for mutant, survives in zip(mutants, outcomes, strict=True) if survives]
        task = progress.add_task("tests with processes", total=len(left))
        survivors = []
        for mutant in left:
            if _survives(copies[0], mutant, _SLOW):
                survivors.append(mutant)
            progress.advance(task)
    elapsed = f"{time.monotonic() - start_s:.0f} s on {len(copies)} cores"
    print(f"{len(survivors)} of {len(mutants)} mutants survived ({elapsed})")
    for mutant in survivors:
        print(f"- {mutant}")
    sys.exit(len(survivors) > MOST_SURVIVORS * len(mutants))


def _copy(folder: Path) -> Path:
    """A copy of the files that git has or would add. The code itself is never changed, so nothing must be restored."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, names):
        if (REPOSITORY / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, folder / name, follow_symlinks=False)
    return folder


def _check_tests_pass(copy: Path, mutants: Sequence[Mutant]) -> None:
    """Tests that fail without a mutant would kill all of them."""
    tests = sorted({test for mutant in mutants for test in mutant.tests})
    done = _run_tests(copy, tests, "not slurm", stop_s=None)
    if done is None or done.returncode != _PASSED:
        sys.exit(f"the tests fail without any mutant:\n{done.stdout[-2000:] if done else ''}")


def _survives(copy: Path, mutant: Mutant, marker: str) -> bool:
    path = copy / mutant.module
    original = path.read_text(encoding="utf-8")
    path.write_text(mutant.source(original), encoding="utf-8")
    try:
        done = _run_tests(copy, mutant.tests, marker, stop_s=TIMEOUT_S)
        return done is not None and done.returncode in (_PASSED, _NO_TEST)
    finally:
        path.write_text(original, encoding="utf-8")


def _run_tests(
    copy: Path, tests: Sequence[str], marker: str, stop_s: float | None
) -> subprocess.CompletedProcess[str] | None:
    """pytest, after it has ended; None if it did not end in time."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0"]
    # Processes that a test starts in another folder import the copy too.
    environ = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        return subprocess.run(
            [*command, "-m", marker, *tests],
            cwd=copy,
            env=environ,
            capture_output=True,
            text=True,
            check=False,
            timeout=stop_s,
        )
    except subprocess.TimeoutExpired:
        return None


if __name__ == "__main__":
    typer.run(main)
