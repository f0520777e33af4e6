"""Cluster profiles: valid values, errors with their lines, and the search for a name."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from disttrain.errors import UserError
from jobs.planning.cluster_profile import (
    ClusterProfile,
    load_profile,
    override,
    parse_time_s,
)
from jobs.planning.interpreter import compute_python
from jobs.planning.sbatch_options import PLANNED_OPTIONS
from jobs.planning.sweep_file import parse_sweep
from jobs.planning.yaml_file import parse_yaml

FULL = """\
partition: gpu
account: my_project
qos: normal
constraint: a100
time: 01:00:00
gpu_request: gres
gpu_type: a100
cpus_per_gpu: 8
memory_gb_per_gpu: 32
python: /opt/venv/bin/python
setup: [module load cuda]
code: live
network_interface: ib0
max_array_size: 500
max_running: 8
requeue: chain
warning_s: 300
warning_signal: USR1
max_timeouts: 4
max_preemptions: 5
max_node_failures: 0
notify: https://ntfy.example/$TOPIC
sbatch: {mail-type: END, exclusive: true, nice: 100}
srun: {mpi: pmix}
"""


def profile(text: str, folder: Path) -> ClusterProfile:
    (folder / "site.yaml").write_text(text)
    return load_profile(folder / "site.yaml")


def test_reads_every_key(tmp_path: Path) -> None:
    assert profile(FULL, tmp_path).model_dump() == {
        "partition": "gpu",
        "account": "my_project",
        "qos": "normal",
        "constraint": "a100",
        "time": "01:00:00",
        "gpu_request": "gres",
        "gpu_type": "a100",
        "cpus_per_gpu": 8,
        "memory_gb_per_gpu": 32.0,
        "python": "/opt/venv/bin/python",
        "setup": ("module load cuda",),
        "code": "live",
        "network_interface": "ib0",
        "max_array_size": 500,
        "max_running": 8,
        "requeue": "chain",
        "warning_s": 300,
        "warning_signal": "USR1",
        "max_timeouts": 4,
        "max_preemptions": 5,
        "max_node_failures": 0,
        "notify": "https://ntfy.example/$TOPIC",
        "sbatch": {"mail-type": "END", "exclusive": True, "nice": 100},
        "srun": {"mpi": "pmix"},
    }


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("partition: gpu\npartiton: x", "2: partiton: unknown key 'partiton' (did you mean partition?)"),
        ("qos: a\nqos: b", "2: qos: key 'qos' is given twice (first on line 1; drop one)"),
        ("\ntime: 60", "2: time: time is 60, not a string (quote it: \"60\")"),
        ("time: 1h", "1: time: time is '1h', not a time limit (write MM, HH:MM:SS or D-HH:MM:SS, as for sbatch)"),
        ("time: 0", "1: time: time is 0, not a time limit (write MM, HH:MM:SS or D-HH:MM:SS, as for sbatch)"),
        ("cpus_per_gpu: true", "1: cpus_per_gpu: cpus_per_gpu is true, not an integer (CPU cores of each rank)"),
        ("cpus_per_gpu: 0", "1: cpus_per_gpu: cpus_per_gpu is 0; it must be at least 1 (CPU cores of each rank)"),
        ('cpus_per_gpu: "4"', "1: cpus_per_gpu: cpus_per_gpu is '4', not an integer (remove the quotes)"),
        (
            "memory_gb_per_gpu: 32G",
            "1: memory_gb_per_gpu: memory_gb_per_gpu is '32G', not a number (write a number of GB, for example 32)",
        ),
        (
            "gpu_request: gpu",
            "1: gpu_request: gpu_request is 'gpu'; choose gpus-per-node, gres or none (did you mean gpus-per-node?)",
        ),
        (
            "gpu_request: all",
            "1: gpu_request: gpu_request is 'all'; choose gpus-per-node, gres or none",
        ),
        # The hint quotes what was written, not the number that YAML reads.
        ("account: 0123", '1: account: account is 0123, not a string (quote it: "0123")'),
        ("partition: 1e3", '1: partition: partition is 1e3, not a string (quote it: "1e3")'),
        ("qos: True", '1: qos: qos is True, not a string (quote it: "True")'),
        ("constraint: +08", '1: constraint: constraint is +08, not a string (quote it: "+08")'),
        ("gpu_type: 010", '1: gpu_type: gpu_type is 010, not a string (quote it: "010")'),
        ("time: 090", '1: time: time is 090, not a string (quote it: "090")'),
        ("cpus_per_gpu: 4e0", "1: cpus_per_gpu: cpus_per_gpu is 4e0, not an integer (CPU cores of each rank)"),
        ("setup: [a, 007]", '1: setup: setup[1] is 007, not a string (quote it: "007")'),
        (
            "memory_gb_per_gpu: 1e300",
            "1: memory_gb_per_gpu: memory_gb_per_gpu is 1e300; it must be at most 1000000 (write a number of GB, for"
            " example 32)",
        ),
        (
            "python: $VENV/bin/python",
            "1: python: python is '$VENV/bin/python'; the variable $VENV is not expanded"
            " (write the value itself; only lines of setup are shell)",
        ),
        (
            "sbatch: {chdir: '${HOME}/x'}",
            "1: sbatch: sbatch.chdir is '${HOME}/x'; the variable ${HOME} is not expanded"
            " (write the value itself; only lines of setup are shell)",
        ),
        (
            'sbatch: {comment: "a\\nrm x"}',
            "1: sbatch: sbatch.comment is 'a\\nrm x', which has a line break or another control character"
            " (write it in one line)",
        ),
        (
            'account: "a\\0"',
            "1: account: account is 'a\\x00', which has a line break or another control character"
            " (write it in one line)",
        ),
        ("setup: [1]", '1: setup: setup[0] is 1, not a string (quote it: "1")'),
        (
            "qos: a\nsetup: module load cuda",
            "2: setup: setup is 'module load cuda', not a list"
            " (a list of shell lines that run before the training: module load, export HF_HOME=...)",
        ),
        (
            "sbatch: {--mail-type: END}",
            "1: sbatch: sbatch has the key '--mail-type' (write it without the leading dashes)",
        ),
        (
            'sbatch: {"comment=x\\nrm -r": 1}',
            "1: sbatch: sbatch has the key 'comment=x\\nrm -r' (write the name of an option: {mail-type: END})",
        ),
        (
            "sbatch: {ntasks_per_node: 3}",
            "1: sbatch: sbatch has the key 'ntasks_per_node'"
            " (at the top level of the sweep file, write allocations: [2x4], which means 2 nodes with 4 GPUs each)",
        ),
        ("sbatch: {cpus-per-task: 3}", "1: sbatch: sbatch has the key 'cpus-per-task' (did you mean cpus_per_gpu?)"),
        (
            "sbatch: {time: 3}",
            "1: sbatch: sbatch has the key 'time' (the profile has its own key for it: write it outside sbatch)",
        ),
        (
            "sbatch: {mail-type: [END, FAIL]}",
            "1: sbatch: sbatch.mail-type is ['END', 'FAIL'], not a string, an integer, a number or true or false"
            " (any other option of sbatch: {mail-type: END})",
        ),
        ("srun: {--mpi: pmix}", "1: srun: srun has the key '--mpi' (write it without the leading dashes)"),
        ("srun: {mpi pmix: 1}", "1: srun: srun has the key 'mpi pmix' (write the name of an option: {mpi: pmix})"),
        (
            "srun: {ntasks_per_node: 2}",
            "1: srun: srun has the key 'ntasks_per_node', which the plan sets"
            " (drop it: the ranks get what the job has)",
        ),
        (
            "srun: {container-image: $HOME/image.sqsh}",
            "1: srun: srun.container-image is '$HOME/image.sqsh'; the variable $HOME is not expanded"
            " (write the value itself; only lines of setup are shell)",
        ),
    ],
)  # fmt: skip
def test_a_profile_error_names_the_line(text: str, error: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        profile(text, tmp_path)
    assert str(caught.value) == f"{tmp_path}/site.yaml:{error}"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 5400), ("1:30", 90), ("01:00:00", 3600), ("2-12", 216000), ("2-12:30", 217800), ("0-00:00:01", 1)],
)
def test_reads_time_limits_as_sbatch_does(text: str, seconds: int) -> None:
    assert parse_time_s(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "1:2:3:4", "-5", "1-", "1d", "1.5", "UNLIMITED", " 60", "00:00:00"])
def test_another_text_is_no_time_limit(text: str) -> None:
    with pytest.raises(UserError):
        parse_time_s(text)


def test_rounds_time_up_to_minutes() -> None:
    assert ClusterProfile.model_validate({"time": "00:01:01"}).time_min == 2


def overridden(slurm: str, cluster: Mapping[str, Any]) -> ClusterProfile:
    text = f"name: s\nallocations: [1x1]\nbase: {{model: bert}}\nslurm:\n{slurm}"
    sweep = parse_sweep(parse_yaml(text, "s.yaml"), "/nowhere")
    return override(ClusterProfile.model_validate(cluster), sweep.slurm.for_all, lambda key: sweep.where("slurm", key))


def test_a_sweep_overrides_the_profile() -> None:
    """A key of the sweep replaces the key of the profile; only `sbatch` and `srun` are merged."""
    site = {
        "partition": "gpu",
        "qos": "high",
        "setup": ("module load a",),
        "sbatch": {"nice": 1, "exclusive": True},
        "srun": {"mpi": "pmix"},
    }
    changes = (
        "  qos: null\n  setup: [module load b]\n  sbatch: {exclusive: false, mail-type: END}\n  srun: {label: true}\n"
    )
    cluster = overridden(changes, site)
    assert cluster == ClusterProfile.model_validate(
        {
            "partition": "gpu",
            "setup": ("module load b",),
            "sbatch": {"nice": 1, "exclusive": False, "mail-type": "END"},
            "srun": {"mpi": "pmix", "label": True},
        }
    )


@pytest.mark.parametrize(
    ("slurm", "error"),
    [
        ("  qos: x\n  tyme: 1", "s.yaml:6: slurm.tyme: unknown key 'tyme' (did you mean time?)"),
        (
            "  time: soon",
            "s.yaml:5: slurm.time: time is 'soon', not a time limit (write MM, HH:MM:SS or D-HH:MM:SS, as for sbatch)",
        ),
        ("  account: 0123", 's.yaml:5: slurm.account: account is 0123, not a string (quote it: "0123")'),
        ("  setup: [00]", 's.yaml:5: slurm.setup: setup[0] is 00, not a string (quote it: "00")'),
        (
            "  sbatch: null",
            "s.yaml:5: slurm.sbatch: sbatch is null, not a mapping (any other option of sbatch: {mail-type: END})",
        ),
    ],
)
def test_a_slurm_section_error_names_the_line(slurm: str, error: str) -> None:
    with pytest.raises(UserError) as caught:
        overridden(slurm, {})
    assert str(caught.value) == error


def test_options_stay_as_written(tmp_path: Path) -> None:
    """The reservation 0123 is another one than 123."""
    text = 'sbatch: {reservation: 0123, nice: 10, comment: 1e3, hold: true, begin: 16:00, licenses: "07"}'
    options = {"reservation": "0123", "nice": 10, "comment": "1e3", "hold": True, "begin": "16:00", "licenses": "07"}
    assert profile(text, tmp_path).sbatch == options
    assert overridden(f"  {text}", {"sbatch": {"reservation": "x"}}).sbatch == options


@pytest.mark.parametrize("text", ["9" * 5000, "1-" + "9" * 5000, "\u0663"])
def test_odd_time_limit_is_one_short_line(text: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_time_s(text)
    assert len(str(caught.value)) < 400


def test_the_python_of_the_compute_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert (
        compute_python(ClusterProfile.model_validate({"python": "~/venv/bin/python"})) == "/home/me/venv/bin/python -P"
    )
    assert compute_python(ClusterProfile.model_validate({})) == compute_python(None) == f"{sys.executable} -P"


TOP_LEVEL = "at the top level of the sweep file, write allocations: [2x4], which means 2 nodes with 4 GPUs each"
MEMORY = "write memory_gb_per_gpu, a number of GB for each GPU"
LOGS = "drop it: each rank writes its log to logs/ in the folder of the sweep"
IN_SWEEP = "it is a key of the sweep file: put it at the top level"
LIST = "slurm_templates/slurm.yaml lists the keys; sbatch: {OPTION: VALUE} takes any other option"


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("cpus_per_task", "did you mean cpus_per_gpu?"),
        ("cpus-per-task", "did you mean cpus_per_gpu?"),
        ("mem", MEMORY),
        ("mem_per_gpu", MEMORY),
        ("time_limit", "did you mean time?"),
        ("walltime", "did you mean time?"),
        ("queue", "did you mean partition?"),
        ("gres", "write gpu_request: gres, which requests the GPUs of the allocation"),
        ("gpus_per_node", TOP_LEVEL),
        ("ntasks_per_node", TOP_LEVEL),
        ("nodes", TOP_LEVEL),
        ("job_name", "at the top level of the sweep file, write name, which also names the jobs"),
        ("output", LOGS),
        ("error", LOGS),
        ("array", "drop it: the runs become job arrays; max_running limits how many run at the same time"),
        ("mail_user", "write sbatch: {mail-user: VALUE}"),
        ("exclude", "write sbatch: {exclude: VALUE}"),
        ("lr", "it is a field of the runs: put it under base, or its values under axes"),
        ("learning_rate", "did you mean lr under base of the sweep file?"),
        ("tiem", "did you mean time?"),
        ("acount", "did you mean account?"),
        ("constrain", "did you mean constraint?"),
        ("gpu-type", "did you mean gpu_type?"),
        ("cpu_per_gpu", "did you mean cpus_per_gpu?"),
        ("memory_gb_per_gpus", "did you mean memory_gb_per_gpu?"),
        ("network_interfaces", "did you mean network_interface?"),
        ("max_runing", "did you mean max_running?"),
        ("account_name", f"closest: account; {LIST}"),
        ("seeds", IN_SWEEP),
        ("allocations", IN_SWEEP),
        ("allocation", "did you mean allocations at the top level of the sweep file?"),
        ("epoch", "did you mean epochs under base of the sweep file?"),
        ("cpus_per_node", "write cpus_per_gpu, the CPU cores of each rank"),
        ("time-min", "write sbatch: {time-min: VALUE}"),
        ("batch", LIST),
        ("network", LIST),
        ("cluster_constraint", LIST),
        ("signal", "write warning_s, the seconds between Slurm's warning and the time limit"),
    ],
)
def test_an_unknown_key_of_a_profile(key: str, hint: str, tmp_path: Path) -> None:
    error = f"unknown key {key!r} ({hint})"
    with pytest.raises(UserError) as caught:
        profile(f"{key}: 1\n", tmp_path)
    assert str(caught.value) == f"{tmp_path}/site.yaml:1: {key}: {error}"
    with pytest.raises(UserError) as caught:
        overridden(f"  {key}: 1\n", {})
    assert str(caught.value) == f"s.yaml:5: slurm.{key}: {error}"


@pytest.mark.parametrize("option", sorted(PLANNED_OPTIONS))
def test_an_option_of_the_plan_has_an_answer(option: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"sbatch has the key '{option}' \(.+\)$"):
        profile(f"sbatch: {{{option}: 1}}\n", tmp_path)
