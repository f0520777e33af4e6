"""Tests of the reasons why the test cluster cannot run on a machine; they need no Slurm."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent
UNSHARE_ERROR = "unshare: cannot change root filesystem propagation: Invalid argument"


@pytest.mark.process
def test_unshare_error_is_quoted(tmp_path: Path) -> None:
    """A fake `unshare` fails as the real one does in a chroot whose root is no mount point."""
    unshare = tmp_path / "unshare"
    unshare.write_text(f"#!/bin/sh\necho '{UNSHARE_ERROR}' >&2\nexit 1\n")
    unshare.chmod(0o755)
    # The check of the user comes first, and tests also run without root.
    code = f"""
import os, sys
sys.path.insert(0, {str(FOLDER)!r})
from _cluster.cli import main
os.geteuid = lambda: 0
sys.exit(main(["up"]))
"""
    environ = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    command = "'unshare --net --mount --uts true' ended with status 1"
    expected = f"cluster: cannot run here: cannot make network namespaces and mounts: {command}: {UNSHARE_ERROR}\n"
    assert done.stderr == expected
