"""A full disk, a full quota or a read-only folder: commands that only read still work, and submit changes nothing."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from disttrain.config.train_config import TrainConfig
from jobs import cli
from jobs.planning.allocation import Allocation
from jobs.planning.cluster import Cluster
from jobs.planning.cluster_profile import ClusterProfile
from jobs.planning.expand import RunSpec
from jobs.planning.plan import make_plan
from jobs.results.status import read_status
from jobs.schedulers import slurm_scheduler
from jobs.slurm.attempts import AccountingRow
from jobs.slurm.states import State
from jobs.storage import ledger
from jobs.storage.sweep_folder import SweepFolder, prepare, prepare_runs
from jobs.submission.launch import _on_sent
from tests.disks import mounted

SWEEP = "name: s\nallocations: [1x1, 2x1]\nbase: {model: bert, max_steps: 3}\n"
RUN = RunSpec("a", Allocation(1, 1), TrainConfig(model="bert").resolved(), {}, {}, 0)
REFUSALS = {errno.ENOSPC: "No space left on device", errno.EDQUOT: "Disk quota exceeded", errno.EROFS: "Read-only"}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    with mounted(tmp_path / "disk", "size=4m") as folder:
        yield folder


def fill(folder: Path) -> None:
    """Leaves no space at all."""
    for size in (2**16, 1):
        with (folder / f"filler-{size}").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(size)):
                pass
    with pytest.raises(OSError, match="No space left on device"):
        (folder / "filler").write_text("x")


def make_read_only(folder: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    (tmp_path / "s.yaml").write_text(SWEEP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SWEEP_ROOT", str(tmp_path / "disk"))
    monkeypatch.setattr("jobs.schedulers.local_scheduler.send_to_local", lambda *_, **__: None)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sweep", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        output = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, output.out, output.err

    return run


@pytest.mark.process
@pytest.mark.parametrize("refuse", [fill, make_read_only])
def test_submit_refuses_in_one_line_and_changes_nothing(
    refuse: Callable[[Path], None], disk: Path, sweep: Command, tmp_path: Path
) -> None:
    assert sweep("submit", "s.yaml", "--cluster", "local")[0] == 0
    before = sorted(disk.rglob("*"))
    refuse(disk)
    code, out, error = sweep("submit", "s.yaml", "lr=1e-3", "--cluster", "local")
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert error.startswith(f"error: '{disk}/s/local' cannot be written: ")
    assert [path for path in sorted(disk.rglob("*")) if not path.name.startswith((".", "filler"))] == [
        path for path in before if not path.name.startswith(".")
    ]
    code, _, error = sweep("submit", "s.yaml", "--cluster", "local", "--root", f"{disk}/new")
    assert (code, error.count("\n")) == (2, 1)


@pytest.mark.process
@pytest.mark.parametrize("refuse", [fill, make_read_only])
def test_commands_that_read_still_work(
    refuse: Callable[[Path], None], disk: Path, sweep: Command, tmp_path: Path
) -> None:
    sweep("submit", "s.yaml", "--cluster", "local")
    refuse(disk)
    for command in (["status"], ["status", "--json"], ["list"], ["plan", "s.yaml"]):
        code, out, error = sweep(*command)
        assert (code, error.count("never submitted")) == (0, int(command[0] == "status")), error
        assert out
    code, out, error = sweep("collect", "-o", str(tmp_path / "out.csv"))
    assert code == 0
    notes = [line for line in error.splitlines() if "could not be saved" in line]
    assert len(notes) == 1
    assert notes[0].startswith(f"note: what was seen could not be saved: {disk}/s/local/results.csv: ")
    assert (tmp_path / "out.csv").read_text().count("\n") == 3
    code, _, error = sweep("collect", "-o", str(disk / "out.csv"))
    assert code == 2
    assert error.splitlines()[-1].startswith(f"error: -o: '{disk}/out.csv' cannot be written: ")


def refuse_write(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.process
@pytest.mark.parametrize(
    ("place", "hint"),
    [
        ("jobs.submission.launch.prepare", "nothing was sent; free some space, then submit again"),
        (
            "jobs.schedulers.local_scheduler.send_to_local",
            "sweep status shows what was sent; free some space, then submit again",
        ),
    ],
)
def test_a_disk_that_fills_during_a_submission(
    place: str, hint: str, sweep: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, refuse_write)
    code, _, error = sweep("submit", "s.yaml", "--cluster", "local")
    message = f"'{tmp_path}/disk/s/local' cannot be written: No space left on device ({hint})"
    assert (code, error) == (2, f"error: {message}\n")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SweepFolder:
    """A sweep of one run on Slurm, of which sacct reports the end."""
    folder = SweepFolder(tmp_path / "s" / "site")
    run = {"run_id": "a", "allocation": "1x1", "world_size": 1, "point": {}, "train": {"model": "bert"}}
    prepare(folder, "name: s\n", {"sweep": "s", "cluster": "site", "runs": [run]}, {"a"})
    prepare_runs(folder, [run])
    ledger.record(folder.path, {"a": "7"}, 1.0)
    row = AccountingRow("7", state=State.COMPLETED, submit_s=1, start_s=2, end_s=3, elapsed_s=1, exit_code=0)
    (folder.run("a") / "summary.json").write_text('{"steps": 3}')
    monkeypatch.setattr(slurm_scheduler, "query_sacct", lambda *_, **__: (row,))
    return folder


@pytest.mark.process
@pytest.mark.parametrize("number", REFUSALS)
def test_an_answer_that_cannot_be_saved_is_one_note(
    number: int, folder: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full quota cannot be made here, so the refusal is a mock."""

    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    current = read_status(folder, {})
    assert [row.state for row in current.results] == ["COMPLETED"]
    (notice,) = current.notices
    assert notice.startswith(f"what was seen could not be saved: {folder.accounting_file}: {REFUSALS[number]}")
    assert not current.is_saved


