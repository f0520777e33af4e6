"""The ledger: the result of its events, and a file that survives crashes and parallel writers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from disttrain.errors import UserError
from jobs.storage.ledger import (
    LEDGER_NAME,
    Job,
    Ledger,
    QueueProcess,
    Skipped,
    add_script,
    append_lines,
    cancel,
    forget,
    give_up,
    intend,
    read_ledger,
    read_lines,
    record,
    replay,
    skip,
    submission_lock,
)

QUEUE = QueueProcess("laptop", 123, 1700000000.25)


def test_an_empty_folder_has_an_empty_ledger(tmp_path: Path) -> None:
    assert read_ledger(tmp_path) == Ledger({}, ())


def test_replays_all_events(tmp_path: Path) -> None:
    intend(tmp_path, ["a", "b"], 1.0)
    record(tmp_path, {"a": "7_0", "b": "7_1"}, 2.0)
    intend(tmp_path, ["c"], 3.0)
    give_up(tmp_path, ["c"], 4.0, "invalid account")
    record(tmp_path, {"a": "local-5-0"}, 5.0, QUEUE)
    intend(tmp_path, ["b", "d"], 6.0)
    ledger = read_ledger(tmp_path)
    assert ledger == Ledger(
        {"a": (Job("a", "7_0", 2.0), Job("a", "local-5-0", 5.0, QUEUE)), "b": (Job("b", "7_1", 2.0),)},
        ("b", "d"),
        {"b": {}, "d": {}},
    )
    assert [job.job_id for job in ledger.all_jobs()] == ["7_0", "local-5-0", "7_1"]
    record(tmp_path, {"b": "9"}, 7.0)
    assert read_ledger(tmp_path).unconfirmed == ("d",)


def test_has_the_overrides_of_each_submission(tmp_path: Path) -> None:
    """Slurm's are in the intend event, those of a local queue in the record event."""
    intend(tmp_path, ["a", "b", "c"], 1.0)
    record(tmp_path, {"a": "7_0", "b": "7_1", "c": "7_2"}, 2.0)
    intend(tmp_path, ["a", "d"], 3.0, {"lr": "2e-5"})
    record(tmp_path, {"a": "8"}, 4.0)
    intend(tmp_path, ["b"], 5.0, {"lr": "1e-3"})
    give_up(tmp_path, ["b"], 6.0, "invalid account")
    record(tmp_path, {"c": "local-7-0"}, 7.0, QUEUE, {"seed": "3"})
    ledger = read_ledger(tmp_path)
    assert ledger.overrides() == {"a": {"lr": "2e-5"}, "b": {}, "c": {"seed": "3"}, "d": {"lr": "2e-5"}}
    assert [job.overrides for job in ledger.jobs["a"]] == [{}, {"lr": "2e-5"}]
    assert [line.get("set") for line in read_lines(tmp_path / LEDGER_NAME)] == [
        {}, None, {"lr": "2e-5"}, None, {"lr": "1e-3"}, None, {"seed": "3"},
    ]  # fmt: skip


def test_has_what_runs_wait_for(tmp_path: Path) -> None:
    """A run that was skipped is sent again by any later submission."""
    intend(tmp_path, ["a", "b"], 1.0, after=["5", "6_1"])
    record(tmp_path, {"a": "7_0", "b": "7_1"}, 2.0)
    skip(tmp_path, ["b", "c"], 3.0, {"lr": "1"}, ["8"])
    ledger = read_ledger(tmp_path)
    assert [jobs[-1].after for jobs in ledger.jobs.values()] == [("5", "6_1")] * 2
    assert ledger.skipped == dict.fromkeys("bc", Skipped(("8",), {"lr": "1"}))
    assert ledger.overrides() == {"a": {}, "b": {"lr": "1"}, "c": {"lr": "1"}}
    intend(tmp_path, ["b"], 4.0)
    record(tmp_path, {"c": "9"}, 5.0)
    skip(tmp_path, ["d"], 6.0, {}, ["8"])
    forget(tmp_path, ["d"], 7.0)
    assert not read_ledger(tmp_path).skipped
    record(tmp_path, {"b": "10"}, 8.0)
    assert read_ledger(tmp_path).jobs["b"][-1].after == ()


