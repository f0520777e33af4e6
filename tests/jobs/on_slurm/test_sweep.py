"""One sweep of four allocations and both models on the real Slurm, compared with sacct's own output."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from jobs.storage import ledger
from tests.jobs.sweeping import (
    DATA,
    TINY_BERT,
    TINY_VIT,
    Sweeping,
    by_run,
    csv_texts,
    records,
    tiny_base,
    wait_for,
    write_sweep,
)

pytestmark = pytest.mark.slurm

ALLOCATIONS = ("1x1", "1x4", "2x2", "2x1")
# Differs from the cluster's time zone and from UTC, and does not need a time zone database.
TIME_ZONE = "JST-9"
FINISH_LIMIT_S = 240.0
STEPS = 20
# Larger initial weights, so that the loss changes from the first step on, and no dropout.
SHARP = {"initializer_range": 0.1, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@dataclass(frozen=True)
class SubmittedSweep:
    """The sweep after its end."""

    sweeping: Sweeping
    file: Path
    folder: Path
    exit_code: int
    output: str
    arrays: dict[str, str]  # the job id of each allocation, as printed by the command
    scripts: dict[str, str]  # the batch script of each allocation, as stored by Slurm

    def rows(self) -> dict[str, dict[str, Any]]:
        return by_run(self.sweeping.status(self.folder))

    def run_dir(self, run_id: str) -> Path:
        return self.folder / "runs" / run_id


@pytest.fixture(scope="module")
def submitted(slurm_cluster: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory) -> SubmittedSweep:
    """Submits the sweep with --wait, and reads the batch scripts from Slurm in the meantime."""
    folder = tmp_path_factory.mktemp("four")
    sweeping = Sweeping(folder, {**os.environ, **slurm_cluster, "TZ": TIME_ZONE})
    # One global batch, so that every allocation trains on the same examples: 4 on 1 rank, or 1 on each of 4 ranks.
    base = tiny_base(global_batch=4, max_steps=STEPS, lr=3e-3)
    del base["model"], base["dataset"], base["architecture"], base["per_gpu_batch"]
    file = write_sweep(
        folder / "four-shapes.yaml",
        allocations=list(ALLOCATIONS),
        base=base,
        zip={
            "model": ["bert", "vit"],
            "dataset": [str(DATA / "sst2"), str(DATA / "cifar10")],
            "image_size": [224, 32],
            "architecture": [{**fields, **SHARP} for fields in (TINY_BERT, TINY_VIT)],
        },
    )
    command = sweeping.command("submit", file, "--wait", "--poll", "1")
    with subprocess.Popen(
        command, cwd=folder, env=sweeping.environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        arrays: dict[str, str] = {}
        scripts: dict[str, str] = {}
        try:
            assert process.stdout is not None
            head = ""
            while len(arrays) < len(ALLOCATIONS):
                line = process.stdout.readline()
                assert line, head
                head += line
                if match := re.fullmatch(r"  (\dx\d): 2 runs as job (\d+)\n", line):
                    arrays[match[1]] = match[2]
                    scripts[match[1]] = sweeping.outside("scontrol", "write", "batch_script", match[2], "-")
            rest, _ = process.communicate(timeout=FINISH_LIMIT_S)
        finally:
            process.kill()
            subprocess.run(["scancel", *arrays.values()], env=sweeping.environ, check=False)
    return SubmittedSweep(
        sweeping, file, folder / "runs" / "four-shapes" / "two_nodes", process.returncode, head + rest, arrays, scripts
    )


@dataclass(frozen=True)
class SacctJob:
    """One job in sacct's output, read without the code under test."""

    state: str
    exit_code: int
    elapsed_s: int
    gpus: int
    node_list: str
    max_rss_bytes: float
    submit_s: float
    start_s: float
    end_s: float


