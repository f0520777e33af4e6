"""Sweeps under the local executor and in the debugger, started with the user's commands on this machine's cores."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.jobs.sweeping import (
    END_LIMIT_S,
    TINY_BERT,
    Sweeping,
    csv_texts,
    processes_with,
    records,
    tiny_base,
    wait_for,
    without_lists,
    write_sweep,
)

pytestmark = pytest.mark.process

SLURM_COLUMNS = ("job_id", "attempts", "queue_wait_s", "gpu_hours", "node_list", "max_rss_bytes")
GOOD, RAISES, KILLED = 0, 1, 2  # the seeds of the runs
RUN_LIMIT_S = 120.0
MARK = "TEST_OF_LOCAL"


def sweeping_in(folder: Path) -> Sweeping:
    """Sweeps without Slurm or user settings, with temporary files of their own."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SWEEP_"))}
    return Sweeping(folder, {**environ, "TMPDIR": str(folder), MARK: str(folder), "CUDA_VISIBLE_DEVICES": ""})


def test_folds_two_nodes_onto_one(tmp_path: Path) -> None:
    sweeping = sweeping_in(tmp_path)
    file = write_sweep(tmp_path / "folded.yaml", allocations=["2x2"], base=tiny_base())
    # Variables of a surrounding job or launcher must not affect the run.
    sweeping.environ |= {"RANK": "3", "LOCAL_RANK": "3", "WORLD_SIZE": "9", "MASTER_ADDR": "10.9.9.9"}
    sweeping.environ |= {"SLURM_JOB_ID": "7"}
    done = sweeping.run("submit", file, "--cluster", "local", "--wait", timeout_s=RUN_LIMIT_S)
    assert "* not comparable: ranks shared a GPU, or all nodes were this one host" in done.stdout
    (row,) = sweeping.status()
    assert (row["state"], row["exit_code"], row["world_size"], row["steps"]) == ("COMPLETED", 0, 4, 4)
    assert (row["backend"], row["comparable"]) == ("gloo", False)
    assert {name: row[name] for name in SLURM_COLUMNS} == dict.fromkeys(SLURM_COLUMNS)
    assert row["elapsed_s"] > 0
    assert row["start_time"] <= row["end_time"]
    run_dir = tmp_path / "runs" / "folded" / "local" / "runs" / row["run_id"]
    starts = [records(run_dir, rank, "start")[0] for rank in range(4)]
    assert [(start["node_rank"], start["local_rank"], start["folded"]) for start in starts] == [
        (0, 0, True), (0, 1, True), (1, 0, True), (1, 1, True)
    ]  # fmt: skip
    assert len({start["pid"] for start in starts}) == 4
    assert len({start["host"] for start in starts}) == 1

    collected = sweeping.run("collect", "--csv").stdout
    assert collected == (tmp_path / "runs" / "folded" / "local" / "results.csv").read_text()
    (line,) = csv.DictReader(io.StringIO(collected))
    assert {name: line[name] for name in without_lists(row)} == csv_texts(row)
    assert line["hosts"].split(",") == row["hosts"]
    second = sweeping.run("submit", file, "--cluster", "local").stdout
    assert second.startswith("folded on local: submitting 0 of 1 run (1 done, 0 queued or running)\n")
    assert not processes_with(f"{MARK}={tmp_path}")


