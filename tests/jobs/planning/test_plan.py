"""Plans: groups, GPU-hours, and the batch scripts exactly as sbatch receives them."""

from __future__ import annotations

import dataclasses
import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from disttrain.config.train_config import TrainConfig
from disttrain.errors import UserError
from jobs.planning.cluster import Cluster
from jobs.planning.cluster_profile import ClusterProfile
from jobs.planning.expand import expand
from jobs.planning.plan import Plan, has_bucket_times, is_link, make_plan, plan_json, run_json, with_runs
from jobs.planning.sweep_file import parse_sweep
from jobs.planning.yaml_file import parse_yaml
from jobs.slurm.submit import send_to_slurm
from jobs.storage.sweep_folder import SweepFolder

GOLDEN = Path(__file__).parents[2] / "golden"
SWEEP = "name: s\nallocations: [2x2, 1x1]\nbase: {model: bert}\naxes: {lr: [1, 2, 3]}\nseeds: [0, 1]\n"
PROFILES: dict[str, dict[str, Any]] = {
    "plain": {},
    "typed": {"gpu_type": "a100", "cpus_per_gpu": 12, "memory_gb_per_gpu": 62.5, "max_running": 2, "time": "1-12:00"},
    "gres": {
        "gpu_request": "gres",
        "gpu_type": "h100",
        "partition": "gpu",
        "account": "my project",
        "qos": "high",
        "constraint": "ib&a100",
        "python": "/opt/my venv/bin/python",
    },
    "none": {
        "gpu_request": "none",
        "gpu_type": "a100",
        "setup": ("module load cuda/12", "export HF_HOME=/scratch/$USER/hf"),
        "network_interface": "ib0",
        "requeue": "off",
        "warning_s": 300,
        "sbatch": {"mail-type": "END,FAIL", "exclusive": True, "nice": 100, "comment": "it's ours"},
    },
}


def plan_of(cluster: ClusterProfile | None, folder: Path = Path("/sweeps/my runs/s/site"), text: str = SWEEP) -> Plan:
    where = Cluster("site", "slurm", cluster) if cluster else Cluster("local", "local")
    return make_plan("s", expand(parse_sweep(parse_yaml(text, "s.yaml"), "/nowhere")), where, folder)


def profile(**values: Any) -> ClusterProfile:
    return ClusterProfile.model_validate({"python": "/opt/venv/bin/python", **values})


def test_groups_by_allocation_and_array_limit() -> None:
    plan = plan_of(profile(max_array_size=4, time="00:45:00"))
    assert [(str(group.allocation), len(group.runs), group.gpu_hours_limit) for group in plan.groups] == [
        ("2x2", 4, 12.0),
        ("2x2", 2, 6.0),
        ("1x1", 4, 3.0),
        ("1x1", 2, 1.5),
    ]
    assert [run.index for run in plan.runs] == list(range(12))
    few = with_runs(plan, {plan.runs[5].run_id, plan.runs[1].run_id, "1x1-missing"})
    assert [[run.index for run in group.runs] for group in few.groups] == [[1], [5]]


@pytest.mark.parametrize(("gpu_request", "hours"), [("gpus-per-node", 12.0), ("gres", 12.0), ("none", None)])
def test_gpu_hours_need_requested_gpus(gpu_request: str, hours: float | None) -> None:
    plan = plan_of(profile(gpu_request=gpu_request, time="00:30:00"))
    assert (plan.groups[0].requests_gpus, plan.groups[0].gpu_hours_limit) == (hours is not None, hours)


def test_without_a_limit_all_tasks_may_run() -> None:
    """submitit's own limit is 256 tasks of an array at a time."""
    text = SWEEP.replace("[0, 1]", f"{list(range(100))}")
    plan = plan_of(profile(), text=text)
    assert "#SBATCH --array=0-299%300\n" in plan.script(plan.groups[0])
    limited = plan_of(profile(max_running=8), text=text)
    assert "#SBATCH --array=0-299%8\n" in limited.script(limited.groups[0])


@pytest.mark.parametrize(("memory_gb", "memory_mb"), [(0.0001, 1), (1.0004, 2049), (1.5, 3072)])
def test_memory_is_rounded_up(memory_gb: float, memory_mb: int) -> None:
    """To Slurm, --mem=0 is all memory of the node."""
    plan = plan_of(profile(memory_gb_per_gpu=memory_gb))
    assert f"#SBATCH --mem={memory_mb}M\n" in plan.script(plan.groups[0])


def test_one_rank_has_no_bucket_times() -> None:
    """DDP exchanges gradients, in buckets, only between ranks."""
    plan = plan_of(None, text=SWEEP.replace("bert", "bert, detailed_timing: true").replace("2x2", "1x2"))
    times = {str(run.allocation): has_bucket_times(run_json(run)) for run in plan.runs}
    assert times == {"1x2": True, "1x1": False}
    assert not any(has_bucket_times(run_json(run)) for run in plan_of(None).runs)


def test_local_groups_have_no_parameters() -> None:
    plan = plan_of(None)
    assert [(len(group.runs), group.parameters, group.gpu_hours_limit) for group in plan.groups] == [
        (6, {}, None),
        (6, {}, None),
    ]


@pytest.mark.parametrize("name", PROFILES)
def test_the_batch_scripts_are_golden(name: str) -> None:
    plan = plan_of(profile(**PROFILES[name]))
    single = with_runs(plan, [plan.runs[0].run_id])
    text = "".join(p.script(group) for p in (plan, single) for group in p.groups)
    assert text == (GOLDEN / f"sbatch_{name}.txt").read_text(encoding="utf-8")