def read_sacct(sweeping: Sweeping, job_ids: list[str]) -> dict[str, SacctJob]:
    """The jobs in sacct's default table, whose times are clock times of TIME_ZONE."""
    fields = "JobID,State,ExitCode,Elapsed,AllocTRES,NodeList,MaxRSS,Submit,Start,End"
    text = sweeping.outside("sacct", "-n", "-P", "-j", ",".join(job_ids), "-o", fields)
    lines = [dict(zip(fields.split(","), line.split("|"), strict=True)) for line in text.splitlines()]
    steps = [line for line in lines if "." in line["JobID"]]
    jobs = {}
    for line in lines:
        if line in steps:
            continue
        sizes = [step["MaxRSS"] for step in steps if step["JobID"].split(".")[0] == line["JobID"]]
        hours, minutes, seconds = map(int, line["Elapsed"].split(":"))
        jobs[line["JobID"]] = SacctJob(
            state=line["State"],
            exit_code=int(line["ExitCode"].split(":")[0]),
            elapsed_s=hours * 3600 + minutes * 60 + seconds,
            gpus=int(re.findall(r"gres/gpu=(\d+)", line["AllocTRES"])[0]),
            node_list=line["NodeList"],
            max_rss_bytes=max(
                float(size.rstrip("KMG") or 0) * {"K": 2**10, "M": 2**20, "G": 2**30}.get(size[-1:], 1)
                for size in sizes
            ),
            **{f"{name.lower()}_s": _clock(line[name]) for name in ("Submit", "Start", "End")},
        )
    return jobs


def _clock(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=timezone(timedelta(hours=9))).timestamp()


def _utc(text: str) -> float:
    assert text.endswith("Z")
    return datetime.fromisoformat(text).timestamp()


def test_runs_all_allocations_and_models(submitted: SubmittedSweep) -> None:
    assert submitted.exit_code == 0, submitted.output
    rows = submitted.rows().values()
    assert sorted((row["allocation"], row["model"]) for row in rows) == sorted(
        (allocation, model) for allocation in ALLOCATIONS for model in ("bert", "vit")
    )
    for row in rows:
        nodes, gpus = map(int, row["allocation"].split("x"))
        assert (row["state"], row["exit_code"], row["reason"], row["attempts"]) == ("COMPLETED", 0, None, 1)
        assert (row["world_size"], row["steps"], row["comparable"]) == (nodes * gpus, STEPS, True)
        assert row["backend"] == ("gloo" if row["world_size"] > 1 else None)
        assert all(row[name] is not None for name in ("samples_per_s", "forward_ms", "train_loss", "eval_accuracy"))
        # The output reports every change of state once, and the last change of each run is this one.
        assert submitted.output.count(f"{row['run_id']} ({row['label']})  COMPLETED") == 1


def test_slurm_has_the_printed_script(submitted: SubmittedSweep) -> None:
    printed = submitted.sweeping.run("plan", submitted.file, "--scripts").stdout
    assert "\n".join(submitted.scripts[allocation] for allocation in ALLOCATIONS) == printed
    for allocation in ALLOCATIONS:
        nodes, gpus = allocation.split("x")
        lines = submitted.scripts[allocation].splitlines()
        wanted = ["--array=0-1%2", f"--nodes={nodes}", f"--ntasks-per-node={gpus}", f"--gpus-per-node=h100:{gpus}"]
        assert {f"#SBATCH {option}" for option in wanted} <= set(lines)


def test_each_allocation_is_one_array(submitted: SubmittedSweep) -> None:
    rows = submitted.rows().values()
    for allocation, array in submitted.arrays.items():
        job_ids = [row["job_id"] for row in rows if row["allocation"] == allocation]
        assert sorted(job_ids) == [f"{array}_0", f"{array}_1"]


