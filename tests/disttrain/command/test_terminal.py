"""A script in the terminal of `sweep debug`: it reads what is typed, so that a debugger works, and is interrupted."""

from __future__ import annotations

import dataclasses
import json
import os
import pty
import select
import signal
import sys
from pathlib import Path

import pytest

from disttrain.config.command.command_config import CommandConfig
from disttrain.records.record_files import read_summary
from tests.disttrain.command.ranks import RANK

SCRIPT = """
import sys, time
print("a line?", flush=True)
line = sys.stdin.readline().strip()
try:
    print("got", line, flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    print("was interrupted", flush=True)
"""


@pytest.mark.process
def test_a_script_has_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    config = dataclasses.asdict(CommandConfig(f"{sys.executable} train.py", {}, working_dir=str(tmp_path)))
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", RANK, str(tmp_path), json.dumps(config), "{}"])
    shown = ""

    def read_until(text: str) -> None:
        """Reads what is shown, up to a text that was not shown before."""
        nonlocal shown
        while text not in shown:
            ready, _, _ = select.select([terminal], [], [], 60)
            assert ready, shown
            shown += os.read(terminal, 4096).decode()
        shown = shown.partition(text)[2]

    try:
        read_until("a line?")
        os.write(terminal, b"typed\n")
        read_until("got typed")
        os.write(terminal, b"\x03")  # Ctrl-C
        read_until("was interrupted")
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        raise
    finally:
        status = os.waitpid(pid, 0)[1]
        os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 0
    assert read_summary(tmp_path) is not None
