"""Tests of what in_debian shares with the other Debian, and of its refusals; tests/proofs/slurm_releases.py runs it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

FOLDER = Path(__file__).resolve().parent
IN_DEBIAN = FOLDER / "in_debian"


def test_checkout_and_python_are_shared() -> None:
    code = f"""
import sys
sys.path.insert(0, {str(FOLDER)!r})
from _cluster.debian import shared_paths
print(*shared_paths(), sep="\\n")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    shared = {Path(line) for line in done.stdout.splitlines()}
    for needed in (__file__, sys.executable, os.__file__, pytest.__file__):
        assert shared.intersection([Path(needed), *Path(needed).parents]), needed
    assert Path("/usr") not in shared
    assert all(shared.isdisjoint(path.parents) for path in shared)


def test_without_debootstrap_it_says_so(tmp_path: Path) -> None:
    # The other programs that it looks for: they are there, and do nothing.
    for name in ("unshare", "dpkg-query", "apt-get"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    code = f"""
import os, sys
sys.path.insert(0, {str(FOLDER)!r})
from _cluster.debian import main
os.geteuid = lambda: 0
sys.exit(main(["trixie", "true"]))
"""
    environ = {**os.environ, "PATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True)
    expected = "in_debian: cannot run here: no debootstrap: apt-get install debootstrap\n"
    assert (done.returncode, done.stderr) == (3, expected)


def test_a_path_is_no_suite() -> None:
    done = subprocess.run([sys.executable, IN_DEBIAN, "../etc", "true"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "'../etc' is no name of a Debian release" in done.stderr
