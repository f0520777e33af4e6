"""A failed rank ends in time, whatever its teardown waits for."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

# A function that waits in C with the interpreter's lock held, as NCCL's destructor does: PyDLL does not release it.
_HANGS = """
import ctypes, sys
from disttrain.distributed import process_exit
process_exit._EXIT_S = 1.0
def tear_down(): ctypes.PyDLL(None).sleep(60)
process_exit.exit_soon()
{before}
tear_down()
"""


@pytest.mark.process
@pytest.mark.parametrize("before", ["", "sys.stderr = sys.stdout = None"])
def test_a_hanging_teardown_is_ended(before: str) -> None:
    began_s = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", _HANGS.format(before=before)], capture_output=True, text=True, timeout=50, check=False
    )
    assert ended.returncode == 1
    assert time.monotonic() - began_s < 40
    assert ended.stderr.startswith("Timeout (0:00:01)!")
    assert " in tear_down" in ended.stderr, "it says where the rank hung"


@pytest.mark.process
def test_an_early_end_keeps_its_status() -> None:
    code = "from disttrain.distributed.process_exit import exit_soon; exit_soon(); raise SystemExit(7)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=False)
    assert (ended.returncode, ended.stderr) == (7, "")