@pytest.mark.parametrize("output", ["status", "results.csv"])
def test_agrees_with_sacct(submitted: SubmittedSweep, output: str) -> None:
    rows = submitted.rows()
    if output == "results.csv":
        assert "label" in submitted.sweeping.run("collect", submitted.folder).stdout
        table = list(csv.DictReader(io.StringIO((submitted.folder / "results.csv").read_text())))
        scalars = list(map(csv_texts, rows.values()))
        assert [{name: line[name] for name in scalars[0]} for line in table] == scalars
        rows = by_run(table)
    sacct_jobs = read_sacct(submitted.sweeping, list(submitted.arrays.values()))
    assert set(sacct_jobs) == {row["job_id"] for row in rows.values()}
    for row in rows.values():
        expected = sacct_jobs[row["job_id"]]
        assert (row["state"], int(row["exit_code"]), row["node_list"]) == (
            expected.state,
            expected.exit_code,
            expected.node_list,
        )
        assert int(row["elapsed_s"]) == expected.elapsed_s == expected.end_s - expected.start_s
        assert int(row["queue_wait_s"]) == expected.start_s - expected.submit_s
        times = [_utc(row[name]) for name in ("submit_time", "start_time", "end_time")]
        assert times == [expected.submit_s, expected.start_s, expected.end_s]
        assert expected.gpus == int(row["world_size"])
        assert float(row["gpu_hours"]) == pytest.approx(expected.gpus * expected.elapsed_s / 3600, abs=1e-6)
        assert int(row["max_rss_bytes"]) == pytest.approx(expected.max_rss_bytes, rel=0.01)
        assert expected.max_rss_bytes > 50e6  # the memory of a rank, not of the batch shell


