"""No process stays: not what a command has started in other sessions, and not the ranks of a benchmark."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.gpu.bench import Bench
from tests.gpu.cells import run_until
from tests.gpu.processes import end_all
from tests.gpu.ranks import NoTimeError, Sizes, run_ranks

REPOSITORY = Path(__file__).resolve().parents[2]
# A process, its child in a session of its own, and the child of that one; the folder gets a file for the last one.
THREE = """
import pathlib, subprocess, sys, time
depth = int(sys.argv[1])
if depth < 2:
    subprocess.Popen([sys.executable, __file__, str(depth + 1)], start_new_session=True)
else:
    pathlib.Path(__file__).with_name("ready").touch()
time.sleep(60)
"""
RANK = """
import os, pathlib, time
pathlib.Path(__file__).with_name("began-" + os.environ["RANK"]).touch()
time.sleep(60)
"""

pytestmark = pytest.mark.process


def running(word: str) -> list[psutil.Process]:
    """The processes with this word in their command line; a zombie has none."""
    processes = psutil.process_iter(["cmdline"])
    return [process for process in processes if word in " ".join(process.info["cmdline"] or ())]


def wait_until_running(word: str) -> None:
    until_s = time.monotonic() + 60
    while not running(word):
        assert time.monotonic() < until_s
        time.sleep(0.02)


def test_descendants_in_other_sessions_end(tmp_path: Path) -> None:
    script = tmp_path / "three.py"
    script.write_text(THREE)
    process = subprocess.Popen([sys.executable, str(script), "0"])
    while not (tmp_path / "ready").exists():
        time.sleep(0.02)
    assert len(running(str(script))) == 3
    end_all(process)
    assert running(str(script)) == []
    assert process.returncode == -9
    end_all(process)  # once more changes nothing


def test_a_command_ends_at_the_deadline(tmp_path: Path) -> None:
    script = tmp_path / "three.py"
    script.write_text(THREE)
    with pytest.raises(NoTimeError):
        run_until([sys.executable, str(script), "0"], os.environ, time.monotonic() + 3)
    assert (tmp_path / "ready").exists()
    assert running(str(script)) == []


def test_ranks_end_at_the_deadline(tmp_path: Path) -> None:
    bench = Bench(tmp_path, os.environ, Sizes(quick=True), "NVIDIA H200", deadline_s=time.monotonic() + 0.2)
    with pytest.raises(NoTimeError):
        bench.run("late", "bert")
    assert running(str(tmp_path)) == []


def test_ranks_that_still_start_are_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "script.py"
    script.write_text(RANK)  # it has not yet written its process id
    monkeypatch.setattr("tests.gpu.ranks._SCRIPT", script)
    run_ranks("bert", [], tmp_path / "run", os.environ, ranks=2, kill_at=tmp_path / "began-1")
    assert running(str(script)) == []


def test_a_terminated_benchmark_ends_its_ranks(tmp_path: Path) -> None:
    words = ["-m", "tests.benchmarks", "--quick", "--contenders", "ours", "--work", str(tmp_path / "work")]
    command = [sys.executable, *words, "--out", str(tmp_path / "table.md")]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL) as benchmark:
        wait_until_running(f"-u {REPOSITORY / 'disttrain' / 'bert.py'} --checkpoint {tmp_path}")  # not torchrun
        benchmark.terminate()
        assert benchmark.wait() == 143
    assert running(str(tmp_path)) == []
