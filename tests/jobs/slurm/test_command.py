"""Slurm commands that do not answer: a note, an end, and Ctrl-C. The commands are real processes that sleep."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
import pytest

import jobs.slurm.command
from disttrain.errors import UserError
from jobs.slurm.command import query_environ, run_command
from jobs.slurm.control import cancel_named, signal_ranks
from jobs.slurm.sacct import query_sacct
from jobs.slurm.sacct_table import AccountingUnavailable
from jobs.slurm.squeue import query_squeue
from jobs.storage import ledger
from tests.jobs.sweeping import wait_for

SLEEP_S = "3600"


@pytest.fixture
def hanging(tmp_path: Path) -> dict[str, str]:
    """The environment of a host whose Slurm commands never answer: like those of many sites they are scripts."""
    for name in ("sacct", "squeue"):
        script = tmp_path / name
        script.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nsleep {SLEEP_S}\necho too late\n")
        script.chmod(0o755)
    return {"PATH": f"{tmp_path}:/usr/bin:/bin"}


def sleepers(folder: Path) -> list[psutil.Process]:
    """The script that hangs and its `sleep`, as far as they still run."""
    group = int((folder / "pid").read_text())
    return [
        process
        for process in psutil.process_iter()
        if process.status() != psutil.STATUS_ZOMBIE and os.getpgid(process.pid) == group
    ]


@pytest.mark.process
def test_a_note_before_a_command_is_given_up(
    hanging: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(jobs.slurm.command, "_NOTE_AFTER_S", 0.6)
    monkeypatch.setattr(jobs.slurm.command, "TIMEOUT_S", 1)
    with pytest.raises(AccountingUnavailable, match=r"^sacct did not answer within 1 s$"):
        query_sacct(["9"], environ=hanging)
    assert capfd.readouterr() == ("", "note: waiting for sacct (at most 1 s)\n")
    wait_for(lambda: not sleepers(tmp_path), "end of the processes", limit_s=10)
    with pytest.raises(AccountingUnavailable, match=r"^squeue did not answer within 1 s$"):
        query_squeue("s", user_id=None, environ=hanging)
    assert capfd.readouterr() == ("", "note: waiting for squeue (at most 1 s)\n")


@pytest.mark.process
def test_no_note_about_a_command_that_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    done = run_command(["/bin/sh", "-c", "echo out; echo wrong >&2; exit 3"], {})
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "wrong\n")
    assert capfd.readouterr() == ("", "")
    # A late answer is complete, also what the command has printed before the note.
    monkeypatch.setattr(jobs.slurm.command, "_NOTE_AFTER_S", 0.2)
    done = run_command(["/bin/sh", "-c", f"echo early; until [ -e {tmp_path} ] && sleep 1; do :; done; echo late"], {})
    assert done.stdout == "early\nlate\n"
    assert capfd.readouterr().err == "note: waiting for /bin/sh (at most 60 s)\n"


@pytest.mark.process
def test_ctrl_c_ends_the_wait(hanging: dict[str, str], tmp_path: Path) -> None:
    """SIGINT goes to the command of the user alone: the one of Slurm has a process group of its own."""
    (tmp_path / "s" / "site").mkdir(parents=True)
    (tmp_path / "s" / "site" / "plan.json").write_text('{"sweep": "s", "cluster": "site", "runs": []}')
    ledger.record(tmp_path / "s" / "site", {"1x1-a": "7"}, time_s=1.0)
    code = (
        "import signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "sys.argv = ['sweep', 'status', 's', '--json']\nfrom jobs.cli import main\nmain()"
    )
    environ = {**os.environ, **hanging, "SWEEP_ROOT": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        wait_for(lambda: (tmp_path / "pid").is_file() and (tmp_path / "pid").read_text(), "start of sacct", limit_s=60)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stdout, stderr) == (130, "", "")
    wait_for(lambda: not sleepers(tmp_path), "end of the processes", limit_s=10)


def test_variables_that_change_an_answer_are_not_passed_on() -> None:
    environ = {"PATH": "/bin", "SLURM_CONF": "c"}
    other = dict.fromkeys(("SACCT_FORMAT", "SQUEUE_SORT", "SCANCEL_CTLD", "SLURM_CLUSTERS"), "x")
    assert query_environ(environ | other) == environ


def test_only_the_step_of_the_ranks_is_signalled() -> None:
    """Not the script, which the signal would end, and no other task of the array."""
    commands: list[list[str]] = []

    def run(command: Sequence[str], _: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        commands.append(list(command))
        return subprocess.CompletedProcess(command, len(commands) - 1, "", "scancel: error: Invalid job id specified")

    signal_ranks("7_3", signal.SIGQUIT, environ={}, run=run)
    assert commands == [["scancel", "--signal=QUIT", "7_3.0"]]
    with pytest.raises(UserError, match=r"scancel --signal=QUIT 7_3\.0: scancel failed: .*Invalid job id"):
        signal_ranks("7_3", signal.SIGQUIT, environ={}, run=run)


def test_jobs_of_a_name_are_cancelled() -> None:
    asked: list[Sequence[str]] = []

    def run(command: Sequence[str], environ: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        return subprocess.CompletedProcess(command, 0, "", "")

    cancel_named("sweep-doctor-1", user_id=7, environ={}, run=run)
    assert asked == [["scancel", "--name=sweep-doctor-1", "--user=7"]]