def test_figures_of_a_run_with_detailed_timing(tmp_path: Path) -> None:
    sweeping = sweeping_in(tmp_path)
    # 3 MB of gradients make several buckets: DDP's first bucket takes up to 1 MiB, regardless of the cap.
    size = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4}
    base = tiny_base(detailed_timing=True, bucket_cap_mb=0.5, architecture={**TINY_BERT, **size})
    file = write_sweep(tmp_path / "drawn.yaml", allocations=["1x1", "2x1"], base=base)
    sweeping.run("submit", file, "--cluster", "local", "--wait", timeout_s=RUN_LIMIT_S)
    (run_id,) = (row["run_id"] for row in sweeping.status() if row["world_size"] == 2)
    drawn = tmp_path / "runs" / "drawn" / "local" / "figures" / f"timeline-{run_id}.svg"
    assert sweeping.run("figures").stdout == f"wrote {drawn}\n"
    for rank in range(2):
        for name in ("forward", "backward-compute", "exposed", "bucket1-hidden"):
            assert f'id="rank{rank}-{name}"' in drawn.read_text()
    # Step 1 is a warm-up step, so the default step is another one.
    sweeping.run("figures", "drawn", "--run", run_id, "--step", "1", "-o", tmp_path / "mine")
    assert (tmp_path / "mine" / drawn.name).read_text() != drawn.read_text()
    missing = sweeping.run("figures", "--step", "9", exit_code=2)
    assert missing.stderr == f"error: --step: run {run_id} (2x1) has no step 9 (it has steps 1 to 4)\n"


@dataclass(frozen=True)
class Ended:
    """A sweep in the background with one good run and two runs with a failed rank, after its end."""

    sweeping: Sweeping
    folder: Path
    submit_s: float  # the duration of the command
    seen: list[tuple[str, ...]]  # every set of states that status reported, in order
    failed_s: dict[int, float]  # the time of the rank's failure by seed
    ended_s: dict[int, float]  # the time of the end of the last process by seed
    rows: dict[int, dict[str, Any]]  # the rows of the status by seed


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    folder = tmp_path_factory.mktemp("background")
    sweeping = sweeping_in(folder)
    file = write_sweep(
        folder / "background.yaml",
        allocations=["1x1"],
        base=tiny_base(max_steps=30, seed=GOOD),
        include=[{"allocation": "2x1", "max_steps": 10_000_000, "seed": seed} for seed in (RAISES, KILLED)],
    )
    start_s = time.monotonic()
    sweeping.run("submit", file, "--cluster", "local", "--max-parallel", "2")
    submit_s = time.monotonic() - start_s
    try:
        return _follow(sweeping, folder / "runs" / "background" / "local", submit_s)
    finally:
        for pid in processes_with(f"{MARK}={folder}"):
            os.kill(pid, signal.SIGKILL)


def _follow(sweeping: Sweeping, folder: Path, submit_s: float) -> Ended:
    rows = {row["seed"]: row for row in sweeping.status()}
    run_dirs = {seed: folder / "runs" / row["run_id"] for seed, row in rows.items()}
    # The first run blocks the queue, so this run has not started.
    (run_dirs[RAISES] / "metrics-rank00001.jsonl").mkdir()
    seen: list[tuple[str, ...]] = []
    failed_s: dict[int, float] = {}
    ended_s: dict[int, float] = {}

    def all_ended() -> bool:
        if KILLED not in failed_s and records(run_dirs[KILLED], 1, "step"):
            (start,) = records(run_dirs[KILLED], 1, "start")
            failed_s[KILLED] = time.time()
            os.kill(start["pid"], signal.SIGKILL)
        failure = run_dirs[RAISES] / "failure-rank00001.json"
        if failure.exists():
            failed_s[RAISES] = json.loads(failure.read_text())["time_s"]
        for seed in failed_s.keys() - ended_s.keys():
            if not _ranks_of(sweeping, folder, run_dirs[seed].name):
                ended_s[seed] = time.time()
        states = tuple(row["state"] for row in sweeping.status())
        if seen[-1:] != [states]:
            seen.append(states)
        return not {"PENDING", "RUNNING"} & set(states)

    wait_for(all_ended, "end of all runs", limit_s=RUN_LIMIT_S)
    ended_s = {seed: ended_s.get(seed, time.time()) for seed in failed_s}
    return Ended(sweeping, folder, submit_s, seen, failed_s, ended_s, {row["seed"]: row for row in sweeping.status()})


def _ranks_of(sweeping: Sweeping, folder: Path, run_id: str) -> list[int]:
    """The living processes of a run, identified by the log folder of its job."""
    lines = (folder / "ledger.jsonl").read_text().splitlines()
    job_ids = {run: job for line in lines for run, job in json.loads(line).get("jobs", {}).items()}
    logs = str(folder / "logs" / job_ids[run_id])
    return [pid for pid, command in processes_with(f"{MARK}={sweeping.folder}").items() if logs in command]