def test_ranks_run_on_their_nodes(submitted: SubmittedSweep) -> None:
    hosts_of = {"1x4": None, "2x2": ["node1", "node1", "node2", "node2"], "2x1": ["node1", "node2"]}
    for row in submitted.rows().values():
        starts = [records(submitted.run_dir(row["run_id"]), rank, "start")[0] for rank in range(row["world_size"])]
        hosts = [start["host"] for start in starts]
        assert hosts == row["hosts"] == (hosts_of.get(row["allocation"]) or [row["node_list"]] * len(hosts))
        nodes, per_node = map(int, row["allocation"].split("x"))
        places = [(start["rank"], start["node_rank"], start["local_rank"]) for start in starts]
        assert places == [(rank, rank // per_node, rank % per_node) for rank in range(nodes * per_node)]
        assert {start["job_id"] for start in starts} == {row["job_id"]}


@pytest.mark.parametrize("model", ["bert", "vit"])
def test_every_allocation_takes_the_same_steps(submitted: SubmittedSweep, model: str) -> None:
    losses = {}
    for row in submitted.rows().values():
        if row["model"] == model:
            ranks = [records(submitted.run_dir(row["run_id"]), rank, "step") for rank in range(row["world_size"])]
            assert [sum(step["examples"] for step in steps) for steps in zip(*ranks, strict=True)] == [4] * STEPS
            losses[row["allocation"]] = [
                sum(step["loss"] * step["examples"] for step in steps) / 4 for steps in zip(*ranks, strict=True)
            ]
    for allocation in ALLOCATIONS:
        assert losses[allocation] == pytest.approx(losses["1x1"], rel=1e-5)
    assert max(losses["1x1"]) - min(losses["1x1"]) > 0.1


def test_second_submit_submits_nothing(submitted: SubmittedSweep) -> None:
    before = (submitted.folder / "ledger.jsonl").read_bytes()
    output = submitted.sweeping.run("submit", submitted.file).stdout
    assert output.startswith("four-shapes on two_nodes: submitting 0 of 8 runs (8 done, 0 queued or running)\n")
    assert "as job" not in output
    assert (submitted.folder / "ledger.jsonl").read_bytes() == before
    assert {row["state"] for row in submitted.rows().values()} == {"COMPLETED"}


def test_saved_accounting_replaces_sacct(submitted: SubmittedSweep, tmp_path: Path) -> None:
    rows = submitted.rows()
    copy = shutil.copytree(submitted.folder, tmp_path / "four-shapes" / "two_nodes")
    # A machine without Slurm: the folder on PATH is empty.
    bare = tmp_path / "bin"
    bare.mkdir()
    elsewhere = Sweeping(tmp_path, {**os.environ, "PATH": str(bare)})
    assert by_run(elsewhere.status(copy)) == rows
    notices = elsewhere.run("status", copy).stderr
    missing = "note: sacct is not installed here, or not on PATH; the states are the last known ones"
    assert re.fullmatch(rf"{missing}, and its last answer is \d+ (s|min) old\n", notices)
    saved = [json.loads(line) for line in (copy / "accounting.jsonl").read_text().splitlines()]
    ended = {row["job_id"]: row["state"] for row in saved if row["end_s"] is not None}
    assert ended == {row["job_id"]: "COMPLETED" for row in rows.values()}


def test_run_missing_in_sacct_is_pending(submitted: SubmittedSweep, tmp_path: Path) -> None:
    copy = shutil.copytree(submitted.folder, tmp_path / "four-shapes" / "two_nodes")
    again = next(iter(submitted.rows()))
    ledger.record(copy, {again: "99999999"}, datetime.now().timestamp())
    rows = by_run(submitted.sweeping.status(copy))
    assert (rows[again]["state"], rows[again]["exit_code"], rows[again]["job_id"]) == ("PENDING", None, "99999999")
    assert [row["state"] for run_id, row in rows.items() if run_id != again] == ["COMPLETED"] * 7
    assert "PENDING" in submitted.sweeping.run("status", copy).stdout


def test_queue_is_empty_at_the_end(submitted: SubmittedSweep) -> None:
    def is_empty() -> bool:
        return not submitted.sweeping.outside("squeue", "-h", "--name=four-shapes", "-t", "PD,R,CG")

    wait_for(is_empty, "empty queue", limit_s=10)


def test_forgets_points_of_every_submission(slurm_cluster: Mapping[str, str], tmp_path: Path) -> None:
    """A value leaves the file: its points with and without --set are dropped, and forget removes them."""
    sweeping = Sweeping(tmp_path, {**os.environ, **slurm_cluster})
    file = tmp_path / f"forgotten-{os.getpid()}.yaml"

    def write(seeds: list[int], **slurm: Any) -> None:
        write_sweep(file, allocations=["1x1"], base=tiny_base(), seeds=seeds, slurm=slurm)

    write([0, 1])
    sweeping.run("submit", file, "--wait", "--poll", "1", timeout_s=FINISH_LIMIT_S)
    sweeping.run("submit", file, "--set", "weight_decay=0.1", "--wait", "--poll", "1", timeout_s=FINISH_LIMIT_S)
    jobs = {row["run_id"]: row["job_id"] for row in sweeping.status()}
    gone = {row["run_id"] for row in sweeping.status() if row["seed"] == 1}
    assert (len(jobs), len(gone)) == (4, 2)
    write([0])
    noted = sweeping.run("submit", file).stderr
    assert noted == "note: 2 runs are no longer in the sweep file; sweep forget removes them\n"
    folder = tmp_path / "runs" / file.stem / "two_nodes"
    assert {run.name for run in (folder / "runs").iterdir()} == set(jobs)
    assert sweeping.run("forget", "--yes").stdout == "removed 2 runs\n"
    assert [row["state"] for row in sweeping.status()] == ["COMPLETED"] * 2
    assert {run.name for run in (folder / "runs").iterdir()} == set(jobs) - gone
    # The other task of each array keeps its logs, and the script that the tasks share.
    left = [job_id for run_id, job_id in jobs.items() if run_id not in gone]
    patterns = [*(f"{job_id}_" for job_id in left), *(f"{job_id.split('_')[0]}_submission.sh" for job_id in left)]
    names = [path.name for path in (folder / "logs").iterdir() if not path.is_symlink()]
    assert [name for name in names if not name.startswith(tuple(patterns))] == []
    assert {name for name in names if name.endswith("_submitted.pkl")} == {f"{job_id}_submitted.pkl" for job_id in left}
    assert {path.resolve().name for path in (folder / "logs").glob(".*.sh")} == set(patterns[2:])

    # A forgotten point is submitted again. While its job is queued, it cannot be removed.
    write([0, 1], sbatch={"hold": True})
    try:
        again = sweeping.run("submit", file).stdout.splitlines()[0]
        assert again.endswith("submitting 1 of 2 runs (1 done, 0 queued or running)")
        write([0])
        sweeping.run("submit", file)
        refused = sweeping.run("forget", "--yes", exit_code=2).stderr
        assert refused.startswith("error: runs that have not ended cannot be removed: 1x1-")
        assert "PENDING" in refused
    finally:
        sweeping.outside("scancel", f"--name={file.stem}")