def fake_slurm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Puts substitutes for sbatch and srun on PATH; returns the folder to which sbatch copies the scripts."""
    (folder / "bin").mkdir()
    (folder / "scripts").mkdir()
    for program, text in (
        ("srun", "#!/bin/sh\n"),
        ("scontrol", "#!/bin/sh\n"),
        (
            "sbatch",
            f'#!/bin/sh\nfor script; do :; done\ncd {folder}/scripts\ncp "$script" $(ls | wc -l)\n'
            "echo Submitted batch job 7\n",
        ),
    ):
        path = folder / "bin" / program
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    return folder / "scripts"


@pytest.mark.process
@pytest.mark.parametrize("name", PROFILES)
def test_sbatch_receives_the_planned_script(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripts = fake_slurm(tmp_path, monkeypatch)
    plan = plan_of(profile(**{**PROFILES[name], "max_array_size": 5}), tmp_path / "my runs" / "s" / "site")
    SweepFolder(plan.folder).logs.mkdir(parents=True)
    send_to_slurm(plan, {}, lambda: 1.0, lambda *_: None)
    assert [path.read_text() for path in sorted(scripts.iterdir())] == [plan.script(group) for group in plan.groups]
    assert [len(group.runs) for group in plan.groups] == [5, 1, 5, 1]  # an array and a plain job for each allocation


@pytest.mark.parametrize(
    ("folder", "character"),
    [("/50%/s/site", "'%'"), ("/a%j/s", "'%'"), ("/a\\b/s", r"'\\\\'"), ("/a\nb", r"'\\n'"), ("/a\ud800", "'.ud800'")],
)
def test_a_folder_that_sbatch_changes_is_refused(folder: str, character: str) -> None:
    """sbatch replaces %j in the names of log files, and drops backslashes: the logs would be in another folder."""
    with pytest.raises(UserError, match=f"has the character {character}, which no name of a log file can have"):
        plan_of(profile(), Path(folder))


def test_folders_that_sbatch_keeps() -> None:
    for folder in ("/a b/s", "/it's/s", '/"a"/s', "/a#b;$(x)/s", "/f\u00fcr/s"):
        assert plan_of(profile(), Path(folder)).runs
    assert plan_of(None, Path("/a\\b/s")).runs
    with pytest.raises(UserError, match="has the character '%'"):  # submitit replaces %j too
        plan_of(None, Path("/50%j/s"))


def test_the_json_of_a_plan() -> None:
    plan = plan_of(None, text="name: s\nallocations: [2x1]\nbase: {model: vit, epochs: 2}\naxes: {lr: [1e-3]}\n")
    train = dataclasses.asdict(TrainConfig(model="vit", epochs=2, lr=1e-3).resolved())
    assert plan_json(plan) == {
        "sweep": "s",
        "cluster": "local",
        "kind": "local",
        "runs": [
            {
                "run_id": plan.runs[0].run_id,
                "allocation": "2x1",
                "nodes": 2,
                "gpus_per_node": 1,
                "world_size": 2,
                "point": {"lr": 0.001},
                "asked": {"model": "vit", "epochs": 2, "lr": 0.001},
                "train": train,
            }
        ],
    }
    assert json.loads(json.dumps(plan_json(plan))) == plan_json(plan)


def test_the_default_interpreter_runs_sweep() -> None:
    plan = plan_of(ClusterProfile.model_validate({}))
    assert f" {sys.executable} -P -u -m submitit.core._submit " in plan.script(plan.groups[0])


COMMANDS = """\
name: s
allocations: [2x4]
base: {max_steps: 3}
zip:
  model: [bert, null, null]
  command: [null, ./train, ./other]
launcher: torchrun
"""


def test_torchrun_gets_one_task_for_each_node() -> None:
    """With the cores of all GPUs. Runs of our models have an array of their own: its tasks have another shape."""
    plan = plan_of(profile(cpus_per_gpu=6), text=COMMANDS)
    shapes = [(len(group.runs), group.tasks, group.gpu_hours_limit) for group in plan.groups]
    assert shapes == [(1, 8, 8.0), (2, 2, 16.0)]
    names = ("nodes", "ntasks_per_node", "cpus_per_task", "gpus_per_node")
    assert [[group.parameters[name] for name in names] for group in plan.groups] == [[2, 4, 6, 4], [2, 1, 24, 4]]
    assert [group.parameters["srun_args"][:2] for group in plan.groups] == [["-c", "6"], ["-c", "24"]]
    assert "#SBATCH --ntasks-per-node=1\n" in plan.script(plan.groups[1])
    local = plan_of(None, text=COMMANDS)
    assert [group.tasks for group in local.groups] == [8, 2]
    (alone,) = plan_of(profile(), text=COMMANDS.replace("launcher: torchrun\n", "")).groups
    assert (len(alone.runs), alone.tasks) == (3, 8)


def test_a_command_in_run_json() -> None:
    """Only a command has the section `script`, and its keys have no meaning of our own."""
    text = "name: s\nallocations: [2x1]\ncommand: ./train\nbase: {model: link, detailed_timing: true}\n"
    described, link = map(run_json, plan_of(None, text=text + "measure_link: true\n").runs)
    assert described["train"] == {"command": "./train", "model": "link", "detailed_timing": True}
    assert set(described) - set(link) == {"script"}
    assert (is_link(described), is_link(link)) == (False, True)
    assert not has_bucket_times(described)
