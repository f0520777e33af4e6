"""One rank of a stored run: python -m disttrain.run RUN_DIR, with neither jobs nor submitit."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from disttrain.records.lifecycle.attempt_log import Attempt, ResumePolicy, log_start, read_attempts
from disttrain.records.record_files import SUMMARY_NAME, failure_name
from disttrain.stored_run import main, read_stored_run

POLICY = ResumePolicy("slurm", 3600, 120, max_timeouts=1, max_preemptions=1, max_node_failures=1)
SCRIPT = {"flags": "--{key} {value}", "switches": [], "launcher": "ranks"}
ONE_RANK = {
    "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0", "SLURM_NNODES": "1", "SLURM_TASKS_PER_NODE": "1", "SLURM_STEP_NODELIST": "localhost",
}  # fmt: skip


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    write(tmp_path)
    return tmp_path


def write(run_dir: Path, command: str = "true", **changes: Any) -> None:
    """Writes the run.json of a command on one rank."""
    script = {**SCRIPT, "working_dir": str(run_dir)}
    run = {"nodes": 1, "gpus_per_node": 1, "train": {"command": command}, "script": script, **changes}
    (run_dir / "run.json").write_text(json.dumps(run))


def start(run_dir: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """The rank as srun starts it, where importing jobs or submitit fails."""
    hidden = run_dir / "hidden"
    hidden.mkdir(exist_ok=True)
    for name in ("jobs", "submitit", "torch", "numpy"):
        (hidden / f"{name}.py").write_text("raise ImportError('it must not be imported')\n")
    repository = Path(__file__).parents[2]
    return subprocess.run(
        [sys.executable, "-P", "-m", "disttrain.run", str(run_dir)],
        env={**os.environ, "PYTHONPATH": f"{hidden}:{repository}", **ONE_RANK, **environ},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.process
def test_the_rank_of_a_script_needs_no_jobs(run_dir: Path) -> None:
    write(run_dir, resume=dataclasses.asdict(POLICY))
    done = start(run_dir)
    assert (done.returncode, done.stderr) == (0, "")
    assert (run_dir / SUMMARY_NAME).exists()
    assert [attempt.job_id for attempt in read_attempts(run_dir)] == ["7"]


@pytest.mark.process
@pytest.mark.parametrize(("command", "status"), [("sh -c 'exit 5'", 5), ("sh -c 'kill -9 $$'", -9)])
def test_it_ends_as_the_script_does(command: str, status: int, run_dir: Path) -> None:
    write(run_dir, command)
    assert start(run_dir).returncode == status
    assert not (run_dir / SUMMARY_NAME).exists()


@pytest.mark.process
def test_a_script_that_stops_in_a_chain(run_dir: Path) -> None:
    write(run_dir, "sh -c 'exit 85'", resume=dataclasses.asdict(dataclasses.replace(POLICY, requeue="chain")))
    done = start(run_dir)
    assert done.returncode == 85
    message = json.loads((run_dir / failure_name(0)).read_text())["message"]
    assert message == (
        "request: the script ended with status 85; it does not resume by itself: its batch script submits no further"
        " job (sweep submit resumes it)"
    )


@pytest.fixture
def slurm_rank(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process as rank 0, whose signals are restored after the test."""
    import signal

    numbers = (signal.SIGTERM, signal.SIGCONT, signal.SIGUSR2, signal.SIGQUIT)
    before = {number: signal.getsignal(number) for number in numbers}
    for name, value in ONE_RANK.items():
        monkeypatch.setenv(name, value)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.process
@pytest.mark.parametrize(("restarts", "job_ids"), [("0", ["7"]), ("1", ["5", "7"])])
def test_a_job_by_hand_begins_with_new_budgets(
    restarts: str, job_ids: list[str], run_dir: Path, slurm_rank: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(run_dir, resume=dataclasses.asdict(POLICY))
    log_start(run_dir, Attempt("5", 0, 0.0))
    monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("disttrain.command_run.run_command", lambda *_, **__: None)
    main([str(run_dir)])
    assert [attempt.job_id for attempt in read_attempts(run_dir)] == job_ids


def test_what_run_json_says(run_dir: Path) -> None:
    write(run_dir, nodes=2, gpus_per_node=4, resume=dataclasses.asdict(POLICY))
    stored = read_stored_run(run_dir)
    assert (stored.nodes, stored.gpus_per_node, stored.resume, stored.chain) == (2, 4, POLICY, ())


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (None, "{folder!r} has no run.json"),
        ("{", "{folder}: run.json is damaged: "),
        ('{"nodes": 1}', "{folder}: run.json is damaged: gpus_per_node is None"),
        ('{"nodes": 1, "gpus_per_node": 0}', "{folder}: run.json is damaged: gpus_per_node is 0"),
        ('{"nodes": 1, "gpus_per_node": 1, "resume": {}}', "{folder}: run.json is damaged: "),
        ('{"nodes": 1, "gpus_per_node": 1}', "{folder}: run.json is damaged: it has no 'train'"),
    ],
)
def test_a_run_json_that_cannot_be_used(
    content: str | None, error: str, tmp_path: Path, slurm_rank: None, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path)])
    assert ended.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith(f"error: {error.format(folder=str(tmp_path))}")
    assert line.endswith("(sweep plan --scripts --plain writes it)\n")
    assert line.count("\n") == 1
    assert (tmp_path / failure_name(0)).exists()
