"""The commands of the study: torchrun on bert.py and vit.py in their folder, on one and two nodes, without Slurm."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.jobs.sweeping import DATA, records

pytestmark = pytest.mark.process

SCRIPTS = Path(__file__).resolve().parents[1] / "disttrain"
LIMIT_S = 120.0
_LAYERS = "hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 64"
# Flags that make the study's commands small enough for a test; the rest of each command is as in the study.
SMALL = ["--max_steps", "3", "--device", "cpu", "--num_workers=0", "--max_train_examples=200", "--max_eval_examples=40"]
SMALL_BERT = [*SMALL, "--dataset", str(DATA / "sst2"), "--architecture", f"{{{_LAYERS}, vocab_size: 1000}}"]
SMALL_VIT = [
    *SMALL, "--dataset", str(DATA / "cifar10"), "--image_size=32", "--architecture", f"{{{_LAYERS}, patch_size: 8}}"
]  # fmt: skip


def in_folder(*command: str, environ: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Starts a command in the folder of the scripts, without the environment variables of a job."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SWEEP_"))}
    return subprocess.Popen(
        command, cwd=SCRIPTS, env={**clean, **(environ or {})}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a command, which is killed after LIMIT_S."""
    try:
        stdout, stderr = process.communicate(timeout=LIMIT_S)
    finally:
        process.kill()
    return process.returncode, stdout, stderr


def torchrun(*arguments: str) -> list[str]:
    return [str(Path(sys.executable).with_name("torchrun")), *arguments]


def read(output_dir: Path, name: str) -> Any:
    return json.loads((output_dir / name).read_text())


@pytest.mark.parametrize("script", ["bert.py", "vit.py"])
def test_help_needs_no_torch(script: str, tmp_path: Path) -> None:
    for name in ("torch", "transformers", "datasets", "submitit", "numpy"):
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('{name} is not installed')")
    code, stdout, stderr = end(in_folder(sys.executable, script, "--help", environ={"PYTHONPATH": str(tmp_path)}))
    assert (code, stderr) == (0, "")
    assert stdout.startswith(f"usage: {script} ")
    assert all(f"--{flag} VALUE" in stdout for flag in ("per_gpu_batch", "setup", "lr", "architecture", "dataset"))


@pytest.mark.parametrize("package", ["torch", "transformers"])
def test_missing_package_names_its_extra(package: str, tmp_path: Path) -> None:
    (tmp_path / f"{package}.py").write_text(f"raise ModuleNotFoundError('no {package}', name='{package}')")
    command = [sys.executable, "bert.py", *SMALL_BERT, "--output_dir", str(tmp_path / "out")]
    code, _, stderr = end(in_folder(*command, environ={"PYTHONPATH": str(tmp_path)}))
    assert code == 2
    assert stderr.startswith(f"error: the package '{package}' is not installed for {sys.executable}")
    assert "pip install '.[train]'" in stderr
    assert read(tmp_path / "out", "failure-rank00000.json")["user_error"]


def test_script_alone_is_one_rank(tmp_path: Path) -> None:
    command = [sys.executable, "bert.py", "--per_gpu_batch=4", "--lr", "0.0002", *SMALL_BERT]
    code, stdout, stderr = end(in_folder(*command, environ={"SWEEP_ROOT": str(tmp_path)}))
    assert code == 0, stderr
    (output_dir,) = (tmp_path / "torchrun").iterdir()
    assert re.fullmatch(r"1x1-[0-9a-f]{12}", output_dir.name)
    assert stdout.splitlines()[-1] == f"results: {output_dir}"
    assert read(output_dir, "summary.json")["hosts"] == [os.uname().nodename]
    assert read(output_dir, "run.json")["train"]["lr"] == 0.0002
    assert [step["examples"] for step in records(output_dir, 0, "step")] == [4, 4, 4]


@pytest.mark.parametrize(("script", "small"), [("bert.py", SMALL_BERT), ("vit.py", SMALL_VIT)], ids=["bert", "vit"])
def test_experiment_1_on_one_gpu(script: str, small: list[str], tmp_path: Path) -> None:
    flags = ["--standalone", "--nnodes=1", "--nproc_per_node=1", script, "--per_gpu_batch=1", "--setup", "1_1"]
    code, stdout, stderr = end(in_folder(*torchrun(*flags, *small, "--output_dir", str(tmp_path / "out"))))
    assert code == 0, stderr
    assert stdout.splitlines()[-1] == f"results: {tmp_path / 'out'}"
    summary = read(tmp_path / "out", "summary.json")
    assert (summary["world_size"], summary["num_nodes"], summary["steps"], summary["backend"]) == (1, 1, 3, None)
    assert (summary["eval_examples"], summary["comparable"]) == (40, True)


