"""One sweep of all four shapes and both models on the real Slurm, held against what sacct says when asked by hand."""

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
from tests.jobs.sweeping import DATA, TINY_BERT, TINY_VIT, Sweeping, by_run, records, tiny_base, wait_for, write_sweep

pytestmark = pytest.mark.slurm

SHAPES = ("1x1", "1x4", "2x2", "2x1")
# Neither the cluster's time zone nor UTC, and needs no time zone database.
TIME_ZONE = "JST-9"
FINISH_LIMIT_S = 240.0
STEPS = 20
# Weights that matter from the first step on, and no noise.
SHARP = {"initializer_range": 0.1, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@dataclass(frozen=True)
class Sent:
    """The sweep, once it is over."""

    sweeping: Sweeping
    file: Path
    folder: Path
    exit_code: int
    output: str
    arrays: dict[str, str]  # allocation to job id, as the command said
    scripts: dict[str, str]  # allocation to what Slurm held of it

    def rows(self) -> dict[str, dict[str, Any]]:
        return by_run(self.sweeping.status(self.folder))

    def run_dir(self, run_id: str) -> Path:
        return self.folder / "runs" / run_id


@pytest.fixture(scope="module")
def sent(slurm_cluster: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory) -> Sent:
    """Sends the sweep with --wait, and asks Slurm for the batch scripts meanwhile."""
    folder = tmp_path_factory.mktemp("four")
    sweeping = Sweeping(folder, {**os.environ, **slurm_cluster, "TZ": TIME_ZONE})
    # One global batch, so that every shape trains on the same examples: 4 of them on 1 rank, or 1 on each of 4.
    base = tiny_base(global_batch=4, max_steps=STEPS, lr=3e-3)
    del base["model"], base["dataset"], base["architecture"], base["per_gpu_batch"]
    file = write_sweep(
        folder / "four-shapes.yaml",
        allocations=list(SHAPES),
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
            while len(arrays) < len(SHAPES):
                line = process.stdout.readline()
                assert line, head
                head += line
                if said := re.fullmatch(r"  (\dx\d): 2 runs as job (\d+)\n", line):
                    arrays[said[1]] = said[2]
                    scripts[said[1]] = sweeping.outside("scontrol", "write", "batch_script", said[2], "-")
            rest, _ = process.communicate(timeout=FINISH_LIMIT_S)
        finally:
            process.kill()
            subprocess.run(["scancel", *arrays.values()], env=sweeping.environ, check=False)
    return Sent(
        sweeping, file, folder / "runs" / "four-shapes" / "two_nodes", process.returncode, head + rest, arrays, scripts
    )


@dataclass(frozen=True)
class ByHand:
    """What sacct says of one job, read without the code under test."""

    state: str
    exit_code: int
    elapsed_s: int
    gpus: int
    node_list: str
    max_rss_bytes: float
    submit_s: float
    start_s: float
    end_s: float


def sacct_by_hand(sweeping: Sweeping, job_ids: list[str]) -> dict[str, ByHand]:
    """sacct's plain table of these jobs and their steps, times as clock times of TIME_ZONE."""
    fields = "JobID,State,ExitCode,Elapsed,AllocTRES,NodeList,MaxRSS,Submit,Start,End"
    text = sweeping.outside("sacct", "-n", "-P", "-j", ",".join(job_ids), "-o", fields)
    lines = [dict(zip(fields.split(","), line.split("|"), strict=True)) for line in text.splitlines()]
    steps = [line for line in lines if "." in line["JobID"]]
    found = {}
    for line in lines:
        if line in steps:
            continue
        own = [step["MaxRSS"] for step in steps if step["JobID"].split(".")[0] == line["JobID"]]
        hours, minutes, seconds = map(int, line["Elapsed"].split(":"))
        found[line["JobID"]] = ByHand(
            state=line["State"],
            exit_code=int(line["ExitCode"].split(":")[0]),
            elapsed_s=hours * 3600 + minutes * 60 + seconds,
            gpus=int(re.findall(r"gres/gpu=(\d+)", line["AllocTRES"])[0]),
            node_list=line["NodeList"],
            max_rss_bytes=max(
                float(size.rstrip("KMG") or 0) * {"K": 2**10, "M": 2**20, "G": 2**30}.get(size[-1:], 1) for size in own
            ),
            **{f"{name.lower()}_s": _clock(line[name]) for name in ("Submit", "Start", "End")},
        )
    return found


def _clock(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=timezone(timedelta(hours=9))).timestamp()


def _utc(text: str) -> float:
    assert text.endswith("Z")
    return datetime.fromisoformat(text).timestamp()


def test_one_command_runs_all_shapes_and_both_models(sent: Sent) -> None:
    assert sent.exit_code == 0, sent.output
    rows = sent.rows().values()
    assert sorted((row["allocation"], row["model"]) for row in rows) == sorted(
        (shape, model) for shape in SHAPES for model in ("bert", "vit")
    )
    for row in rows:
        nodes, gpus = map(int, row["allocation"].split("x"))
        assert (row["state"], row["exit_code"], row["reason"], row["attempts"]) == ("COMPLETED", 0, None, 1)
        assert (row["world_size"], row["steps"], row["comparable"]) == (nodes * gpus, STEPS, True)
        assert row["backend"] == ("gloo" if row["world_size"] > 1 else None)
        assert all(row[name] is not None for name in ("samples_per_s", "forward_ms", "train_loss", "eval_accuracy"))
        # Every change of state was told once, and the last of each is this.
        assert sent.output.count(f"{row['run_id']}  {row['model']}  COMPLETED") == 1


def test_slurm_holds_the_script_that_plan_prints(sent: Sent) -> None:
    printed = sent.sweeping.run("plan", sent.file, "--scripts").stdout
    assert "\n".join(sent.scripts[shape] for shape in SHAPES) == printed
    for shape in SHAPES:
        nodes, gpus = shape.split("x")
        lines = sent.scripts[shape].splitlines()
        wanted = ["--array=0-1%2", f"--nodes={nodes}", f"--ntasks-per-node={gpus}", f"--gpus-per-node=h100:{gpus}"]
        assert {f"#SBATCH {option}" for option in wanted} <= set(lines)


def test_each_shape_is_one_array(sent: Sent) -> None:
    rows = sent.rows().values()
    for shape, array in sent.arrays.items():
        job_ids = [row["job_id"] for row in rows if row["allocation"] == shape]
        assert sorted(job_ids) == [f"{array}_0", f"{array}_1"]


@pytest.mark.parametrize("output", ["status", "results.csv"])
def test_agrees_with_sacct_by_hand(sent: Sent, output: str) -> None:
    rows = sent.rows()
    if output == "results.csv":
        assert "wait s" in sent.sweeping.run("collect", sent.folder).stdout
        table = list(csv.DictReader(io.StringIO((sent.folder / "results.csv").read_text())))
        assert [
            {name: str("" if value is None else value) for name, value in row.items()} for row in rows.values()
        ] == (table)
        rows = by_run(table)
    by_hand = sacct_by_hand(sent.sweeping, list(sent.arrays.values()))
    assert set(by_hand) == {row["job_id"] for row in rows.values()}
    for row in rows.values():
        hand = by_hand[row["job_id"]]
        assert (row["state"], int(row["exit_code"]), row["node_list"]) == (hand.state, hand.exit_code, hand.node_list)
        assert int(row["elapsed_s"]) == hand.elapsed_s == hand.end_s - hand.start_s
        assert int(row["queue_wait_s"]) == hand.start_s - hand.submit_s
        times = [_utc(row[name]) for name in ("submit_time", "start_time", "end_time")]
        assert times == [hand.submit_s, hand.start_s, hand.end_s]
        assert hand.gpus == int(row["world_size"])
        assert float(row["gpu_hours"]) == pytest.approx(hand.gpus * hand.elapsed_s / 3600, abs=1e-6)
        assert int(row["max_rss_bytes"]) == pytest.approx(hand.max_rss_bytes, rel=0.01)
        assert hand.max_rss_bytes > 50e6  # of a rank, not of the batch shell


def test_ranks_run_where_they_should(sent: Sent) -> None:
    hosts_of = {"1x4": None, "2x2": ["node1", "node1", "node2", "node2"], "2x1": ["node1", "node2"]}
    for row in sent.rows().values():
        starts = [records(sent.run_dir(row["run_id"]), rank, "start")[0] for rank in range(row["world_size"])]
        hosts = [start["host"] for start in starts]
        assert hosts == row["hosts"].split(",") == (hosts_of.get(row["allocation"]) or [row["node_list"]] * len(hosts))
        nodes, per_node = map(int, row["allocation"].split("x"))
        places = [(start["rank"], start["node_rank"], start["local_rank"]) for start in starts]
        assert places == [(rank, rank // per_node, rank % per_node) for rank in range(nodes * per_node)]
        assert {start["job_id"] for start in starts} == {row["job_id"]}


@pytest.mark.parametrize("model", ["bert", "vit"])
def test_every_shape_takes_the_same_steps(sent: Sent, model: str) -> None:
    losses = {}
    for row in sent.rows().values():
        if row["model"] == model:
            ranks = [records(sent.run_dir(row["run_id"]), rank, "step") for rank in range(row["world_size"])]
            assert [sum(step["examples"] for step in steps) for steps in zip(*ranks, strict=True)] == [4] * STEPS
            losses[row["allocation"]] = [
                sum(step["loss"] * step["examples"] for step in steps) / 4 for steps in zip(*ranks, strict=True)
            ]
    for shape in SHAPES:
        assert losses[shape] == pytest.approx(losses["1x1"], rel=1e-5)
    assert max(losses["1x1"]) - min(losses["1x1"]) > 0.1


def test_second_submit_sends_nothing(sent: Sent) -> None:
    before = (sent.folder / "ledger.jsonl").read_bytes()
    said = sent.sweeping.run("submit", sent.file).stdout
    assert said.startswith("four-shapes on two_nodes: sending 0 of 8 runs (8 done, 0 under way)\n")
    assert "as job" not in said
    assert (sent.folder / "ledger.jsonl").read_bytes() == before
    assert {row["state"] for row in sent.rows().values()} == {"COMPLETED"}


def test_what_sacct_said_is_kept_and_stands_in_for_it(sent: Sent, tmp_path: Path) -> None:
    rows = sent.rows()
    copy = shutil.copytree(sent.folder, tmp_path / "four-shapes" / "two_nodes")
    # A machine without Slurm: only the interpreter and its scripts are on PATH.
    bare = tmp_path / "bin"
    bare.mkdir()
    away = Sweeping(tmp_path, {**os.environ, "PATH": str(bare)})
    assert by_run(away.status(copy)) == rows
    said = away.run("status", copy).stderr
    assert said == "note: sacct is not installed here, or not on PATH; states are those of the last answer\n"
    kept = [json.loads(line) for line in (copy / "accounting.jsonl").read_text().splitlines()]
    ended = {row["job_id"]: row["state"] for row in kept if row["end_s"] is not None}
    assert ended == {row["job_id"]: "COMPLETED" for row in rows.values()}


def test_run_that_sacct_does_not_know_yet_is_pending(sent: Sent, tmp_path: Path) -> None:
    copy = shutil.copytree(sent.folder, tmp_path / "four-shapes" / "two_nodes")
    again = next(iter(sent.rows()))
    ledger.record(copy, {again: "99999999"}, datetime.now().timestamp())
    rows = by_run(sent.sweeping.status(copy))
    assert (rows[again]["state"], rows[again]["exit_code"], rows[again]["job_id"]) == ("PENDING", None, "99999999")
    assert [row["state"] for run_id, row in rows.items() if run_id != again] == ["COMPLETED"] * 7
    assert "PENDING" in sent.sweeping.run("status", copy).stdout


def test_nothing_is_left_in_the_queue(sent: Sent) -> None:
    def gone() -> bool:
        return not sent.sweeping.outside("squeue", "-h", "--name=four-shapes", "-t", "PD,R,CG")

    wait_for(gone, "empty queue", limit_s=10)
