"""One rank from environment to summary: the scripts under torchrun, failure records, threads."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from disttrain.config.train_config import TrainConfig
from disttrain.environment.rank_env import RankEnv
from disttrain.records.figures import summarise_fields
from disttrain.records.record_files import failure_name, from_json, metrics_name, read_records
from disttrain.records.record_types import (
    EndRecord,
    EvalRecord,
    StartRecord,
    StartupRecord,
    StepRecord,
    TelemetryRecord,
)
from disttrain.records.summary_types import Failure
from disttrain.run import default_output_dir, main, run
from tests.disttrain.ranks import from_files

if TYPE_CHECKING:
    from tests.disttrain.conftest import RunRanks

SCRIPTS = Path(__file__).resolve().parents[2] / "disttrain"
ONE_OF_TWO = {
    "RANK": "0",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "0",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "1",
}


def script(name: str, *flags: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, name, *flags],
        cwd=SCRIPTS,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=False,
    )


def flags_of(config: TrainConfig) -> list[str]:
    return [
        f"--{field.name}={json.dumps(value) if isinstance(value, dict) else value}"
        for field in dataclasses.fields(config)
        if (value := getattr(config, field.name)) != field.default and field.name != "model"
    ]


@pytest.mark.process
def test_torchrun_starts_bert_in_its_folder(bert_config: TrainConfig, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nnodes=1", "--nproc_per_node=2"]
    flags = flags_of(dataclasses.replace(bert_config, per_gpu_batch=1, max_steps=4))
    completed = subprocess.run(
        [*command, "bert.py", *flags, "--setup", "1_2"],
        cwd=SCRIPTS,
        env={**os.environ, "SWEEP_ROOT": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    (folder,) = (tmp_path / "torchrun").iterdir()
    assert folder.name.startswith("1x2-")
    assert f"results: {folder}" in completed.stdout
    assert "step 4/4  eval loss" in completed.stdout
    info = json.loads((folder / "run.json").read_text())
    assert (info["run_id"], info["allocation"], info["world_size"]) == (folder.name, "1x2", 2)
    assert info["train"]["per_gpu_batch"] == 1
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["steps"], summary["measured_steps"], summary["backend"]) == (4, 2, "gloo")
    startups = []
    for rank in range(2):
        start, *between, end = read_records(folder / metrics_name(rank))
        steps = [record for record in between if isinstance(record, StepRecord)]
        samples = [record for record in between if isinstance(record, TelemetryRecord)]
        startup, evaluation = (record for record in between if record not in steps and record not in samples)
        assert isinstance(start, StartRecord)
        assert isinstance(startup, StartupRecord)
        assert isinstance(evaluation, EvalRecord)
        assert isinstance(end, EndRecord)
        assert (start.rank, start.world_size, len(steps), end.steps) == (rank, 2, 4, 4)
        assert len(samples) >= 2  # one when training begins, one after it
        assert summary["process_memory_peak_mib"] > 0
        assert start.notices == tuple(summary["notices"])
        startups.append(startup)
    figures = summarise_fields(StartupRecord, startups)
    assert 0 < figures["import_s"] < figures["time_to_first_step_s"]
    assert {name: summary[name] for name in figures} == figures


@pytest.mark.process
def test_help_and_wrong_setup_skip_torch(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise AssertionError('torch was loaded')")
    hide_torch = {"PYTHONPATH": str(tmp_path), "SWEEP_ROOT": str(tmp_path)}
    help_page = script("vit.py", "--help", **hide_torch)
    assert help_page.returncode == 0
    assert "--per_gpu_batch" in help_page.stdout
    wrong = script("vit.py", "--setup=2_2", **hide_torch, **ONE_OF_TWO)
    message = "error: setup '2_2' says 2x2 (nodes x ranks per node), but the run has 1x2 "
    assert wrong.returncode == 2
    assert wrong.stderr.startswith(message)
    assert wrong.stderr.count("\n") == 1


@pytest.mark.process
def test_late_mistake_is_one_line_and_record(bert_config: TrainConfig, tmp_path: Path) -> None:
    """One rank without a launcher has a mistake that only the dataset shows."""
    flags = flags_of(dataclasses.replace(bert_config, label_column="stars", output_dir=str(tmp_path)))
    completed = script("bert.py", *flags)
    message = "label_column: column 'stars' is not in the dataset (it has: 'sentence', 'label')"
    assert (completed.returncode, completed.stderr) == (2, f"error: {message}\n")
    failure = from_json(Failure, json.loads((tmp_path / failure_name(0)).read_text()))
    assert (failure.rank, failure.error, failure.message, failure.user_error) == (0, "UserError", message, True)
    assert failure.traceback.startswith("Traceback")


def test_earliest_failure_is_the_cause(bert_config: TrainConfig, run_ranks: RunRanks) -> None:
    """Only rank 1 has a mistake; rank 0 fails soon after, because it has lost rank 1."""
    wrong = dataclasses.replace(bert_config, architecture={"hidden_sise": 3})
    start = time.monotonic()
    finished = run_ranks([bert_config, wrong], 2)
    assert time.monotonic() - start < 30
    assert finished.exit_codes == (1, 1)
    failures = [
        from_json(Failure, json.loads((finished.output_dir / failure_name(rank)).read_text())) for rank in range(2)
    ]
    first = min(failures, key=lambda failure: failure.time_s)
    assert (first.rank, first.error, first.user_error) == (1, "UserError", True)
    assert not failures[0].user_error
    assert not (finished.output_dir / "summary.json").exists()


def test_error_line_is_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[str] = []
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(write=writes.append))
    with pytest.raises(SystemExit) as exited:
        main("bert", ["--per_gpu_batch=0"])
    assert exited.value.code == 2
    (line,) = writes
    assert line.startswith("error: ")
    assert line.endswith("\n"), "ranks share stderr: no other text may come before the end of this line"


def test_old_results_are_removed(bert_config: TrainConfig, run_ranks: RunRanks, tmp_path: Path) -> None:
    config = dataclasses.replace(bert_config, max_steps=1)
    folder = tmp_path / "again"
    folder.mkdir()
    (folder / failure_name(0)).write_text("{}")
    (folder / "run.json").write_text('{"by": "a sweep"}')
    (folder / metrics_name(0)).write_text("old\n")
    finished = run_ranks(config, 1, output_dir=folder)
    assert finished.exit_codes == (0,)
    assert not (folder / failure_name(0)).exists()
    assert (folder / "run.json").read_text() == '{"by": "a sweep"}'
    assert len(finished.steps(0)) == 1


def test_losses_do_not_depend_on_workers(vit_config: TrainConfig, run_ranks: RunRanks) -> None:
    # Dropout is on: workers must not draw random numbers from its generator.
    architecture = {**(vit_config.architecture or {}), "hidden_dropout_prob": 0.1}
    config = dataclasses.replace(vit_config, max_steps=9, architecture=architecture)
    without_workers, with_workers = (
        run_ranks(dataclasses.replace(config, num_workers=workers), 1, target=functools.partial(from_files, run))
        for workers in (0, 2)
    )
    assert with_workers.losses() == without_workers.losses()
    assert with_workers.summary["eval_loss"] == without_workers.summary["eval_loss"]


def test_bf16_trains(vit_config: TrainConfig, run_ranks: RunRanks) -> None:
    config = dataclasses.replace(vit_config, max_steps=3, precision="bf16")
    assert run_ranks(config, 1).summary["steps"] == 3


def test_default_folder_has_the_run_id() -> None:
    config = TrainConfig(model="bert", lr=0.1)
    folder = default_output_dir(config, RankEnv(), {"SWEEP_ROOT": "/results"})
    assert folder.parent == Path("/results/torchrun")
    assert default_output_dir(config, RankEnv(), {}) == Path("runs/torchrun") / folder.name
