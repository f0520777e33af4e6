"""The command of `make gpu`: runs everything that needs a GPU, and writes its part of docs/gpu.md.

It needs a checkout, Python 3.12 and torch 2.11 or later, and no network. What it lacks for a check is named, and that
check is not run. The exit status is 0 if all checks that ran passed, 1 if one failed, and 3 on a machine without a GPU,
where it prints one line.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tests.gpu.processes import exit_by_sigterm
from tests.gpu.wheels import FOLDER, REPOSITORY, unpack_missing

if TYPE_CHECKING:
    from tests.gpu.bench import Bench, Check
    from tests.gpu.machine import Machine
    from tests.gpu.page import Row

NO_GPU = 3  # an exit status
FAILS, NOT_RUN = "FAILS", "not run"
LIMIT_S = 525.0  # of 9 minutes; the rest is for ending what runs then, and for the page
PAGE = REPOSITORY / "docs" / "gpu.md"


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
    exit_by_sigterm()
    with tempfile.TemporaryDirectory(prefix="gpu-") as scratch:
        return _measure(arguments, Path(arguments.work or scratch).absolute(), began_s + arguments.limit_s)


def _measure(arguments: argparse.Namespace, work: Path, deadline_s: float) -> int:
    """Runs all checks and writes the page; returns the exit status."""
    began_s, site = time.monotonic(), work / "site"
    unpacked = unpack_missing(FOLDER, site)
    sys.path.append(str(site))

    from tests.gpu.bench import NEEDED, Bench
    from tests.gpu.checks import CHECKS
    from tests.gpu.imports import not_importable
    from tests.gpu.machine import OPTIONAL, read_machine
    from tests.gpu.page import write_page
    from tests.gpu.ranks import Sizes

    environ, words = environment(work, site), arguments.only or [""]
    checks = [check for check in CHECKS if any(word in check.name for word in words)]
    needs = [*NEEDED, *OPTIONAL, *(name for check in checks for name in check.needs)]
    machine = read_machine(not_importable(needs, environ))
    sizes = Sizes(steps=12, quick=True, timeout_s=5.0) if arguments.quick else Sizes()
    bench = Bench(work, environ, sizes, machine.gpu_name, deadline_s)
    rows: list[Row] = []
    for row in _rows(checks, machine, bench):
        print(f"{row.state}  {row.name}: {row.result}", flush=True)
        rows.append(row)
    elapsed_s = time.monotonic() - began_s
    write_page(Path(arguments.out), machine, unpacked, rows, bench.speeds, bench.tables, elapsed_s)
    print(f"written: {arguments.out}")
    return int(any(row.state == FAILS for row in rows))


def _rows(checks: Sequence[Check], machine: Machine, bench: Bench) -> Iterator[Row]:
    from tests.gpu.page import Row

    for check in checks:
        reason = check.why_not(machine, bench.deadline_s - time.monotonic())
        yield outcome(check, bench) if reason is None else Row(check.name, NOT_RUN, reason)


def outcome(check: Check, bench: Bench) -> Row:
    """Does a check; what was ended for lack of time was not run, and has not failed."""
    from tests.gpu.page import Row
    from tests.gpu.ranks import CheckError, NoTimeError

    try:
        return Row(check.name, "passes", check.run(bench))
    except NoTimeError as error:
        return Row(check.name, NOT_RUN, str(error))
    except CheckError as error:
        return Row(check.name, FAILS, str(error))
    except Exception as error:  # noqa: BLE001 - one broken check must not cost the others
        return Row(check.name, FAILS, f"{type(error).__name__}: {error}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make gpu", description=__doc__)
    parser.add_argument("--out", default=str(PAGE), help="the page whose part is written")
    parser.add_argument("--limit-s", type=float, default=LIMIT_S, help="seconds after which nothing runs")
    parser.add_argument("--only", action="append", default=[], help="a part of the names of checks; may be repeated")
    parser.add_argument("--work", help="a folder for the files of all runs, which stay; default: a temporary one")
    parser.add_argument("--quick", action="store_true", help="small models and few steps, as a test of this command")
    return parser.parse_args()


def environment(work: Path, site: Path) -> dict[str, str]:
    """The environment of ranks, without access to a network."""
    path = [os.environ.get("PYTHONPATH", ""), str(REPOSITORY), str(site)]
    # Deterministic runs must set it themselves: disttrain/distributed/device.py.
    inherited = {name: value for name, value in os.environ.items() if name != "CUBLAS_WORKSPACE_CONFIG"}
    return {
        **inherited,
        "PYTHONPATH": ":".join(filter(None, path)),
        "PYTHONUNBUFFERED": "1",
        "HF_HOME": str(work / "hf-home"),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
    }


if __name__ == "__main__":
    sys.exit(main())