@pytest.mark.parametrize(
    "wrong", [{"after": "5"}, {"after": ["../5"]}, {"after": [5]}, {"set": {"lr": 1}}, {"run_ids": ["/"]}]
)
def test_a_wrong_event_of_a_smoke_run_is_damage(wrong: dict[str, Any], tmp_path: Path) -> None:
    skipped = {"event": "skip", "time_s": 1.0, "run_ids": ["a"], "set": {}, "after": ["5"]}
    intended = {**skipped, "event": "intend"}
    append_lines(tmp_path / LEDGER_NAME, [json.dumps(event) for event in (skipped, intended)])
    assert not read_ledger(tmp_path).damaged_lines
    append_lines(tmp_path / LEDGER_NAME, [json.dumps(event | wrong) for event in (skipped, intended)])
    assert read_ledger(tmp_path).damaged_lines == (3, 4)


def test_reads_a_ledger_without_overrides() -> None:
    """A former release wrote none."""
    intended = {"event": "intend", "time_s": 1.0, "run_ids": ["a", "b"]}
    recorded = {"event": "record", "time_s": 2.0, "jobs": {"a": "7"}}
    ledger = replay([intended, recorded])
    assert ledger.overrides() == {"a": None, "b": None}
    assert ledger.unconfirmed == ("b",)


def test_forgotten_runs_have_no_job(tmp_path: Path) -> None:
    record(tmp_path, {"a": "7_0", "b": "7_1"}, 1.0)
    intend(tmp_path, ["c"], 2.0)
    forget(tmp_path, ["a", "c"], 3.0)
    assert read_ledger(tmp_path) == Ledger({"b": (Job("b", "7_1", 1.0, overrides=None),)}, ())
    record(tmp_path, {"a": "9"}, 4.0)
    assert read_ledger(tmp_path).jobs["a"] == (Job("a", "9", 4.0, overrides=None),)


@pytest.mark.parametrize("size_bytes", [1, 10, 40])
def test_an_incomplete_line_is_skipped(size_bytes: int, tmp_path: Path) -> None:
    path = tmp_path / LEDGER_NAME
    record(tmp_path, {"a": "1"}, 1.0)
    complete = path.read_bytes()
    record(tmp_path, {"b": "2"}, 2.0)
    path.write_bytes(path.read_bytes()[: len(complete) + size_bytes])
    assert set(read_ledger(tmp_path).jobs) == {"a"}
    record(tmp_path, {"c": "3"}, 3.0)
    assert set(read_ledger(tmp_path).jobs) == {"a", "c"}


def test_a_line_without_its_end_counts(tmp_path: Path) -> None:
    path = tmp_path / LEDGER_NAME
    record(tmp_path, {"a": "1"}, 1.0)
    path.write_bytes(path.read_bytes().removesuffix(b"\n"))
    record(tmp_path, {"b": "2"}, 2.0)
    assert set(read_ledger(tmp_path).jobs) == {"a", "b"}


def test_a_damaged_line_is_known(tmp_path: Path) -> None:
    """Jobs may be missing then: sweep submit asks squeue before it sends these runs again."""
    record(tmp_path, {"a": "1"}, 1.0)
    with (tmp_path / LEDGER_NAME).open("ab") as file:
        file.write(b'{"event": "rec\x00\n')
    record(tmp_path, {"b": "2"}, 2.0)
    ledger = read_ledger(tmp_path)
    assert (set(ledger.jobs), ledger.damaged_lines) == ({"a", "b"}, (2,))


@pytest.mark.process
def test_processes_append_complete_lines(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    code = (
        "import json, sys; from pathlib import Path; from jobs.storage.ledger import append_lines\n"
        "for i in range(25):\n"
        "    lines = [json.dumps([sys.argv[2], i, j] + ['x' * 999]) for j in (0, 1)]\n"
        "    append_lines(Path(sys.argv[1]), lines)"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, path, name]) for name in "abc"]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0, 0]
    lines = [json.loads(line)[:3] for line in path.read_text().splitlines()]
    assert sorted(lines) == [[name, i, j] for name in "abc" for i in range(25) for j in (0, 1)]
    assert [index for index, (_, _, j) in enumerate(lines) if j == index % 2] == list(
        range(150)
    )  # the two lines of one call stay together


def test_reads_lines_unchanged(tmp_path: Path) -> None:
    values = [{"reason": "line\u2028separator\nand \U0001f600"}, {"reason": ""}]
    append_lines(tmp_path / "x.jsonl", [json.dumps(value) for value in values])
    assert read_lines(tmp_path / "x.jsonl") == values


