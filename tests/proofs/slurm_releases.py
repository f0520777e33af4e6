"""Proof: all tests on the real Slurm pass on two releases, that of the machine and that of Debian 13."""

from __future__ import annotations

import re
import subprocess
import sys
import time

from tests.jobs.on_slurm.test_interrupted import POINTS
from tests.proofs.sweeping import REPOSITORY, cluster_environ

IN_DEBIAN = [sys.executable, str(REPOSITORY / "tests" / "slurm_cluster" / "in_debian"), "trixie"]
CANNOT_RUN_HERE = 3  # exit status of in_debian, with one line that says why
# With EVERY_POINT, `sweep submit` is killed at all points; one test then takes minutes.
VARIABLES = ["env", "REQUIRE_SLURM=1", "EVERY_POINT=1"]
LIMIT_S = 1800


def prove() -> str:
    """Runs the tests marked slurm on both releases. On each one all must pass, and none may be skipped."""
    cluster_environ()  # it installs the machine's Slurm where that is missing
    rows = [_row("this machine", []), _debian_row()]
    table = "\n".join(rows)
    return f"""\
All tests marked `slurm` run on the two-node test cluster: on the Slurm of this machine, and on that of Debian 13, which
`tests/slurm_cluster/in_debian` makes in a folder. One of these tests kills `sweep submit` at {len(POINTS)} points.

| Slurm | where | tests | time |
|---|---|---|---|
{table}"""


def _debian_row() -> str:
    # The first call makes the folder, which takes longest.
    first = subprocess.run([*IN_DEBIAN, "true"], stderr=subprocess.PIPE, text=True, check=False)
    if first.returncode == CANNOT_RUN_HERE:
        return f"| - | Debian 13 | skipped: {first.stderr.strip().splitlines()[-1]} | - |"
    assert first.returncode == 0, first.stderr
    return _row("Debian 13", IN_DEBIAN)


def _row(where: str, wrapper: list[str]) -> str:
    version = subprocess.run([*wrapper, "slurmctld", "-V"], capture_output=True, text=True, check=True).stdout
    release = version.split()[-1]
    pytest = [sys.executable, "-m", "pytest", "-m", "slurm", "-q", "-p", "no:cacheprovider", "-o", f"timeout={LIMIT_S}"]
    start = time.monotonic()
    done = subprocess.run([*wrapper, *VARIABLES, *pytest], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    elapsed_s = time.monotonic() - start
    outcome = done.stdout.strip().splitlines()[-1:]
    assert done.returncode == 0, f"Slurm {release}, {where}: {done.stdout[-2000:]}{done.stderr[-1000:]}"
    passed = re.search(r"(\d+) passed", outcome[0])
    assert passed, outcome
    assert "skipped" not in outcome[0], outcome
    row = f"| {release} | {where} | {passed[1]} passed | {elapsed_s:.0f} s |"
    print(row, flush=True)
    return row
