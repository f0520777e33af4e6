"""On the real Slurm: two terminals follow a sweep, and together they ask sacct and squeue once each half minute."""

from __future__ import annotations

import fcntl
import itertools
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.jobs.sweeping import Sweeping, tiny_base, wait_for, write_sweep

pytestmark = pytest.mark.slurm

# A command that fails has asked nothing: an older sacct refuses a field that it lacks, and is started again without it.
# A rank that is ended asks squeue about its own job; only the watchers are counted.
_SHIM = """\
#!/bin/sh
began=$(date +%s.%N)
"{program}" "$@"
status=$?
[ $status = 0 ] && [ -z "$SLURM_JOB_ID" ] && echo "$began {name}" >> "{log}"
exit $status
"""


@pytest.fixture
def calls(tmp_path: Path) -> Path:
    """A file that gets a line for each question to Slurm of `sweeping`."""
    return tmp_path / "calls.txt"


@pytest.fixture
def sweeping(slurm_cluster: Mapping[str, str], tmp_path: Path, calls: Path) -> Iterator[Sweeping]:
    programs = tmp_path / "bin"
    programs.mkdir()
    environ = {**os.environ, **slurm_cluster}
    for name in ("sacct", "squeue"):
        program = shutil.which(name, path=environ["PATH"])
        (programs / name).write_text(_SHIM.format(program=program, name=name, log=calls))
        (programs / name).chmod(0o755)
    environ["PATH"] = f"{programs}{os.pathsep}{environ['PATH']}"
    yield Sweeping(tmp_path, environ)
    subprocess.run(["scancel", f"--name={tmp_path.name}"], env=environ, check=False)


class Terminal:
    """`sweep status --watch` in a terminal of 30 lines."""

    def __init__(self, sweeping: Sweeping) -> None:
        self._main, other = pty.openpty()
        fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        self.process = subprocess.Popen(
            sweeping.command("status", "--watch"), cwd=sweeping.folder, env={**sweeping.environ, "TERM": "xterm"},
            stdin=other, stdout=other, stderr=other, start_new_session=True,
        )  # fmt: skip
        os.close(other)
        self.text = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                self.text += os.read(self._main, 2**16).decode(errors="replace")
            except OSError:  # the process has ended
                return

    def end(self, timeout_s: float) -> int:
        """The exit status of the command."""
        try:
            return self.process.wait(timeout_s)
        finally:
            self.process.kill()
            self.process.wait()
            self._reader.join()
            os.close(self._main)


def test_two_terminals_ask_once_each_half_minute(sweeping: Sweeping, calls: Path, tmp_path: Path) -> None:
    path = tmp_path / f"{tmp_path.name}.yaml"
    write_sweep(path, allocations=["1x1"], base=tiny_base(max_steps=100_000), seeds=[0, 1], slurm={"max_running": 1})
    sweeping.run("submit", path)
    calls.write_text("")
    terminals = [Terminal(sweeping), Terminal(sweeping)]
    try:
        for terminal in terminals:
            wait_for(
                lambda terminal=terminal: re.search(r" training .*[1-9]\d*/100000 ", terminal.text),  # type: ignore[misc]
                "steps on the screen",
                limit_s=90,
            )
        interrupted = Terminal(sweeping)
        wait_for(lambda: "runs ended" in interrupted.text, "screen", limit_s=30)
        os.kill(interrupted.process.pid, signal.SIGINT)
        assert interrupted.end(10) == 130
        assert "\x1b[?25h" in interrupted.text, "the cursor is shown again"
        assert "Traceback" not in interrupted.text
        time.sleep(max(0.0, 65 - (time.time() - _times(calls, "sacct")[0])))
    finally:
        subprocess.run(["scancel", f"--name={path.stem}"], env=sweeping.environ, check=False)
        ended = [terminal.end(90) for terminal in terminals]
    assert ended == [0, 0]
    for terminal in terminals:
        assert "2 runs, 2 CANCELLED" in terminal.text
        assert "place 1 of 1" in terminal.text or "starts in" in terminal.text
    for command in ("sacct", "squeue"):
        times = _times(calls, command)
        assert 3 <= len(times) <= 5, times
        # The one that asks waits for sacct before it asks squeue.
        assert min(after - before for before, after in itertools.pairwise(times)) > 27, times


def _times(calls: Path, command: str) -> list[float]:
    """The times of the questions, in order."""
    lines = [line.split() for line in calls.read_text().splitlines()]
    return sorted(float(time_s) for time_s, name in lines if name == command)