def test_only_one_submission_at_a_time(tmp_path: Path) -> None:
    with submission_lock(tmp_path), pytest.raises(UserError) as caught, submission_lock(tmp_path):
        pass
    message = f"another sweep command is running in {tmp_path}: process {os.getpid()} of "
    assert str(caught.value).startswith(message)
    assert str(caught.value).endswith(" (wait until it has ended, then try again)")
    with submission_lock(tmp_path):
        pass  # the lock is free


def test_an_error_releases_the_lock(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), submission_lock(tmp_path):
        raise KeyboardInterrupt
    with submission_lock(tmp_path):
        pass


TOKEN = "0123456789abcdef"


def start_script(folder: Path, jobs: dict[str, str], token: str = TOKEN, end: str = "\n") -> None:
    """Appends what a batch script prints, without the lock."""
    values = {"token": token, "event": "record", "time_s": 900, "cluster": "", "jobs": jobs}
    with (folder / LEDGER_NAME).open("a") as file:
        file.write(f"\n{json.dumps(values)}{end}")


def test_a_batch_script_has_no_job_before_it_starts(tmp_path: Path) -> None:
    add_script(tmp_path, ["a", "b"], 1.0, {"lr": "1"}, TOKEN, {"time": 60})
    ledger = read_ledger(tmp_path)
    assert (dict(ledger.jobs), ledger.unconfirmed, ledger.open_tokens, ledger.overrides()) == ({}, (), {}, {})
    start_script(tmp_path, {"b": "7_1"})
    # It may have waited for days: sacct is asked about what was submitted after the script was written.
    job = Job("b", "7_1", 1.0, None, {"lr": "1"}, None, {"time": 60})
    assert read_ledger(tmp_path).jobs == {"b": (job,)}


def test_a_requeued_script_has_one_job(tmp_path: Path) -> None:
    add_script(tmp_path, ["a"], 1.0, {}, TOKEN, {})
    for job_id in ("7", "7", "9", "7"):
        start_script(tmp_path, {"a": job_id})
    assert [job.job_id for job in read_ledger(tmp_path).all_jobs()] == ["7", "9"]


def test_a_requeue_does_not_undo_a_cancellation(tmp_path: Path) -> None:
    add_script(tmp_path, ["a"], 1.0, {}, TOKEN, {})
    start_script(tmp_path, {"a": "7"})
    cancel(tmp_path, ["a"], 2.0)
    start_script(tmp_path, {"a": "7"})
    assert read_ledger(tmp_path).cancelled == {"a"}
    start_script(tmp_path, {"a": "9"})
    assert read_ledger(tmp_path).cancelled == set()


def test_a_line_of_a_script_that_is_cut_off(tmp_path: Path) -> None:
    """Its job was killed, or two nodes appended at the same time. A later line is read, and nothing is damaged."""
    add_script(tmp_path, ["a", "b"], 1.0, {}, TOKEN, {})
    with (tmp_path / LEDGER_NAME).open("a") as file:
        file.write(f'\n{{"token": "{TOKEN}", "event": "rec')
    start_script(tmp_path, {"b": "8"})
    append_lines(tmp_path / LEDGER_NAME, ['{"event": "cancel", "time_s": 1.0, "run_ids": ["a"]}'])
    ledger = read_ledger(tmp_path)
    assert (list(ledger.jobs), ledger.damaged_lines) == (["b"], ())
    assert ledger.cancelled == {"a"}
    start_script(tmp_path, {"a": "9"}, "ffffffffffffffff", end='"\n')
    assert len(read_ledger(tmp_path).damaged_lines) == 1, "of no script that is known"


def test_a_script_starts_no_forgotten_run(tmp_path: Path) -> None:
    add_script(tmp_path, ["a", "b"], 1.0, {}, TOKEN, {})
    forget(tmp_path, ["a"], 2.0)
    start_script(tmp_path, {"a": "7_0"})
    start_script(tmp_path, {"b": "7_1"})
    ledger = read_ledger(tmp_path)
    assert list(ledger.jobs) == ["b"]
    assert [ledger.scripts[TOKEN].run_of(job_id) for job_id in ("7_0", "7_1", "7_2", "7_[0-1]", "7")] == [
        None, "b", None, None, None
    ]  # fmt: skip
