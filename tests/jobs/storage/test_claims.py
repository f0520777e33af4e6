"""Claims: one holder at a time, also where flock does not work, and none that outlives its process on this machine."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from disttrain.errors import UserError
from jobs.storage.claims import ClaimHeldError, claimed
from jobs.storage.ledger import append_lines, read_lines, submission_lock
from tests.jobs.sweeping import OTHER_HOST

HOLDER = """
import sys, time
from pathlib import Path
from jobs.storage.ledger import submission_lock
with submission_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(300)
"""
# Each process adds one to a number, which loses some if two hold the claim at once.
COUNTER = """
import sys, time
from pathlib import Path
from jobs.storage.claims import claimed
folder, times = Path(sys.argv[1]), int(sys.argv[2])
for _ in range(times):
    with claimed(folder / "claim", 60):
        number = int((folder / "number").read_text())
        time.sleep(0.001)
        (folder / "number").write_text(str(number + 1))
"""
DIES = """
import os, signal, sys
from pathlib import Path
from jobs.storage.claims import claimed
with claimed(Path(sys.argv[1]), 0):
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(autouse=True)
def _short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.storage.ledger._SUBMISSION_WAIT_S", 0.1)


@contextmanager
def holder(folder: Path, prefix: list[str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the submission lock of a folder."""
    command = [*(prefix or []), sys.executable, "-c", HOLDER, str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stdout is not None
        if not process.stdout.readline():
            pytest.skip("another namespace needs root")
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught, submission_lock(folder):
        pass
    return str(caught.value)


def claim_files(folder: Path) -> list[Path]:
    return sorted(folder.glob(".submit.claim.filelock/claims/*.claim"))


def change_claims(folder: Path, change: Callable[[list[str]], list[str]]) -> None:
    """Changes the lines of the claims: magic, token, pid, host (hexadecimal), start."""
    for file in claim_files(folder):
        file.write_text("\n".join(change(file.read_text().split("\n"))))


@pytest.mark.process
@pytest.mark.usefixtures("default_sighup")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_a_process_that_has_ended_holds_nothing(number: signal.Signals, tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        process.send_signal(number)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it is a zombie: its parent has not read its end
        assert bool(claim_files(tmp_path)) == (number == signal.SIGKILL)
        with submission_lock(tmp_path):
            assert len(claim_files(tmp_path)) == 2


@pytest.mark.process
def test_ignored_sighup_stays_ignored(tmp_path: Path) -> None:
    with holder(tmp_path, ["nohup"]) as process:
        process.send_signal(signal.SIGHUP)
        assert "another sweep command" in refusal(tmp_path)


@pytest.mark.process
def test_a_stopped_process_keeps_its_claim(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        process.send_signal(signal.SIGSTOP)
        message = refusal(tmp_path)
        process.send_signal(signal.SIGCONT)
        assert len(claim_files(tmp_path)) == 2
    user, host = Path.home().owner(), os.uname().nodename
    running = f"another sweep command is running in {tmp_path}: "
    assert message.startswith(f"{running}process {process.pid} of {user} on {host} since ")
    assert re.search(r" since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d\S+ \(wait until it has ended, then try again\)", message)


@pytest.mark.process
def test_a_process_with_the_same_pid_is_another_one(tmp_path: Path) -> None:
    with holder(tmp_path):
        change_claims(tmp_path, lambda lines: [*lines[:4], str(int(lines[4]) - 1), *lines[5:]])
        with submission_lock(tmp_path):
            pass


@pytest.mark.process
def test_a_renamed_host_knows_its_processes(tmp_path: Path) -> None:
    """As a laptop that gets its name from the network."""

    def rename(lines: list[str]) -> list[str]:
        return [*lines[:3], b"cafe-guest-7".hex(), *lines[4:]]

    with holder(tmp_path):
        change_claims(tmp_path, rename)
        assert "on cafe-guest-7 since" in refusal(tmp_path)
    with submission_lock(tmp_path):  # it was killed
        pass


@pytest.mark.process
@pytest.mark.parametrize("is_dead", [False, True])
def test_a_claim_of_another_machine_is_for_the_user_to_remove(is_dead: bool, tmp_path: Path) -> None:
    """The number of its process means nothing here."""
    with ExitStack() as stack:
        process = stack.enter_context(holder(tmp_path, OTHER_HOST))
        if is_dead:
            os.killpg(process.pid, signal.SIGKILL)
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        message = refusal(tmp_path)
    files = tmp_path / ".submit.claim.filelock"
    assert " on login2 since " in message
    assert message.endswith(f" (wait until it has ended; if it or login2 is gone, remove {files})")
    subprocess.run(["rm", "-r", files], check=True)
    with submission_lock(tmp_path):
        pass


@pytest.mark.process
def test_a_claim_before_a_restart_of_this_machine(tmp_path: Path) -> None:
    """Another machine may have the same name, so the user is asked."""
    with holder(tmp_path):
        pass
    change_claims(tmp_path, lambda lines: [*lines[:4], str(int(lines[4]) + 2**64), *lines[5:]])
    assert "is gone, remove " in refusal(tmp_path)


@pytest.mark.process
@pytest.mark.parametrize("content", ["", "\0\0\0\0", "nonsense"])
@pytest.mark.parametrize("damaged", [".submit.claim", ".submit.claim.filelock/claims/*.claim"])
def test_a_damaged_claim_is_one_line(damaged: str, content: str, tmp_path: Path) -> None:
    with holder(tmp_path):
        pass
    for file in tmp_path.glob(damaged):
        file.write_text(content)
    message = refusal(tmp_path)
    claim = tmp_path / ".submit.claim"
    assert message.endswith(f"if no sweep command runs in this folder, remove {claim} and {claim}.filelock)")
    assert "\n" not in message


@pytest.mark.process
def test_many_take_over_one_stale_claim(tmp_path: Path) -> None:
    (tmp_path / "number").write_text("0")
    for expected in range(8, 41, 8):
        dead = subprocess.run([sys.executable, "-c", DIES, tmp_path / "claim"], check=False)
        assert dead.returncode == -signal.SIGKILL
        command = [sys.executable, "-c", COUNTER, str(tmp_path), "2"]
        processes = [subprocess.Popen(command) for _ in range(4)]
        assert [process.wait(timeout=60) for process in processes] == [0] * 4
        assert (tmp_path / "number").read_text() == str(expected)


@pytest.mark.process
def test_an_append_after_a_writer_was_killed(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    append_lines(path, ['{"a": 1}'])
    subprocess.run([sys.executable, "-c", DIES, tmp_path / ".lines.jsonl.claim"], check=False)
    append_lines(path, ['{"a": 2}'])
    assert read_lines(path) == [{"a": 1}, {"a": 2}]


@pytest.mark.process
def test_an_append_says_who_holds_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.storage.ledger._APPEND_WAIT_S", 0.1)
    with claimed(tmp_path / ".lines.jsonl.claim", 0), pytest.raises(OSError, match="held by process") as caught:
        append_lines(tmp_path / "lines.jsonl", ["{}"])
    assert caught.value.filename == str(tmp_path / "lines.jsonl")


@pytest.mark.parametrize("error", [None, errno.ENOLCK], ids=["always succeeds", "is refused"])
def test_flock_is_not_used(error: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on file systems that several machines share. None can be mounted here, so flock is a mock."""

    def flock(*_: Any) -> None:
        if error:
            raise OSError(error, os.strerror(error))

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(fcntl, "lockf", flock)
    with submission_lock(tmp_path):
        assert "another sweep command" in refusal(tmp_path)
        append_lines(tmp_path / "lines.jsonl", ["{}"])
    with claimed(tmp_path / "claim", 0), pytest.raises(ClaimHeldError), claimed(tmp_path / "claim", 0):
        pass


def test_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on FAT. The refusal is a mock."""

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(os, "link", refuse)
    assert "does not support atomic no-replace hard-link publication" in refusal(tmp_path)
    with pytest.raises(OSError, match="hard-link") as caught:
        append_lines(tmp_path / "x.jsonl", ["{}"])
    assert caught.value.filename == str(tmp_path / "x.jsonl")
