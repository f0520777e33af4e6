"""The sweeps of sweeps/examples: their runs, the flags of their scripts, and one of them on this machine."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest
import yaml

from disttrain.config.command.command_config import CommandConfig
from disttrain.config.train_config import TrainConfig
from jobs.planning.expand import RunSpec, expand
from jobs.planning.sweep_file import load_sweep
from tests.jobs.sweeping import DATA, Sweeping

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLES = REPOSITORY / "sweeps" / "examples"
RUNS = {"ddp_loop": 16, "hf_trainer": 16, "accelerate_loop": 8, "core_and_trainer": 8}


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)


def runs_of(name: str) -> tuple[RunSpec, ...]:
    return expand(load_sweep(EXAMPLES / f"{name}.yaml"))


def test_the_readme_prints_the_first_example() -> None:
    blocks = re.findall(r"^```yaml\n(.*?)^```", (REPOSITORY / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert yaml.safe_load(blocks[0]) == yaml.safe_load((EXAMPLES / "ddp_loop.yaml").read_text())


def test_each_example_is_tested() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.yaml")} == RUNS.keys()


@pytest.mark.parametrize("name", RUNS)
def test_it_has_its_number_of_runs(name: str) -> None:
    assert len(runs_of(name)) == RUNS[name]


@pytest.mark.parametrize("name", RUNS)
def test_the_script_has_every_flag(name: str) -> None:
    commands = [run.config for run in runs_of(name) if isinstance(run.config, CommandConfig)]
    assert commands
    for config in commands:
        program, script = config.command.split()
        assert program == "python"
        source = (REPOSITORY / script).read_text(encoding="utf-8")
        # A flag of argparse, or a field of the class that HfArgumentParser reads.
        assert [key for key in config.values if f'"--{key}"' not in source and f"\n    {key}: " not in source] == []


def test_core_and_trainer_get_the_same_values() -> None:
    configs = [run.config for run in runs_of("core_and_trainer") if str(run.allocation) == "1x2"]
    ours = [config for config in configs if isinstance(config, TrainConfig)]
    scripts = [config for config in configs if isinstance(config, CommandConfig)]
    assert [config.per_gpu_batch for config in ours] == [config.values["per_gpu_batch"] for config in scripts]
    for config, script in zip(ours, scripts, strict=True):
        assert {name: getattr(config, name) for name in script.values} == script.values


@pytest.mark.process
def test_one_table_compares_core_and_trainer(tmp_path: Path) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SWEEP_"))}
    # As in a shell with the active environment: `python` of the command is that of this test.
    path = f"{Path(sys.executable).parent}{os.pathsep}{clean['PATH']}"
    of_test = {"PATH": path, "HF_HOME": str(tmp_path / "hf"), "SWEEP_ROOT": str(tmp_path / "runs")}
    # Two ranks of a script need two GPUs, or a machine without any.
    sweeping = Sweeping(REPOSITORY, {**clean, **of_test, "CUDA_VISIBLE_DEVICES": ""})
    # Two of its runs, with fewer steps.
    sections = yaml.safe_load((EXAMPLES / "core_and_trainer.yaml").read_text(encoding="utf-8"))
    sections["axes"]["per_gpu_batch"] = [16]
    sections["zip"]["dataset"] = [str(DATA / "sst2")]
    sections |= {"allocations": ["1x2"], "include": sections["include"][:1]}
    sweep = tmp_path / "core_and_trainer.yaml"
    sweep.write_text(yaml.safe_dump(sections))
    sweeping.run("submit", sweep, "max_steps=40", "--cluster", "local", "--wait", timeout_s=280)
    rows = json.loads(sweeping.run("collect", "core-and-trainer", "--cluster", "local", "--json").stdout)["runs"]
    assert [(row["state"], row["steps"]) for row in rows] == [("COMPLETED", 40)] * 2
    core, trainer = sorted(rows, key=lambda row: "command" in row["config"])
    assert 0.1 < core["samples_per_s"] / trainer["samples_per_s"] < 30
    assert core["eval_accuracy"] > 0
    assert trainer["metrics.eval_accuracy"] > 0
