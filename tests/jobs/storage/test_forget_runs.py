"""Forgetting dropped runs: which may be removed, and what is then gone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from disttrain.errors import UserError
from jobs.storage import ledger
from jobs.storage.forget_runs import forget_runs, runs_to_forget
from jobs.storage.sweep_folder import SweepFolder

PLANNED: list[dict[str, Any]] = [
    {
        "run_id": run_id,
        "dropped": dropped,
        "allocation": run_id[:3],
        "world_size": 1,
        "point": {},
        "train": {"model": "bert", "lr": lr},
    }
    for lr, (run_id, dropped) in enumerate((("1x1-a", False), ("1x1-b", True), ("2x1-c", True), ("2x1-d", True)))
]


@pytest.mark.parametrize(
    ("texts", "active", "forgotten"),
    [
        ([], {}, ("1x1-b", "2x1-c", "2x1-d")),
        ([], {"1x1-a": "RUNNING"}, ("1x1-b", "2x1-c", "2x1-d")),
        (["2x1-d", "1x1-b"], {"2x1-c": "PENDING"}, ("2x1-d", "1x1-b")),
        # A run that is named need not be dropped: for example a trial with --set.
        (["1x1 lr=0"], {"1x1-b": "RUNNING"}, ("1x1-a",)),
    ],
)
def test_runs_that_have_ended_may_be_removed(
    texts: list[str], active: dict[str, str], forgotten: tuple[str, ...]
) -> None:
    assert tuple(run["run_id"] for run in runs_to_forget(PLANNED, texts, active)) == forgotten


def test_without_dropped_runs_there_is_nothing_to_forget() -> None:
    assert runs_to_forget(PLANNED[:1], [], {"1x1-a": "RUNNING"}) == []


@pytest.mark.parametrize(
    ("texts", "active", "error"),
    [
        (
            [],
            {"2x1-c": "PENDING", "2x1-d": "RUNNING"},
            "runs that have not ended cannot be removed: 2x1-c (2x1 lr=2) PENDING, 2x1-d (2x1 lr=3) RUNNING"
            " (wait until they end, or end them with sweep cancel; nothing was removed)",
        ),
        (
            ["2x1-d"],
            {"2x1-d": "RUNNING"},
            "runs that have not ended cannot be removed: 2x1-d (2x1 lr=3) RUNNING"
            " (wait until they end, or end them with sweep cancel; nothing was removed)",
        ),
        (["1x1"], {}, "'1x1' is the start of the id of 2 runs (write one of their ids in full: 1x1-a, 1x1-b)"),
    ],
)
def test_runs_that_have_not_ended_are_refused(texts: list[str], active: dict[str, str], error: str) -> None:
    with pytest.raises(UserError) as caught:
        runs_to_forget(PLANNED, texts, active)
    assert str(caught.value) == error


def write_logs(logs: Path, job_id: str, ranks: int) -> None:
    """The files that submitit writes for an array task or a plain job."""
    names = [f"{job_id}_{rank}_{kind}" for rank in range(ranks) for kind in ("log.out", "log.err", "result.pkl")]
    for name in [*names, f"{job_id}_submitted.pkl"]:
        (logs / name).touch()


def write_script(logs: Path, array: str) -> None:
    (logs / f"{array}_submission.sh").touch()
    (logs / f".submission_file_of_{array}.sh").symlink_to(logs / f"{array}_submission.sh")


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    """Four runs: b and d share an array with a; c was submitted again as a plain job; d also ran in a local queue."""
    folder = SweepFolder(tmp_path / "s" / "site")
    folder.logs.mkdir(parents=True)
    folder.write_plan({"sweep": "s", "cluster": "site", "runs": PLANNED})
    ledger.record(folder.path, {"1x1-a": "7_0", "1x1-b": "7_1", "2x1-d": "7_11"}, 1.0)
    ledger.record(folder.path, {"2x1-c": "8"}, 2.0)
    ledger.record(folder.path, {"2x1-c": "9_0"}, 3.0)
    ledger.record(folder.path, {"2x1-d": "local-5-0"}, 4.0)
    for run in PLANNED:
        (folder.run(run["run_id"]) / "checkpoints").mkdir(parents=True)
        (folder.run(run["run_id"]) / "run.json").touch()
    for job_id, ranks in (("7_0", 1), ("7_1", 1), ("7_11", 2), ("8", 2), ("9_0", 2)):
        write_logs(folder.logs, job_id, ranks)
    for array in ("7", "8", "9"):
        write_script(folder.logs, array)
    (folder.logs / "local-5-0").mkdir()
    write_logs(folder.logs / "local-5-0", "123", 2)
    (folder.logs / "queue.log").touch()
    return folder


def logs_of(folder: SweepFolder) -> list[str]:
    return sorted(path.name for path in folder.logs.iterdir())


TASK_A = ["7_0_0_log.err", "7_0_0_log.out", "7_0_0_result.pkl", "7_0_submitted.pkl"]
TASK_D = [f"7_11_{rank}_{kind}" for rank in (0, 1) for kind in ("log.err", "log.out", "result.pkl")]


def test_removes_files_jobs_and_plan(folder: SweepFolder) -> None:
    forget_runs(folder, ["1x1-b", "2x1-c"], 9.0)
    assert [run["run_id"] for run in folder.planned_runs()] == ["1x1-a", "2x1-d"]
    assert sorted(path.name for path in (folder.path / "runs").iterdir()) == ["1x1-a", "2x1-d"]
    # The script of array 7 stays, because other tasks of it stay.
    script = [".submission_file_of_7.sh", "7_submission.sh"]
    assert logs_of(folder) == sorted([*TASK_A, *TASK_D, "7_11_submitted.pkl", *script, "local-5-0", "queue.log"])
    assert sorted(ledger.read_ledger(folder.path).jobs) == ["1x1-a", "2x1-d"]
    assert ledger.read_lines(folder.path / ledger.LEDGER_NAME)[-1] == {
        "event": "forget", "time_s": 9.0, "run_ids": ["1x1-b", "2x1-c"],
    }  # fmt: skip
    forget_runs(folder, ["1x1-a", "2x1-d"], 10.0)
    assert logs_of(folder) == ["queue.log"]


def test_a_linked_folder_loses_its_link_only(folder: SweepFolder, tmp_path: Path) -> None:
    """A user has moved the folder of a run to another disk."""
    moved = folder.run("1x1-b").rename(tmp_path / "moved")
    folder.run("1x1-b").symlink_to(moved)
    forget_runs(folder, ["1x1-b"], 9.0)
    assert not folder.run("1x1-b").is_symlink()
    assert (moved / "run.json").exists()


def test_the_figures_of_other_runs_stay(folder: SweepFolder) -> None:
    (folder.path / "figures").mkdir()
    for run in PLANNED:
        (folder.path / "figures" / f"timeline-{run['run_id']}.svg").touch()
    forget_runs(folder, ["1x1-b", "2x1-d"], 9.0)
    left = sorted(path.name for path in (folder.path / "figures").iterdir())
    assert left == ["timeline-1x1-a.svg", "timeline-2x1-c.svg"]


@pytest.mark.parametrize("interrupted", ["jobs.storage.ledger.forget", "jobs.storage.sweep_folder.write_text"])
def test_a_second_forget_completes_the_first(
    interrupted: str, folder: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(interrupted, crash)
        with pytest.raises(KeyboardInterrupt):
            forget_runs(folder, ["1x1-b"], 9.0)
    assert not folder.run("1x1-b").exists()
    left = runs_to_forget(folder.planned_runs(), [], {})
    assert [run["run_id"] for run in left] == ["1x1-b", "2x1-c", "2x1-d"]
    forget_runs(folder, ["1x1-b"], 10.0)
    assert [run["run_id"] for run in folder.planned_runs()] == ["1x1-a", "2x1-c", "2x1-d"]
    assert "1x1-b" not in ledger.read_ledger(folder.path).jobs
