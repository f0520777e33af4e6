"""Data that were moved or copied are the same; other data of the same name are not."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from jobs.storage import same_data
from jobs.storage.same_data import fingerprint, is_same_data


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "a" / "data"
    (folder / "more").mkdir(parents=True)
    (folder / "train.csv").write_text("text,label\n")
    (folder / "more" / "dev.csv").write_text("text,label\n")
    return folder


def test_moved_and_copied_data_are_the_same(data: Path, tmp_path: Path) -> None:
    copy = tmp_path / "b" / "data"
    shutil.copytree(data, copy, copy_function=shutil.copyfile)
    assert is_same_data(str(data), str(copy), {})
    assert is_same_data(str(data / "train.csv"), str(copy / "train.csv"), {})
    recorded = {str(data): str(fingerprint(str(data)))}
    shutil.rmtree(data)
    assert is_same_data(str(data), str(copy), recorded)
    assert not is_same_data(str(data), str(copy), {}), "nothing says what was there"


def test_other_data_are_not(data: Path, tmp_path: Path) -> None:
    copy = tmp_path / "b" / "data"
    shutil.copytree(data, copy)
    (copy / "train.csv").write_text("text,laber\n")
    assert not is_same_data(str(data), str(copy), {})
    (copy / "train.csv").write_text("text,label\n")
    (copy / "test.csv").touch()
    assert not is_same_data(str(data), str(copy), {})
    assert not is_same_data("someone/data", "another/data", {})
    assert not is_same_data("someone/data", str(data), {})
    for name in ("c", "d"):
        (tmp_path / name / "data").mkdir(parents=True)
    assert not is_same_data(str(tmp_path / "c" / "data"), str(tmp_path / "d" / "data"), {}), "no file is the same"


def test_linked_folders_are_looked_into(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "data").mkdir(parents=True)
        (tmp_path / f"real-{name}").mkdir()
        (tmp_path / f"real-{name}" / "1.png").write_text(name)
        (tmp_path / name / "data" / "cat").symlink_to(tmp_path / f"real-{name}")
        (tmp_path / f"real-{name}" / "again").symlink_to(tmp_path / f"real-{name}")
    assert not is_same_data(str(tmp_path / "a" / "data"), str(tmp_path / "b" / "data"), {})
    (tmp_path / "real-b" / "1.png").write_text("a")
    assert is_same_data(str(tmp_path / "a" / "data"), str(tmp_path / "b" / "data"), {})


def test_large_data_are_compared_by_their_times(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(same_data, "_MOST_BYTES", 1)
    copy = tmp_path / "b" / "data"
    shutil.copytree(data, copy)  # which keeps them
    assert is_same_data(str(data), str(copy), {})
    os.utime(copy / "train.csv", ns=(1, 1))
    assert not is_same_data(str(data), str(copy), {})
    monkeypatch.setattr(same_data, "_MOST_FILES", 1)
    assert fingerprint(str(data)) is None