def test_experiment_2_on_four_gpus(tmp_path: Path) -> None:
    flags = ["--standalone", "--nnodes=1", "--nproc_per_node=4", "bert.py", "--per_gpu_batch=16", "--setup", "1_4"]
    rates = ["--lr", "0.00002", "--epochs=5"]
    command = torchrun(*flags, *rates, *SMALL_BERT, "--output_dir", str(tmp_path))
    code, _, stderr = end(in_folder(*command))
    assert code == 0, stderr
    starts = [records(tmp_path, rank, "start")[0] for rank in range(4)]
    assert [(start["rank"], start["local_rank"], start["node_rank"]) for start in starts] == [
        (rank, rank, 0) for rank in range(4)
    ]
    summary = read(tmp_path, "summary.json")
    assert (summary["world_size"], summary["num_nodes"], summary["backend"]) == (4, 1, "gloo")
    assert read(tmp_path, "run.json")["allocation"] == "1x4"


@pytest.mark.slurm
def test_two_nodes_with_two_launchers(slurm_cluster: Mapping[str, str], tmp_path: Path) -> None:
    """Runs in the network namespaces of the test cluster's nodes, without its Slurm."""
    launchers = []
    for node_rank in range(2):
        enter = ["ip", "netns", "exec", f"sweeptest-node{node_rank + 1}", "unshare", "--uts", "sh", "-c"]
        command = torchrun(
            "--nnodes=2", "--nproc_per_node=2", f"--node_rank={node_rank}", "--master_addr=10.77.0.11",
            "--master_port=29500", "bert.py", "--per_gpu_batch=1", "--setup", "2_2",
        )  # fmt: skip
        rename = f'hostname node{node_rank + 1} && exec "$@"'
        launchers.append(in_folder(*enter, rename, "sh", *command, *SMALL_BERT, "--output_dir", str(tmp_path)))
    try:
        for code, _, stderr in [end(launcher) for launcher in launchers]:
            assert code == 0, stderr
    finally:
        for launcher in launchers:
            launcher.kill()
    starts = [records(tmp_path, rank, "start")[0] for rank in range(4)]
    assert [(start["host"], start["node_rank"], start["local_rank"]) for start in starts] == [
        ("node1", 0, 0), ("node1", 0, 1), ("node2", 1, 0), ("node2", 1, 1)
    ]  # fmt: skip
    summary = read(tmp_path, "summary.json")
    assert (summary["world_size"], summary["num_nodes"], summary["backend"]) == (4, 2, "gloo")
    assert summary["hosts"] == ["node1", "node1", "node2", "node2"]
    assert read(tmp_path, "run.json")["allocation"] == "2x2"
    # Every rank has the same averaged weights, so all ranks report the same evaluation.
    evals = [records(tmp_path, rank, "eval")[-1] for rank in range(4)]
    assert len({(record["loss"], record["accuracy"], record["examples"]) for record in evals}) == 1


def test_older_launcher_adds_local_rank(tmp_path: Path) -> None:
    flags = ["-m", "torch.distributed.launch", "--nproc_per_node=2", "bert.py", "--setup", "9_9"]
    code, _, stderr = end(in_folder(sys.executable, *flags, "--output_dir", str(tmp_path)))
    assert code == 1
    errors = {line for line in stderr.splitlines() if line.startswith("error: ")}
    assert len(errors) == 1
    assert "setup '9_9' says 9x9 (nodes x ranks per node), but the run has 1x2" in errors.pop()


@pytest.mark.parametrize(
    ("environ", "error"),
    [
        (
            {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"},
            "error: environment: this process is one of several (RANK={rank}, WORLD_SIZE=2), but LOCAL_RANK is not set"
            " (start the ranks with torchrun or srun, or set these variables for each rank)\n",
        ),
        (
            {"WORLD_SIZE": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "n"},
            "error: environment: WORLD_SIZE is 0; it must be at",
        ),
    ],
    ids=["without LOCAL_RANK", "of size 0"],
)
def test_ranks_without_a_place_are_no_runs(environ: dict[str, str], error: str, tmp_path: Path) -> None:
    """Each would otherwise be a run of one rank, and both would write the same folder."""
    for rank in ("0", "1"):
        command = [sys.executable, "bert.py", *SMALL_BERT, "--output_dir", str(tmp_path / "out")]
        code, stdout, stderr = end(in_folder(*command, environ={**environ, "RANK": rank}))
        assert (code, stdout) == (2, "")
        assert stderr.startswith(error.format(rank=rank))
        assert len(stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("setup", ["2_2", "2x2"])
def test_wrong_setup_is_an_error(setup: str, tmp_path: Path) -> None:
    flags = ["--standalone", "--nnodes=1", "--nproc_per_node=2", "bert.py", "--per_gpu_batch=1", "--setup", setup]
    code, _, stderr = end(in_folder(*torchrun(*flags, *SMALL_BERT, "--output_dir", str(tmp_path))))
    assert code == 1
    # Each rank writes the error once; the other lines are torchrun's.
    errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert set(errors) == {
        f"error: setup '{setup}' says 2x2 (nodes x ranks per node), but the run has 1x2"
        " (correct --setup or the way the ranks are started)"
    }
    assert not (tmp_path / "summary.json").exists()