@pytest.mark.process
def test_a_folder_of_the_owner_without_permission(folder: SweepFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write everywhere, so the claim of the accounting is a folder."""
    folder.accounting_file.with_name(".accounting.jsonl.claim").mkdir()
    current = read_status(folder, {})
    assert [row.state for row in current.results] == ["COMPLETED"]
    (notice,) = current.notices
    assert notice.startswith(f"what was seen could not be saved: {folder.accounting_file}: ")


@pytest.mark.process
@pytest.mark.parametrize("command", [["status"], ["status", "--json"], ["collect", "--csv"], ["list"]])
def test_an_output_that_is_full(command: list[str], folder: SweepFolder) -> None:
    """/dev/full refuses every write as a full disk does."""
    environ = {**os.environ, "SWEEP_ROOT": str(folder.path.parents[1]), "PATH": os.defpath}
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "jobs", *command], env=environ, stdout=full, stderr=subprocess.PIPE, text=True,
            check=False,
        )  # fmt: skip
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.splitlines()[-1] == "error: the output cannot be written: No space left on device"
    assert "Traceback" not in ended.stderr


def test_the_check_of_the_space_leaves_nothing(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path / "s" / "site")
    folder.create()
    folder.require_space(10**6)
    assert sorted(path.name for path in folder.path.iterdir()) == ["logs"]


def test_batch_scripts_are_private_in_open_logs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """submitit writes them with the umask; a folder of an earlier release may be open to others."""
    folder = SweepFolder(tmp_path / "s" / "site")
    folder.create()
    folder.logs.chmod(0o755)
    for name in ("7_submission.sh", "7_0_submitted.pkl", "70_submission.sh"):
        (folder.logs / name).touch(0o644)
    (group,) = make_plan("s", [RUN], Cluster("site", "slurm", ClusterProfile.model_validate({})), folder.path).groups
    _on_sent(folder, group, "7")
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in folder.logs.iterdir()}
    assert modes == {"7_submission.sh": "0o600", "7_0_submitted.pkl": "0o600", "70_submission.sh": "0o644"}
    assert capsys.readouterr().out == "  1x1: 1 run as job 7\n"
