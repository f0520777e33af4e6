"""The sweep command for its users: error messages, exit statuses, pipes, and a login node without torch."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import stat
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from disttrain.records.record_files import failure_name, write_json
from disttrain.records.summary_types import Failure
from jobs import __version__
from jobs.results.result import COLUMNS
from jobs.slurm.states import State
from jobs.storage.sweep_folder import SweepFolder
from tests.jobs.command import SWEEP, Output, Sweep, note

HEAVY = ("torch", "torchvision", "transformers", "datasets", "numpy", "pandas", "pyarrow", "matplotlib")


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ("plan", "FILE is missing (see sweep plan --help)"),
        ("plna", "unknown command 'plna' (did you mean plan? see sweep --help)"),
        ("plan s.yaml --clutser x", "unknown option '--clutser' (did you mean --cluster? see sweep plan --help)"),
        ("-v", "unknown option '-v' (did you mean --version? see sweep --help)"),
        ("status -o", "unknown option '-o' (see sweep status --help)"),
        ("-x", "unknown option '-x' (see sweep --help)"),
        ("plan s.yaml --cluster", "--cluster needs a value (see sweep plan --help)"),
        ("plan s.yaml --json=1", "--json takes no value (see sweep plan --help)"),
        ("plan s.yaml extra", "'extra' is not KEY=VALUE (after FILE, an argument sets a field under base: max_ste"),
        ("status a b", "'b' is one argument too many (see sweep status --help)"),
        ("status a b c", "these arguments are too many: b c (see sweep status --help)"),
        ("plan s.yaml --scripts --json", "--scripts and --json are both given (choose one)"),
        ("figures --step abc", "--step is 'abc', not an integer (see sweep figures --help)"),
        ("figures --step -3", "--step is -3; it must be at least 1 (see sweep figures --help)"),
        ("plan nope.yaml", "nope.yaml: no such file (check the path)"),
        ("plan .", ".: this is a folder (name the YAML file in it)"),
        ("plan s.yaml --set lr", "--set: 'lr' is not KEY=VALUE (for example --set max_steps=3)"),
        ("plan s.yaml --set lr=1 --set lr=2", "--set: lr is set twice (drop one of the two)"),
        ("plan s.yaml --set max_steps=0", "--set max_steps=0: max_steps is 0; it must be at least 1 (number of"),
        ("plan s.yaml --set learning_rate=1", "--set learning_rate=1: unknown field 'learning_rate' (did you mean lr?"),
        ("plan s.yaml --set lr=-1e-3", "--set lr=-1e-3: lr is -1e-3; it must be greater than 0 (peak learning rate"),
        ("plan s.yaml --cluster nope", "--cluster: no cluster profile 'nope' in"),
        ("plan s.yaml --cluster x.yaml", "<folder>/x.yaml: no such file (check the path)"),
        ("plan s.yaml --scripts", "cluster 'local' has no batch scripts (choose a Slurm profile with --cluster)"),
        ("plan typo.yaml", "typo.yaml:4: slurm.tiem: unknown key 'tiem' (did you mean time?)"),
        ("submit bad.yaml --cluster local", "bad.yaml:2: allocations[0]: '2*2' is not an allocation"),
        ("submit s.yaml --cluster slurm", "cluster 'slurm' needs Slurm, and sbatch is not on PATH"),
        ("submit s.yaml --cluster slurm --max-parallel 2", "--max-parallel 2 needs --cluster local"),
        ("submit s.yaml --cluster debug --max-parallel 2", "--max-parallel 2 needs --cluster local"),
        ("submit s.yaml --max-parallel 0", "--max-parallel is 0; it must be at least 1 (see sweep submit --help)"),
        ("submit s.yaml --poll often", "--poll is 'often', not a number (see sweep submit --help)"),
        ("submit s.yaml --poll 0", "--poll is 0; it must be at least 0.1 (see sweep submit --help)"),
        ("submit s.yaml --poll 3", "--poll 3 needs --wait (add --wait, or leave out --poll)"),
        ("submit s.yaml --root /proc/missing", "'/proc/missing' cannot be created: No such file or directory (choose"),
        ("submit s.yaml --root s.yaml", "'<folder>/s.yaml/s/local' cannot be created: Not a directory (choose"),
        ("status", "no sweep was submitted in '<folder>/runs' (submit one with sweep submit FILE, or give the"),
        ("status s", "sweep 's' was not submitted: '<folder>/runs/s' has no plan.json"),
        ("collect s.yaml --cluster x", "sweep 's.yaml' was not submitted: '<folder>/runs/s' has no plan.json"),
        ("collect s --json --csv", "--json and --csv are both given (choose one)"),
        ("collect s --format json", "unknown option '--format' (did you mean --sort? see sweep collect --help)"),
        ("submit s.yaml t.yaml", "'t.yaml' is not KEY=VALUE (after FILE, an argument sets a field under base: max_ste"),
        ("plan s.yaml lr=1 --set lr=2", "--set: lr is set twice (drop one of the two)"),
        ("plan s.yaml learning_rate=1", "--set learning_rate=1: unknown field 'learning_rate' (did you mean lr?"),
        ("submit s.yaml --json", "--json needs --wait or --dry-run (add one, or leave out --json)"),
        ("submit s.yaml --dry-run --wait", "--dry-run and --wait are both given (choose one)"),
    ],
)  # fmt: skip
def test_a_mistake_gives_one_line_and_no_file(command: str, error: str, sweep: Sweep, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(SWEEP.replace("1x1", "2*2"))
    (tmp_path / "typo.yaml").write_text(SWEEP.replace("time", "tiem"))
    before = sorted(tmp_path.rglob("*"))
    output = sweep(*command.split())
    assert (output.exit_code, output.out, output.err.count("\n")) == (2, "", 1)
    assert output.err.startswith(f"error: {error.replace('<folder>', str(tmp_path))}")
    assert sorted(tmp_path.rglob("*")) == before


def test_no_command_prints_the_help(sweep: Sweep) -> None:
    bare, helped = sweep(), sweep("--help")
    assert bare == helped
    assert (bare.exit_code, bare.err) == (0, "")
    assert [line.split()[0] for line in bare.out.split("Commands:")[1].splitlines() if line.strip()] == [
        "init",
        "doctor",
        "plan",
        "prefetch",
        "submit",
        "status",
        "wait",
        "logs",
        "stacks",
        "cancel",
        "retry",
        "rerun",
        "debug",
        "forget",
        "clean",
        "collect",
        "scaling",
        "attempts",
        "best",
        "figures",
        "trace",
        "export",
        "list",
    ]


def test_plan_json_prints_only_json(sweep: Sweep, tmp_path: Path) -> None:
    output = sweep("plan", "s.yaml", "--json", "--set", "lr=1e-3", "--set", "dataset_config=1")
    plan = json.loads(output.out)
    assert (output.exit_code, output.err, plan["sweep"], plan["cluster"]) == (0, "", "s", "local")
    names = {"allocation", "nodes", "gpus_per_node", "world_size"}
    assert [{name: run[name] for name in names} for run in plan["runs"]] == [
        {"allocation": "1x1", "nodes": 1, "gpus_per_node": 1, "world_size": 1},
        {"allocation": "2x1", "nodes": 2, "gpus_per_node": 1, "world_size": 2},
    ]
    assert {
        (run["train"]["lr"], run["train"]["dataset_config"], run["train"]["max_steps"]) for run in plan["runs"]
    } == {(1e-3, "1", 3)}
    assert not (tmp_path / "runs").exists()


def test_plan_prints_the_scripts_of_a_profile(sweep: Sweep, tmp_path: Path) -> None:
    (tmp_path / "clusters").mkdir()
    (tmp_path / "clusters" / "site.yaml").write_text("partition: gpu\ntime: 01:00:00\n")
    output = sweep("plan", "s.yaml", "--cluster", "site", "--scripts")
    options = [
        line
        for line in output.out.splitlines()
        if line.startswith(("#SBATCH --time", "#SBATCH --part", "#SBATCH --nodes"))
    ]
    assert options == [
        f"#SBATCH --{option}" for nodes in "12" for option in (f"nodes={nodes}", "partition=gpu", "time=30")
    ]
    assert f"{tmp_path}/runs/s/site/logs" in output.out


@pytest.mark.process
def test_collect_writes_every_format(sweep: Sweep, submitted: SweepFolder, tmp_path: Path) -> None:
    note(submitted, State.COMPLETED, State.FAILED)
    failed = submitted.planned_runs()[1]["run_id"]
    failure = Failure(
        rank=1, host="n1", time_s=1.0, error="ValueError", message="no [label]\ncolumn", traceback="", user_error=True
    )
    write_json(submitted.run(failed) / failure_name(1), asdict(failure))
    table = sweep("collect")
    assert table.out.splitlines()[0] == "s on local: 2 runs, 1 COMPLETED, 1 FAILED"
    assert table.out.splitlines()[-2:] == [
        f"{failed} (2x1)  FAILED: rank 1 on n1: ValueError: no [label] column",
        f"    traceback in {submitted.path}/runs/{failed}/failure-rank00001.json",
    ]
    as_csv = sweep("collect", "--csv")
    assert as_csv.out == submitted.results_file.read_text()
    assert list(next(csv.DictReader(io.StringIO(as_csv.out)))) == list(COLUMNS)
    as_json = json.loads(sweep("collect", "--json").out)
    assert as_json == json.loads(sweep("status", "--json").out)
    assert [run["state"] for run in as_json["runs"]] == ["COMPLETED", "FAILED"]
    assert as_json["runs"][0]["config"] == submitted.planned_runs()[0]["train"]
    texts = {
        "all.csv": as_csv.out, "all.json": json.dumps(as_json, indent=2) + "\n", "all": as_csv.out, "link": as_csv.out,
    }  # fmt: skip
    (tmp_path / "link").symlink_to("target")
    for name, text in texts.items():
        output = sweep("collect", "-o", name)
        assert (output.out.splitlines()[0], (tmp_path / name).read_text()) == (f"wrote {name}", text)
    assert (tmp_path / "target").read_text() == as_csv.out
    assert sweep("collect", "-o", "all.txt", "--csv").out.splitlines()[0] == "wrote all.txt"
    assert sweep("collect", "-o", "all.txt", "--json").exit_code == 0
    assert (tmp_path / "all.txt").read_text() == texts["all.json"]


@pytest.mark.process
def test_all_columns_of_a_csv(sweep: Sweep, submitted: SweepFolder) -> None:
    (row, _) = csv.DictReader(io.StringIO(sweep("collect", "--csv", "--all-columns").out))
    assert (row["max_steps"], row["model"]) == ("3", "bert")
    refused = sweep("collect", "--json", "--all-columns")
    error = "error: --all-columns needs --csv or -o FILE.csv (JSON has every field under config)\n"
    assert refused == Output(2, "", error)


@pytest.mark.process
def test_where_results_cannot_be_written(sweep: Sweep, submitted: SweepFolder, tmp_path: Path) -> None:
    for name, reason in ((".", "it is a folder"), ("no/all.csv", "its folder does not exist")):
        assert sweep("collect", "-o", name) == Output(2, "", f"error: -o: {name!r} cannot be written: {reason}\n")
    refused = sweep("collect", "-o", "all.xlsx")
    assert refused.err == (
        "error: -o: 'all.xlsx' ends with '.xlsx', and the table is written as CSV, JSON or Parquet"
        " (use .csv, .json or .parquet, or add --csv or --json)\n"
    )
    assert (refused.exit_code, (tmp_path / "all.xlsx").exists()) == (2, False)


@pytest.mark.process
def test_list_needs_no_query(sweep: Sweep, submitted: SweepFolder, tmp_path: Path) -> None:
    note(submitted, State.COMPLETED)
    listed = sweep("list")
    assert [line.split() for line in listed.out.splitlines() if "local" in line] == [
        ["s", "local", "2", "1", "COMPLETED,", "1", "PENDING", "0", "s"]
    ]
    (entry,) = json.loads(sweep("list", "--json").out)
    assert entry.pop("age_s") < 60
    assert entry == {
        "sweep": "s",
        "cluster": "local",
        "folder": str(submitted.path),
        "runs": 2,
        "states": {"COMPLETED": 1, "PENDING": 1},
        "error": None,
    }
    name = "bert_learning_rate_on_two_nodes_of_the_new_partition_with_the_published_model"
    submitted.path.parent.rename(tmp_path / "runs" / name)
    assert [line.split() for line in sweep("list").out.splitlines() if "local" in line] == [
        [name, "local", "2", "1", "COMPLETED,", "1", "PENDING", "0", "s"]
    ]
    assert sweep("list", "--root", "nowhere") == Output(0, f"no sweep was submitted in '{tmp_path}/nowhere'\n", "")


def test_a_dry_run_is_the_plan(sweep: Sweep, tmp_path: Path) -> None:
    for options in ([], ["--json"], ["max_steps=4"]):
        assert sweep("submit", "s.yaml", "--dry-run", *options) == sweep("plan", "s.yaml", *options)
    assert not (tmp_path / "runs").exists()


def test_values_after_the_file_are_overrides(sweep: Sweep) -> None:
    plan = sweep("plan", "s.yaml", "--json", "max_steps=4", "lr=1e-3").out
    assert plan == sweep("plan", "s.yaml", "--json", "--set", "max_steps=4", "--set", "lr=1e-3").out
    assert {(run["train"]["max_steps"], run["train"]["lr"]) for run in json.loads(plan)["runs"]} == {(4, 1e-3)}


@pytest.mark.process
def test_another_user_collects_to_another_folder(
    sweep: Sweep, submitted: SweepFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note(submitted, State.COMPLETED, State.COMPLETED)
    before = sorted(submitted.path.rglob("*"))
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert sweep("collect", "-o", "mine.csv").exit_code == 0
    assert (tmp_path / "mine.csv").exists()
    assert sorted(submitted.path.rglob("*")) == before


@pytest.mark.process
def test_the_root_option_finds_a_sweep(
    sweep: Sweep, submitted: SweepFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    root = str(tmp_path / "runs")
    assert sweep("status", "--root", root).exit_code == 0
    monkeypatch.setenv("SWEEP_ROOT", root)
    assert sweep("status", "s").exit_code == 0


def program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def environ_of(folder: Path, **more: str) -> dict[str, str]:
    dropped = ("SWEEP", "SLURM", "COVERAGE", "PYTHONUNBUFFERED")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    return {**environ, "XDG_CONFIG_HOME": str(folder / "config"), **more}


def python(code: str, folder: Path, environ: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environ, capture_output=True, text=True, check=False
    )


def main_of(*arguments: str, then: str = "") -> str:
    start = f"import sys\nsys.argv = {['sweep', *arguments]}\nfrom jobs.cli import main"
    return f"{start}\ntry: main()\nfinally: {then or 'pass'}"


def modules(code: str, folder: Path) -> set[str]:
    completed = python(code, folder, environ_of(folder))
    return set(completed.stderr.split())


PRINT_MODULES = "print(*sys.modules, file=sys.stderr)"


def test_version(sweep: Sweep) -> None:
    printed = f"disttrain-sweeps {__version__}, Python {platform.python_version()}\n"
    assert sweep("--version") == Output(0, printed, "")
    assert sweep("--version", "plan", "s.yaml") == Output(0, printed, "")


@pytest.mark.process
def test_help_loads_only_typer(tmp_path: Path) -> None:
    typer = modules(f"from __future__ import annotations\nimport sys, typer\n{PRINT_MODULES}", tmp_path)
    helped = modules(main_of("--help", then=PRINT_MODULES), tmp_path)
    more = {name for name in helped - typer if not name.startswith("typer.")}
    assert "typer" in typer
    names = ("cancel", "clean", "debug", "forget", "list", "logs", "plan", "stacks", "submit", "wait")
    commands = {f"jobs.cli.{name}_command" for name in names}
    commands |= {"jobs.cli.cluster", *(f"jobs.cli.cluster.{name}_command" for name in ("init", "doctor", "prefetch"))}
    commands |= {"jobs.cli.resend_commands", "jobs.cli.result_commands", "jobs.cli.results_output"}
    commands |= {
        "jobs.cli.results",
        *(f"jobs.cli.results.{name}_command" for name in ("attempts", "best", "collect", "export", "scaling", "trace")),
    }
    shared = {"jobs.cli", "jobs.cli.options", "jobs.cli.shared", "jobs.cli.usage_errors"}
    assert more == {"disttrain", "disttrain.errors", "jobs", *shared, *commands}


@pytest.mark.process
@pytest.mark.parametrize("options", [[], ["--json"], ["--cluster", "slurm"], ["--cluster", "slurm", "--scripts"]])
def test_a_plan_loads_no_heavy_library(options: list[str], tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(SWEEP)
    # For its scripts submitit needs only cloudpickle; it loads numpy only on the compute nodes.
    loaded = modules(main_of("plan", "s.yaml", *options, then=PRINT_MODULES), tmp_path)
    assert "jobs.planning.plan" in loaded
    assert loaded & set(HEAVY) == set()


BLOCK = f"""
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {HEAVY}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocked())
"""
SACCT = """\
echo 'JobID^|^State^|^Submit^|^JobName'
now=$(date +%s)
echo "7^|^COMPLETED^|^$now^|^s"
echo "8^|^PENDING^|^$now^|^s"
"""


@pytest.mark.process
def test_a_login_node_needs_no_torch(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(SWEEP)
    for folder in ("bin", "blocked", "scripts"):
        (tmp_path / folder).mkdir()
    (tmp_path / "blocked" / "sitecustomize.py").write_text(BLOCK)
    program(tmp_path / "bin" / "srun", "")
    program(tmp_path / "bin" / "sacct", SACCT)
    for name in ("scontrol", "scancel"):
        program(tmp_path / "bin" / name, "")
    program(tmp_path / "bin" / "squeue", "echo '8|PENDING|Priority|(null)'")
    program(
        tmp_path / "bin" / "sbatch",
        f"env > {tmp_path}/env\nfor script; do :; done\n"
        f'cp "$script" {tmp_path}/scripts/$(ls {tmp_path}/scripts | wc -l)\n'
        f"echo Submitted batch job $((6 + $(ls {tmp_path}/scripts | wc -l)))",
    )
    environ = environ_of(
        tmp_path,
        PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        PYTHONPATH=str(tmp_path / "blocked"),
        SLURM_JOB_ID="1",
        SBATCH_PARTITION="other",
        SBATCH_ARRAY_INX="0-7",
    )
    for name in HEAVY:
        assert f"No module named '{name}'" in python(f"import {name}", tmp_path, environ).stderr

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        completed = python(main_of(*arguments), tmp_path, environ)
        assert (completed.returncode, completed.stderr) == (0, ""), completed.stderr
        return completed

    planned = run("plan", "s.yaml", "--scripts").stdout
    assert run("submit", "s.yaml").stdout.splitlines() == [
        "s on slurm: submitting 2 of 2 runs",
        "  1x1: 1 run as job 7",
        "  2x1: 1 run as job 8",
        "sweep status s    shows the progress",
    ]
    assert "\n".join(path.read_text() for path in sorted((tmp_path / "scripts").iterdir())) == planned
    environ_lines = (tmp_path / "env").read_text().splitlines()
    assert "#SBATCH --partition=other\n" in planned  # the user's default, not the job's around it
    own = [line for line in environ_lines if line.startswith(("SLURM_JOB_ID", "SBATCH_"))]
    assert own == ["SBATCH_PARTITION=other"]
    (done, _) = json.loads((tmp_path / "runs" / "s" / "slurm" / "plan.json").read_text())["runs"]
    (tmp_path / "runs" / "s" / "slurm" / "runs" / done["run_id"] / "summary.json").write_text('{"steps": 3}')
    assert (
        run("submit", "s.yaml").stdout.splitlines()[0]
        == "s on slurm: submitting 0 of 2 runs (1 done, 1 queued or running)"
    )
    rows: list[dict[str, Any]] = json.loads(run("status", "--json").stdout)["runs"]
    assert [(row["job_id"], row["state"]) for row in rows] == [("7", "COMPLETED"), ("8", "PENDING")]
    (tmp_path / "runs" / "s" / "slurm" / "logs" / "7_0_log.out").write_text("a line\n")
    assert run("logs", done["run_id"]).stdout.endswith("/7_0_log.out <==\na line\n")
    assert run("clean").stdout == "s on slurm: nothing can be removed\n"
    run("collect", "-o", "all.csv")
    assert (tmp_path / "all.csv").read_text() == (tmp_path / "runs/s/slurm/results.csv").read_text()


@pytest.mark.process
@pytest.mark.parametrize("options", ["", "--json", "--scripts"])
@pytest.mark.parametrize("runs", [2, 200], ids=["less than a buffer", "more than a pipe"])
def test_a_closed_pipe_is_no_failure(options: str, runs: int, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(SWEEP + f"seeds: {list(range(runs // 2))}\n")
    plan = f"{sys.executable} -m jobs plan s.yaml --cluster slurm {options}"
    command = f"{plan} | head -c 0 > /dev/null; echo ${{PIPESTATUS[*]}}"
    completed = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, env=environ_of(tmp_path), capture_output=True, text=True, check=True
    )
    assert (completed.stdout, completed.stderr) == ("0 0\n", "")


def test_the_plan_of_a_command(sweep: Sweep, tmp_path: Path) -> None:
    (tmp_path / "train.py").touch()
    text = "name: c\nallocations: [1x4]\ncommand: python train.py\nlauncher: torchrun\naxes: {lr: [1e-4, 3e-4]}\n"
    (tmp_path / "c.yaml").write_text(text)
    shown = sweep("plan", "c.yaml", "text=a $5").out.splitlines()
    assert shown[:2] == [
        "c on local: 2 runs",
        "1x4 lr=0.0001 starts: python train.py --text 'a $5' --lr 0.0001",
    ]
    assert " 1x4: 2 runs         nodes 1, tasks 1, GPUs 4" in shown
    assert [line.split()[1:] for line in shown[2:] if "lr=" in line] == [["1x4", "lr=0.0001"], ["1x4", "lr=0.0003"]]
    plan = json.loads(sweep("plan", "c.yaml", "--json", "text=it's $5", "n=[1, 2]").out)
    assert plan["runs"][0]["train"] == {"command": "python train.py", "text": "it's $5", "n": [1, 2], "lr": 1e-4}
    assert plan["runs"][0]["script"]["working_dir"] == str(tmp_path)
    note = "note: amp has a value, true or false; without one: switches: [amp]"
    assert note in sweep("plan", "c.yaml", "amp=true").out.splitlines()
    scripts = sweep("plan", "c.yaml", "--cluster", "slurm", "--scripts").out
    assert "#SBATCH --ntasks-per-node=1\n" in scripts
    assert "train.py" not in scripts
    assert sweep("plan", "c.yaml", "lr=1").err.startswith("error: --set lr=1: lr varies in the sweep, at c.yaml:5: ")
