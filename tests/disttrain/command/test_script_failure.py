"""Why a script has failed, from what it leaves: torch's error file, the end of its stderr, its status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from disttrain.command.script_failure import script_failure, worker_status

TRACEBACK = """Traceback (most recent call last):
  File "train.py", line 3, in <module>
    main()
{line}
"""


def failure_of(stderr: str, error_file: Path = Path("/nonexistent"), status: int = 1) -> tuple[str, str]:
    failure = script_failure(0, status, error_file, stderr)
    return failure.error, failure.message


@pytest.mark.parametrize(
    ("line", "error", "message"),
    [
        ("ValueError: boom", "ValueError", "boom"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried", "OutOfMemoryError", "CUDA out of memory. Tried"),
        ("KeyError: 'lr'", "KeyError", "'lr'"),
        ("AssertionError", "AssertionError", ""),
        ("json.decoder.JSONDecodeError: Extra data: line 1", "JSONDecodeError", "Extra data: line 1"),
    ],
)
def test_the_last_traceback(line: str, error: str, message: str) -> None:
    stderr = f"{TRACEBACK.format(line='OSError: first')}\nDuring handling of this\n\n{TRACEBACK.format(line=line)}"
    assert failure_of(stderr) == (error, message)
    assert failure_of("".join(f"[rank0]: {text}\n" for text in stderr.splitlines())) == (error, message)
    assert failure_of(stderr + "W1130 a warning after it\n") == (error, message)


def test_the_traceback_of_a_worker_and_not_torchruns() -> None:
    torchruns = "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: "
    stderr = TRACEBACK.format(line="ValueError: boom") + TRACEBACK.format(line=torchruns) + "=====\n"
    assert failure_of(stderr) == ("ValueError", "boom")


@pytest.mark.parametrize(
    ("stderr", "error", "message"),
    [
        ("", "ExitStatus", "the script ended with exit status 1"),
        ("RuntimeError: no data\n", "RuntimeError", "no data"),
        ("  5%|#\r100%|##\n", "ExitStatus", "the script ended with exit status 1; its last line: 100%|##"),
        (
            "usage: x\nx: error: bad\n",
            "ExitStatus",
            "the script ended with exit status 1; its last line: x: error: bad",
        ),
        (
            "x: error: bad\nE1130 api.py:1] failed (exitcode: 1) local_rank: 0 (pid: 7) of binary: sh\n=====\n",
            "ExitStatus",
            "the script ended with exit status 1; its last line: x: error: bad",
        ),
    ],
)
def test_without_a_traceback(stderr: str, error: str, message: str) -> None:
    assert failure_of(stderr) == (error, message)


def test_a_signal() -> None:
    assert failure_of("", status=-11) == ("SIGSEGV", "the script was ended by SIGSEGV")
    text = "the script ended with exit status 137, which a shell gives after SIGKILL"
    assert failure_of("Killed\n", status=137) == ("SIGKILL", text)
    assert failure_of("", status=255) == ("ExitStatus", "the script ended with exit status 255")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"message": {"message": "ValueError: boom", "extraInfo": {}}}, ("ValueError", "boom")),
        ({"message": "torch.AcceleratorError: lost: x"}, ("AcceleratorError", "lost: x")),
        ({"message": 3}, ("KeyError", "stderr")),
        (None, ("KeyError", "stderr")),
    ],
)
def test_the_file_of_torchs_record_is_better_evidence(
    content: object, expected: tuple[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "error.json"
    path.write_text(json.dumps(content) if content else "{damaged")
    assert failure_of("KeyError: stderr\n", path) == expected


@pytest.mark.parametrize(("status", "exit_code", "expected"), [(1, 85, 85), (1, -9, -9), (2, 85, 2), (0, 85, 0)])
def test_the_status_of_the_first_worker(status: int, exit_code: int, expected: int) -> None:
    others = "Failures:\n[1]:\n  exitcode  : 1 (pid: 8)\n"
    cause = f"Root Cause (first observed failure):\n[0]:\n  rank      : 2\n  exitcode  : {exit_code} (pid: 7)\n"
    assert worker_status(status, others + cause) == expected


REPORTS = "".join(
    f"E1130 9 torch/api.py:1] failed (exitcode: {code}) local_rank: 0 (pid: {pid}) of binary: sh\n"
    for code, pid in ((1, 7), (85, 8), (2, 9))
)


def test_the_workers_that_were_warned_count() -> None:
    cause = "Root Cause (first observed failure):\n  exitcode  : 2 (pid: 9)\n"
    assert worker_status(1, REPORTS + cause, warned={8}) == 85
    assert worker_status(1, REPORTS + cause, warned={7}, restarted=True) == 1
    assert worker_status(1, REPORTS + cause, warned={6}, restarted=True) == 85
    assert worker_status(1, REPORTS + cause, warned={6}) == 2
    assert worker_status(0, REPORTS, warned={8}, restarted=True) == 0, "the new workers had nothing left to do"


def test_torchrun_that_was_ended_has_not_failed() -> None:
    assert worker_status(1, "SignalException: Process 7 got signal: 15\n", terminated=True) == -15
