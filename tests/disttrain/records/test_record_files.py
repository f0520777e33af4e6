"""Records that an earlier attempt wrote, and the failure of a rank."""

from __future__ import annotations

from pathlib import Path

import pytest

from disttrain.errors import UserError
from disttrain.records.record_files import (
    RecordWriter,
    failure_name,
    metrics_name,
    read_failure,
    read_records,
    records_after,
    write_failure,
)
from disttrain.records.record_types import EndRecord


def ends(*steps: int) -> list[EndRecord]:
    return [EndRecord(time_s=1.0, steps=number, train_s=2.0) for number in steps]


def test_records_after_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / metrics_name(0)
    with RecordWriter(path) as writer:
        writer.write(ends(1, 2))
        saved = writer.sync()
        writer.write(ends(3))
    with path.open("a") as file:
        file.write('{"kind": "end", "st')
    assert list(records_after(path, saved)) == ends(3)
    with RecordWriter(path, saved) as resumed:
        resumed.write(ends(4))
    assert list(read_records(path)) == ends(1, 2, 4)
    assert list(records_after(tmp_path / "missing", saved)) == []


@pytest.mark.parametrize(("error", "is_users"), [(UserError("lr is 'fast'"), True), (ValueError("a bug"), False)])
def test_a_failure_says_whose_mistake_it_is(error: Exception, is_users: bool, tmp_path: Path) -> None:
    write_failure(tmp_path, 3, error)
    failure = read_failure(tmp_path / failure_name(3))
    assert failure is not None
    assert (failure.rank, failure.message, failure.user_error) == (3, str(error), is_users)
