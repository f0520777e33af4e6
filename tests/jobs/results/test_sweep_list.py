"""The list of sweeps: its order and its ages."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from jobs.results.sweep_list import list_json, listed_sweeps
from jobs.schedulers.answers import age_text
from jobs.storage.sweep_folder import SweepFolder


def submit(root: Path, name: str, age_s: float) -> SweepFolder:
    """A folder whose plan was written at that time."""
    folder = SweepFolder(root / name / "site")
    folder.path.mkdir(parents=True)
    folder.write_plan({"runs": []})
    os.utime(folder.plan_file, (time.time() - age_s,) * 2)
    return folder


def test_the_last_submission_is_first(tmp_path: Path) -> None:
    for name, age_s in (("b", 300.0), ("a", 9000.0), ("c", 5.0)):
        submit(tmp_path, name, age_s)
    assert [sweep.folder.sweep_name for sweep in listed_sweeps(tmp_path)] == ["c", "b", "a"]


def test_the_age_is_that_of_the_answer(tmp_path: Path) -> None:
    """The states are as old as Slurm's last answer, not as the submission."""
    folder = submit(tmp_path, "a", age_s=9000.0)
    (listed,) = list_json(listed_sweeps(tmp_path))
    assert listed["age_s"] is None
    folder.query_time_file.write_text(str(time.time() - 300))
    (listed,) = list_json(listed_sweeps(tmp_path))
    assert listed["age_s"] == pytest.approx(300, abs=60)


@pytest.mark.parametrize(
    ("age_s", "text"),
    [
        (0, "0 s"), (59, "59 s"), (60, "1 min"), (3599, "59 min"), (3600, "1 h"), (86400, "24 h"), (172799, "47 h"),
        (172800, "2 days"),
    ],
)  # fmt: skip
def test_an_age_has_its_largest_unit(age_s: float, text: str) -> None:
    assert age_text(age_s) == text
