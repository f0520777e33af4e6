"""The links under by-name/ agree with the plan."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from jobs.storage import name_links
from jobs.storage.name_links import link_names, link_names_or_warn, write_links
from jobs.storage.sweep_folder import SweepFolder


def planned(*values: object, field: str = "dataset") -> list[dict[str, Any]]:
    return [
        {"run_id": f"1x1-{number:012x}", "allocation": "1x1", "world_size": 1, "point": {field: value},
         "asked": {field: value}, "train": {"model": "bert", field: value}}
        for number, value in enumerate(values, start=1)
    ]  # fmt: skip


def write_plan(folder: SweepFolder, runs: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Writes a plan and its links, and returns the target of each link."""
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.plan_file.write_text(json.dumps({"runs": list(runs)}))
    for run in runs:
        folder.run(run["run_id"]).mkdir(parents=True, exist_ok=True)
    write_links(folder)
    by_name = folder.path / "by-name"
    links = by_name.iterdir() if by_name.exists() else ()
    return {path.name: os.readlink(path) for path in links if path.is_symlink()}


def test_links_follow_the_plan(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path / "s" / "site")
    one, two = planned("a", "b")
    assert write_plan(folder, [one]) == {"1x1": "../runs/1x1-000000000001"}
    both = {"1x1_dataset=a": "../runs/1x1-000000000001", "1x1_dataset=b": "../runs/1x1-000000000002"}
    assert write_plan(folder, [one, two]) == both
    assert write_plan(folder, [one, two]) == both
    assert (folder.path / "by-name" / "1x1_dataset=b").resolve() == folder.run("1x1-000000000002")
    assert write_plan(folder, [two]) == {"1x1": "../runs/1x1-000000000002"}


def test_a_link_follows_its_name(tmp_path: Path) -> None:
    """The only run of a sweep has its allocation as name, whichever run it is."""
    folder = SweepFolder(tmp_path / "s" / "site")
    one, two = planned("a", "b")
    assert write_plan(folder, [one]) == {"1x1": "../runs/1x1-000000000001"}
    assert write_plan(folder, [two]) == {"1x1": "../runs/1x1-000000000002"}


def test_equal_names_get_the_digits_of_the_id() -> None:
    assert link_names(planned("a/b", "a:b", "c")) == {
        "1x1_dataset=a-b_000000000001": "1x1-000000000001",
        "1x1_dataset=a-b_000000000002": "1x1-000000000002",
        "1x1_dataset=c": "1x1-000000000003",
    }


def test_a_long_name_is_cut(tmp_path: Path) -> None:
    names = write_plan(SweepFolder(tmp_path / "s" / "site"), planned("x" * 300, "y" * 300))
    assert len(names) == 2
    assert max(map(len, names)) <= 255


def test_a_large_sweep_has_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = SweepFolder(tmp_path / "s" / "site")
    monkeypatch.setattr(name_links, "MOST_LINKS", 2)
    assert len(write_plan(folder, planned("a", "b"))) == 2
    assert write_plan(folder, planned("a", "b", "c")) == {}


def test_other_files_in_the_folder_stay(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path / "s" / "site")
    (folder.path / "by-name").mkdir(parents=True)
    (folder.path / "by-name" / ".DS_Store").touch()
    write_plan(folder, planned("a"))
    assert {path.name for path in (folder.path / "by-name").iterdir()} == {".DS_Store", "1x1"}


def test_a_file_in_the_way_is_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = SweepFolder(tmp_path / "s" / "site")
    (folder.path / "by-name").mkdir(parents=True)
    (folder.path / "by-name" / "1x1").touch()
    folder.plan_file.write_text(json.dumps({"runs": planned("a")}))
    link_names_or_warn(folder)
    note = f"note: by-name/ is not complete: '{folder.path}/by-name/1x1': File exists\n"
    assert capsys.readouterr().err.replace("../runs/1x1-000000000001", f"{folder.path}/by-name/1x1") == note