def test_submit_returns_before_the_runs_end(ended: Ended) -> None:
    assert ended.submit_s < 10
    assert ended.seen[0][1:] == ("PENDING", "PENDING")
    assert ("RUNNING", "PENDING", "PENDING") in ended.seen
    assert ended.seen[-1] == ("COMPLETED", "FAILED", "FAILED")
    # With --max-parallel 2 a run of two ranks never shares the machine with another run.
    assert all(states.count("RUNNING") <= 1 for states in ended.seen)
    assert ended.rows[GOOD]["samples_per_s"] is not None
    assert ended.rows[GOOD]["comparable"] is True


@pytest.mark.parametrize("seed", [RAISES, KILLED], ids=["raises", "killed"])
def test_failed_rank_ends_its_run_within_30_s(ended: Ended, seed: int) -> None:
    row = ended.rows[seed]
    assert datetime.fromisoformat(row["end_time"]).timestamp() - ended.failed_s[seed] < END_LIMIT_S
    assert ended.ended_s[seed] - ended.failed_s[seed] < END_LIMIT_S
    assert row["exit_code"] == 1
    assert row["samples_per_s"] is None


def test_status_names_reason_traceback_and_log(ended: Ended) -> None:
    row = ended.rows[RAISES]
    run_dir = ended.folder / "runs" / row["run_id"]
    host = records(ended.folder / "runs" / ended.rows[GOOD]["run_id"], 0, "start")[0]["host"]
    # The new file could not replace the directory.
    assert row["reason"].startswith(f"rank 1 on {host}: IsADirectoryError: [Errno 21] Is a directory: ")
    assert row["reason"].endswith(f"-> '{run_dir}/metrics-rank00001.jsonl'")
    lines = ended.sweeping.run("status", "--check", exit_code=1).stdout.splitlines()
    index = lines.index(f"{row['run_id']} ({row['label']})  FAILED: {row['reason']}")
    assert lines[index + 1] == f"    traceback in {run_dir / 'failure-rank00001.json'}"
    log = Path(lines[index + 2].removeprefix("    log in "))
    assert "IsADirectoryError" in log.read_text()
    assert log.name.endswith("_1_log.err")
    assert ended.rows[KILLED]["reason"]


def test_logs_print_the_rank_that_failed(ended: Ended) -> None:
    run_id = ended.rows[RAISES]["run_id"]
    for options in ([], ["--follow"]):
        printed = ended.sweeping.run("logs", run_id, *options)
        assert "_1_log.err <==\n" in printed.stdout
        assert "IsADirectoryError" in printed.stdout
        assert printed.stderr == ""


def test_debug_repeats_a_run(ended: Ended) -> None:
    run_id = ended.rows[GOOD]["run_id"]
    before = {path: path.stat().st_mtime_ns for path in ended.folder.rglob("*")}
    lines = ended.sweeping.run("debug", run_id, timeout_s=RUN_LIMIT_S).stdout.splitlines()
    first, scratch = lines[0].split(" as one rank, in ")
    assert first == f"debug: {run_id} ({ended.rows[GOOD]['label']})"
    assert not lines[1].startswith("  ")  # it is the same machine, with the same packages
    losses = [json.loads((run / "summary.json").read_text())["train_loss"] for run in before if run.name == run_id]
    assert json.loads((Path(scratch) / "summary.json").read_text())["train_loss"] == pytest.approx(losses[0])
    assert {path: path.stat().st_mtime_ns for path in ended.folder.rglob("*")} == before


def test_no_process_remains(ended: Ended) -> None:
    wait_for(lambda: not processes_with(f"{MARK}={ended.sweeping.folder}"), "end of the queue", limit_s=10)


@pytest.fixture(scope="module")
def debugged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sweeping, Path]:
    sweeping = sweeping_in(tmp_path_factory.mktemp("debug"))
    return sweeping, write_sweep(sweeping.folder / "debugged.yaml", allocations=["2x2"], base=tiny_base())


