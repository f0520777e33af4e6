"""The query to sacct: the command lines, the environment, and the errors."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from jobs.slurm.attempts import AccountingRow
from jobs.slurm.sacct import FIELDS, query_sacct, sacct_command
from jobs.slurm.sacct_table import AccountingUnavailable
from jobs.slurm.states import State


def test_the_command() -> None:
    assert sacct_command(["12_0", "12_1", "15", "9+0"], FIELDS) == [
        "sacct",
        "-D",
        "-P",
        "--noconvert",
        "--delimiter=^|^",
        "-j",
        "12,15,9",
        "-o",
        "JobID,JobIDRaw,State,Submit,Eligible,Start,End,ElapsedRaw,TimelimitRaw,Partition,NNodes,NodeList,AllocCPUS,"
        "AllocTRES,ReqMem,MaxRSS,ExitCode,DerivedExitCode,Reason,FailedNode,UID,JobName",
    ]


class Sacct:
    """A mock of the subprocess that stores its commands: a real sacct cannot be made to fail in these ways.

    Args:
        stdout: Its answer.
        missing: The fields that it does not have.
    """

    def __init__(self, stdout: str, *, returncode: int = 0, stderr: str = "", missing: Sequence[str] = ()) -> None:
        self.stdout, self.returncode, self.stderr, self.missing = stdout, returncode, stderr, missing
        self.commands: list[list[str]] = []
        self.environs: list[dict[str, str]] = []

    def __call__(self, command: Sequence[str], environ: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        self.commands.append(list(command))
        self.environs.append(dict(environ))
        for field in command[-1].split(","):
            if field in self.missing:
                return subprocess.CompletedProcess(
                    command, 1, "", f'sacct: error: Invalid field requested: "{field}"\n'
                )
        return subprocess.CompletedProcess(command, self.returncode, self.stdout, self.stderr)


def test_one_call_for_a_sweep() -> None:
    sacct = Sacct("JobID^|^State^|^JobName\n9_0^|^COMPLETED^|^bert\n")
    environ = {"PATH": "/bin", "SLURM_CONF": "/etc/s.conf", "SACCT_FORMAT": "User", "SLURM_TIME_FORMAT": "relative"}
    environ |= {"SLURM_CLUSTERS": "all"}  # sbatch does not get it either
    rows = query_sacct(["9_0", "9_1"], environ=environ, run=sacct)
    assert rows == (AccountingRow(job_id="9_0", state=State.COMPLETED, job_name="bert"),)
    assert sacct.commands == [sacct_command(["9"], FIELDS)]
    assert sacct.environs == [
        {"PATH": "/bin", "SLURM_CONF": "/etc/s.conf", "TZ": "UTC", "SLURM_TIME_FORMAT": "%s", "SLURM_BITSTR_LEN": "0"}
    ]


def test_asks_again_without_a_field_that_the_release_lacks() -> None:
    sacct = Sacct("JobID^|^JobName\n9^|^bert\n", missing=["FailedNode", "ReqMem"])
    assert query_sacct(["9"], environ={}, run=sacct) == (AccountingRow(job_id="9", job_name="bert"),)
    asked = [command[-1].split(",") for command in sacct.commands]
    assert asked[0] == list(FIELDS)
    assert [set(FIELDS) - set(fields) for fields in asked] == [set(), {"ReqMem"}, {"ReqMem", "FailedNode"}]


def test_a_field_that_was_not_asked_for_is_an_error() -> None:
    """Else it would be asked for ever."""
    sacct = Sacct("", returncode=1, stderr='sacct: error: Invalid field requested: "Colour"\n')
    with pytest.raises(AccountingUnavailable, match="Colour"):
        query_sacct(["9"], environ={}, run=sacct)
    assert len(sacct.commands) == 1


def test_an_earlier_job_of_the_same_id_is_left_out() -> None:
    """Slurm uses its ids again after MaxJobId."""
    sacct = Sacct("JobID^|^Submit^|^JobName\n9^|^1000^|^another user's\n9^|^1000000^|^ours\n")
    rows = query_sacct(["9"], environ={}, run=sacct, since_s=1_000_000)
    assert [row.job_name for row in rows] == ["ours"]


def test_no_call_without_jobs() -> None:
    sacct = Sacct("")
    assert query_sacct([], environ={}, run=sacct) == ()
    assert sacct.commands == []


DATABASE_DOWN = """\
sacct: error: slurm_persist_conn_open_without_init: failed to open persistent connection to host:db:6819: refused
sacct: error: Sending PersistInit msg: Connection refused
sacct: error: Problem talking to the database: Connection refused
"""


@pytest.mark.parametrize(
    ("sacct", "line"),
    [
        (
            Sacct("", returncode=1, stderr=DATABASE_DOWN),
            "sacct failed with exit status 1: Problem talking to the database: Connection refused",
        ),
        (
            Sacct("JobID^|^State^|^JobName\n", stderr="sacct: error: slurmdbd: Too wide of a date range in query\n"),
            "sacct failed with exit status 0: slurmdbd: Too wide of a date range in query",
        ),
        (
            Sacct("", returncode=1, stderr="sacct: fatal: Unable to process configuration file\n"),
            "sacct failed with exit status 1: Unable to process configuration file",
        ),
        (Sacct("", returncode=0), "sacct failed with exit status 0: no output"),
    ],
)
def test_unavailable_database_is_one_line(sacct: Sacct, line: str) -> None:
    with pytest.raises(AccountingUnavailable) as caught:
        query_sacct(["9"], environ={}, run=sacct)
    assert str(caught.value) == line


def raising(error: Exception) -> Callable[[Sequence[str], Mapping[str, str]], subprocess.CompletedProcess[str]]:
    def run(command: Sequence[str], environ: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (FileNotFoundError("sacct"), "sacct is not installed here, or not on PATH"),
        (subprocess.TimeoutExpired("sacct", 60), "sacct did not answer within 60 s"),
        (PermissionError(13, "Permission denied"), "sacct cannot be started: [Errno 13] Permission denied"),
    ],
)
def test_failed_start_is_one_line(error: Exception, line: str) -> None:
    with pytest.raises(AccountingUnavailable) as caught:
        query_sacct(["9"], environ={}, run=raising(error))
    assert str(caught.value) == line


@pytest.mark.process
def test_real_runner_without_sacct(tmp_path: Path) -> None:
    with pytest.raises(AccountingUnavailable, match="not on PATH"):
        query_sacct(["9"], environ={"PATH": str(tmp_path)})


SACCT_SCRIPT = """\
#!/bin/sh
printf 'JobID^|^JobName\\n9^|^%s\\n' "$TZ"
"""


@pytest.mark.process
def test_real_runner_with_a_sacct_script(tmp_path: Path) -> None:
    script = tmp_path / "sacct"
    script.write_text(SACCT_SCRIPT)
    script.chmod(0o755)
    rows = query_sacct(["9"], environ={"PATH": f"{tmp_path}:/usr/bin:/bin"})
    assert rows == (AccountingRow(job_id="9", job_name="UTC"),)
