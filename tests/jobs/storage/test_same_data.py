"""Data that were moved or copied are the same; other data of the same name are not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from jobs.storage import same_data
from jobs.storage.same_data import is_same_data


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "a" / "data"
    (folder / "more").mkdir(parents=True)
    (folder / "train.csv").write_text("text,label\n")
    (folder / "more" / "dev.csv").write_text("text,label\n")
    return folder


def test_moved_and_copied_data_are_the_same(data: Path, tmp_path: Path) -> None:
    copy = tmp_path / "b" / "data"
    shutil.copytree(data, copy)
    assert is_same_data(str(data), str(copy))
    assert is_same_data(str(data / "train.csv"), str(copy / "train.csv"))
    shutil.rmtree(data)
    assert is_same_data(str(data), str(copy))


def test_other_data_are_not(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "b" / "data"
    shutil.copytree(data, copy)
    (copy / "train.csv").write_text("text,laber\n")
    assert not is_same_data(str(data), str(copy))
    (copy / "train.csv").write_text("text,label\n")
    (copy / "test.csv").touch()
    assert not is_same_data(str(data), str(copy))
    (copy / "test.csv").unlink()
    monkeypatch.setattr(same_data, "_MOST_BYTES", 1)
    assert not is_same_data(str(data), str(copy)), "too much to read"
    assert not is_same_data("/gone/data", "/gone/other")
    assert not is_same_data("someone/data", "another/data")
    assert not is_same_data("someone/data", str(data))
