"""What the release before wrote is read: a queued job, a sweep's folder, records, a summary and a checkpoint.

tests/make_former_release.py made the files with that release's code.
"""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest

from disttrain.config.train_config import TrainConfig
from disttrain.environment.rank_env import RankEnv
from disttrain.errors import UserError
from disttrain.records.record_files import metrics_name, read_records
from disttrain.records.record_types import StepRecord
from disttrain.run import run
from jobs import cli
from jobs.entry import RankTask

FORMER = Path(__file__).parent / "golden" / "former_release"


@pytest.fixture
def former(tmp_path: Path) -> Path:
    shutil.copytree(FORMER, tmp_path / "former")
    return tmp_path / "former"


def test_a_queued_job_is_read(former: Path) -> None:
    job = pickle.loads((former / "queued_job.pkl").read_bytes())
    assert isinstance(job.function, RankTask)
    assert job.function.nodes in (1, 2)
    assert job.function.gpus_per_node == 1


def test_a_run_file_is_read(former: Path) -> None:
    paths = list(former.glob("root/former/local/runs/*/run.json"))
    assert len(paths) == 2
    for path in paths:
        assert TrainConfig(**json.loads(path.read_text())["train"]).max_steps == 12


def test_a_sweep_folder_is_read(
    former: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["sweep", "collect", str(former / "root" / "former" / "local"), "--json"]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    alone, pair = json.loads(capsys.readouterr().out)["runs"]
    assert (alone["state"], pair["state"]) == ("COMPLETED", "COMPLETED")
    assert (alone["exposed_comm_ms"], alone["overlapped_comm_ms"]) == (0.0, 0.0)
    assert pair["exposed_comm_ms"] > 0.0
    assert pair["exposed_comm_p95_ms"] >= pair["exposed_comm_ms"]


def test_records_are_read(former: Path) -> None:
    paths = list(former.glob("root/former/local/runs/*/metrics-*.jsonl"))
    assert len(paths) == 3
    for path in paths:
        steps = [record for record in read_records(path) if isinstance(record, StepRecord)]
        assert len(steps) == 12
        assert all(step.exposed_comm_ms is not None and step.overlapped_comm_ms is not None for step in steps)


def test_a_checkpoint_of_another_recipe_is_refused(former: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of the data has changed: the run would repeat examples of its epoch and lose others."""
    monkeypatch.chdir(former)
    monkeypatch.setenv("HF_HOME", str(former / "hf"))
    written = json.loads((former / "killed" / "run.json").read_text())["train"]
    before = (former / "killed" / metrics_name(0)).read_bytes()
    with pytest.raises(UserError) as caught:
        run(TrainConfig(**written), RankEnv(), former / "killed")
    folder = former / "killed" / "checkpoints"
    assert str(caught.value) == (
        f"{str(folder)!r} holds checkpoints of another release: its order of data and its random numbers"
        " (recipe version 1) differ from those of this release (2)"
        " (finish the run with that release, or remove the folder to start from the beginning)"
    )
    assert (former / "killed" / metrics_name(0)).read_bytes() == before
    shutil.rmtree(folder)
    assert run(TrainConfig(**written), RankEnv(), former / "killed")["steps"] == 12
