"""Checkpoint files: owned by one attempt, verified before use, and removed; a failed write does not end the run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from disttrain.checkpoint.files import Claim, clear, find, load, remove_leftovers
from disttrain.checkpoint.writer import CheckpointWriter
from disttrain.errors import NewerAttempt
from disttrain.records.record_files import RecordPosition, RecordWriter, is_intact, read_records
from disttrain.records.record_types import EndRecord

STATE = {"weights": torch.arange(6.0).view(2, 3), "nested": [{"numbers": torch.ones(2)}, "text", 3]}


def writer_of(folder: Path) -> CheckpointWriter:
    return CheckpointWriter(Claim(folder), folder, "run-1", 2, on_gpu=False)


def save(writer: CheckpointWriter, *steps: int) -> None:
    for step in steps:
        writer.save(step, STATE, began_s=0.0)
    writer.wait()


def test_the_two_latest_checkpoints_stay(tmp_path: Path) -> None:
    writer = writer_of(tmp_path)
    save(writer, 1, 2, 3)
    assert [outcome.step for outcome in writer.done()] == [1, 2, 3]
    manifest = find(tmp_path).manifest
    assert manifest is not None
    assert (manifest.step, manifest.attempt, manifest.world_size) == (3, 1, 2)
    state = load(tmp_path, manifest)
    assert torch.equal(state["weights"], STATE["weights"])  # type: ignore[arg-type]
    assert sorted(path.stem for path in tmp_path.glob("*.pt")) == [
        "attempt-00001-step-000000002",
        "attempt-00001-step-000000003",
    ]


def test_later_steps_do_not_change_the_copy(tmp_path: Path) -> None:
    writer, weights = writer_of(tmp_path), torch.zeros(1000)
    writer.save(1, {"weights": weights}, began_s=0.0)
    weights += 1  # like the next step, while the thread may still write
    writer.wait()
    manifest = find(tmp_path).manifest
    assert manifest is not None
    assert not load(tmp_path, manifest)["weights"].any()


class _Event:
    """A CUDA event; 40 ms pass between any two."""

    def record(self) -> None: ...

    def synchronize(self) -> None: ...

    def elapsed_time(self, _: object) -> float:
        return 40.0


@pytest.mark.parametrize(("host_copy_s", "blocked_ms"), [(0.1, 1100.0), (0.01, 1040.0)])
def test_a_copy_counts_once(
    host_copy_s: float, blocked_ms: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Host and GPU copy at the same time: `blocked_ms` has the longer of the two, and 1 s of waiting before them."""
    clock = iter([1.0, 1.0 + host_copy_s])
    monkeypatch.setattr("disttrain.checkpoint.writer._event", _Event)
    monkeypatch.setattr("disttrain.checkpoint.writer.time.perf_counter", lambda: next(clock, 2.0))
    writer = CheckpointWriter(Claim(tmp_path), tmp_path, "run-1", 1, on_gpu=True)
    writer.save(1, {"weights": torch.zeros(3)}, began_s=0.0)
    writer.wait()
    (outcome,) = writer.done()
    assert outcome.blocked_ms == pytest.approx(blocked_ms)


def test_reports_a_failed_write_and_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = writer_of(tmp_path)
    save(writer, 1)

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        save(writer, 2)
    save(writer, 3)
    assert [(outcome.step, outcome.error) for outcome in writer.done()] == [
        (1, None),
        (2, "[Errno 28] No space left on device"),
        (3, None),
    ]
    assert not list(tmp_path.glob(".*")), "no incomplete file remains"


def test_an_older_attempt_changes_no_newer_one(tmp_path: Path) -> None:
    older = writer_of(tmp_path)
    save(older, 1)
    newer = writer_of(tmp_path)
    save(older, 2)
    with pytest.raises(NewerAttempt):
        older.done()
    save(newer, 1)
    clear(tmp_path, attempt=1)
    manifest = find(tmp_path).manifest
    assert manifest is not None
    assert manifest.attempt == 2


def test_damaged_checkpoints_replace_no_intact_ones(tmp_path: Path) -> None:
    save(writer_of(tmp_path), 1, 2)
    (tmp_path / "attempt-00001-step-000000002.pt").write_bytes(b"")
    found = find(tmp_path)
    assert found.manifest is not None
    assert found.manifest.step == 1
    newer = writer_of(tmp_path)
    remove_leftovers(tmp_path, 2, found.damaged)
    save(newer, 3)
    (tmp_path / "attempt-00002-step-000000003.pt").write_bytes(b"")
    found = find(tmp_path)
    assert found.manifest is not None
    assert found.manifest.step == 1


def test_unreadable_is_not_damaged(tmp_path: Path) -> None:
    save(writer_of(tmp_path), 1)
    (tmp_path / "attempt-00001-step-000000001.json").unlink()
    (tmp_path / "attempt-00001-step-000000001.json").mkdir()  # reading a folder is an error of the operating system
    found = find(tmp_path)
    assert (found.manifest, found.damaged, found.unreadable) == (None, (), True)


def test_removes_incomplete_files_of_killed_attempts(tmp_path: Path) -> None:
    save(writer_of(tmp_path), 1)
    for name in (
        "attempt-00001-step-000000002.pt",  # killed before its manifest
        ".attempt-00001-step-000000003.pt.77",  # killed during the write of the state
        ".attempt-00001-step-000000001.json.77",  # killed during the write of a manifest
    ):
        (tmp_path / name).write_bytes(b"half")
    newer = writer_of(tmp_path)
    remove_leftovers(tmp_path, 2)
    assert sorted(os.listdir(tmp_path)) == [
        "attempt-00001",
        "attempt-00001-step-000000001.json",
        "attempt-00001-step-000000001.pt",
        "attempt-00002",
    ]
    save(newer, 2)
    clear(tmp_path, 2)
    assert sorted(os.listdir(tmp_path)) == ["attempt-00001", "attempt-00002"]


def test_detects_changed_records(tmp_path: Path) -> None:
    path, record = tmp_path / "metrics.jsonl", EndRecord(time_s=1.0, steps=1, train_s=1.0)
    with RecordWriter(path) as writer:
        writer.write([record])
        written = writer.sync()
        writer.write([record])
    assert is_intact(path, written)
    assert is_intact(path, RecordPosition())
    assert not is_intact(tmp_path / "missing", written)
    with RecordWriter(path, written) as writer:
        writer.write([record])
        assert writer.sync().size_bytes == path.stat().st_size
        assert is_intact(path, writer.sync())
    assert len(list(read_records(path))) == 2
    path.write_bytes(path.read_bytes().replace(b"1", b"2"))
    assert not is_intact(path, written)
    path.write_bytes(b"")
    assert not is_intact(path, written)