def output_of(command: list[str], lines: list[str], sweeping: Sweeping, exit_code: int) -> str:
    """The output of a command with these lines as its input."""
    done = subprocess.run(
        command, cwd=sweeping.folder, env=sweeping.environ, input="\n".join(lines) + "\n", text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=RUN_LIMIT_S, check=False,
    )  # fmt: skip
    assert done.returncode == exit_code, done.stdout
    return done.stdout


def test_breakpoint_in_the_debugger(debugged: tuple[Sweeping, Path]) -> None:
    sweeping, file = debugged
    command = [sys.executable, "-m", "pdb", "-m", "jobs", "submit", str(file), "--cluster", "debug"]
    stop = ["import disttrain.training.evaluation", "b disttrain.training.evaluation.evaluate", "c"]
    output = output_of(
        command, [*stop, "p group.env.allocation, group.env.launcher, len(examples)", "c", "q"], sweeping, 0
    )
    # A 2x2 run as one rank in the same process.
    assert "debug: 1 run as one rank each, in " in output
    assert "(Pdb) ('1x1', 'single', 40)\n" in output
    assert "(Pdb) step 4/4  eval loss " in output
    scratch = Path(output.partition("as one rank each, in ")[2].splitlines()[0])
    assert len(list(scratch.glob("runs/2x2-*/summary.json"))) == 1
    # A later status must not find a run of the sweep.
    assert not (sweeping.folder / "runs").exists()


def test_error_opens_pdb(debugged: tuple[Sweeping, Path]) -> None:
    sweeping, file = debugged
    command = sweeping.command("submit", file, "--cluster", "debug", "--set", "text_column=nowhere")
    output = output_of(command, ["p name + '?'", "q"], sweeping, 2)
    assert "(Pdb) 'nowhere?'\n" in output
    error = "error: text_column: column 'nowhere' is not in the dataset (it has: 'sentence', 'label')"
    assert output.splitlines()[-1] == f"(Pdb) {error}"


def test_a_smoke_run_goes_first(tmp_path: Path) -> None:
    """While it fails, no run starts. The mistake is then corrected."""
    sweeping = sweeping_in(tmp_path)
    (tmp_path / "train.py").write_text("import sys\nif '2' in sys.argv: raise ValueError('boom')\n")
    command = f"{sys.executable} train.py"
    file = write_sweep(
        tmp_path / "smoked.yaml", allocations=["1x1"], command=command, smoke="--steps 2", axes={"lr": [0.1, 0.3]}
    )
    options = (file, "--cluster", "local", "--smoke")
    failed = sweeping.run("submit", *options, "--wait", exit_code=1, timeout_s=RUN_LIMIT_S)
    assert "smoke runs first:\n" in failed.stdout
    assert "not sent: 2 runs of 1x1\n" in failed.stderr
    rows = sweeping.status()
    assert [(row["state"], row["attempts"]) for row in rows] == [("CANCELLED", None)] * 2
    assert rows[0]["reason"].startswith("the smoke run of 1x1 failed: rank 0 on "), rows[0]
    assert rows[0]["reason"].endswith("ValueError: boom")
    hint = sweeping.run("logs", rows[1]["run_id"], exit_code=2).stderr
    assert f"sweep logs {rows[0]['run_id']} --sweep {tmp_path / 'runs' / 'smoked' / 'local' / 'smoke'}" in hint
    logged = sweeping.run("logs", rows[0]["run_id"], "--sweep", tmp_path / "runs" / "smoked" / "local" / "smoke")
    assert "ValueError: boom" in logged.stdout
    (tmp_path / "train.py").write_text("import sys\nprint(sys.argv)\n")
    sweeping.run("submit", *options)
    wait_for(lambda: {row["state"] for row in sweeping.status()} == {"COMPLETED"}, "end", limit_s=RUN_LIMIT_S)
    assert "'--steps'" not in sweeping.run("logs", rows[0]["run_id"]).stdout
