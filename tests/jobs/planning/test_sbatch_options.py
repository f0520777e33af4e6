"""The user's SBATCH_ variables reach sbatch where profile, sweep and plan say nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.planning.cluster import find_cluster
from jobs.planning.expand import expand
from jobs.planning.plan import make_plan
from jobs.planning.sbatch_options import USER_DEFAULTS, overruled_variables, srun_arguments
from jobs.planning.sweep_file import parse_sweep
from jobs.planning.yaml_file import parse_yaml

SCRIPT = """\
#!/bin/bash

# Parameters
#SBATCH --account='my project'
#SBATCH --exclusive
#SBATCH --mem=100M
#SBATCH --nodes=2
#SBATCH --open-mode=append
#SBATCH --time=60
#SBATCH --wckey=w

# command
echo '#SBATCH --reservation=x'
"""


@pytest.mark.parametrize(
    "variable",
    [
        "SBATCH_RESERVATION", "SBATCH_EXPORT", "SBATCH_HINT", "SBATCH_NO_REQUEUE", "SBATCH_REQUEUE", "SBATCH_GPU_BIND",
        "SBATCH_PROFILE", "SBATCH_OF_MY_OWN", "SBATCH_THREADS_PER_CORE", "SBATCH_REQ_SWITCH", "SBATCH_WAIT_ALL_NODES",
        "SBATCH_DISTRIBUTION",
    ],
)  # fmt: skip
def test_a_default_of_the_user_holds(variable: str) -> None:
    assert overruled_variables({variable: "mine"}, SCRIPT) == frozenset()


@pytest.mark.parametrize(
    "variable",
    [
        # The script says something else.
        "SBATCH_ACCOUNT", "SBATCH_TIMELIMIT", "SBATCH_MEM_PER_NODE", "SBATCH_MEM_PER_CPU", "SBATCH_MEM_PER_GPU",
        "SBATCH_EXCLUSIVE", "SBATCH_WCKEY", "SBATCH_OPEN_MODE",
        # The plan decides, whether or not the script has the option.
        "SBATCH_ARRAY_INX", "SBATCH_GPUS", "SBATCH_GPUS_PER_NODE", "SBATCH_GPUS_PER_TASK",
        "SBATCH_TRES_PER_TASK", "SBATCH_GRES", "SBATCH_CPUS_PER_GPU", "SBATCH_JOB_NAME", "SBATCH_OUTPUT",
        "SBATCH_ERROR", "SBATCH_SIGNAL",
        # sbatch must return, and sacct is asked about this cluster.
        "SBATCH_WAIT", "SBATCH_CLUSTERS",
    ],
)  # fmt: skip
def test_the_plan_is_stronger(variable: str) -> None:
    assert overruled_variables({variable: "mine"}, SCRIPT) == {variable}


@pytest.mark.parametrize("key", USER_DEFAULTS)
@pytest.mark.parametrize("profile", ["gpu_request: none", "{}: null", "{}: theirs"])
def test_what_the_script_shows_is_sent(profile: str, key: str, tmp_path: Path) -> None:
    """A default of the user is in the script, or it does not reach sbatch."""
    if key == "time":  # it always has a value
        profile = profile.replace("null", '"30"').replace("theirs", '"30"')
    (tmp_path / "site.yaml").write_text(profile.format(key) + "\n")
    environ = {USER_DEFAULTS[key]: "60"}
    cluster = find_cluster("./site.yaml", environ, tmp_path)
    runs = expand(parse_sweep(parse_yaml("name: s\nallocations: [1x1]\nbase: {model: bert}\n", "s.yaml"), "/nowhere"))
    plan = make_plan("s", runs, cluster, Path("/runs"))
    script = plan.script(plan.groups[0])
    shows_default = f"#SBATCH --{key}=60\n" in script
    assert shows_default == (profile == "gpu_request: none")
    reaches_sbatch = not overruled_variables(environ, script)
    assert reaches_sbatch == shows_default


def test_an_equal_value_may_stay() -> None:
    assert overruled_variables({"SBATCH_ACCOUNT": "my project", "ACCOUNT": "x"}, SCRIPT) == frozenset()


@pytest.mark.parametrize(
    ("line", "overruled"), [("--requeue", "SBATCH_NO_REQUEUE"), ("--no-requeue", "SBATCH_REQUEUE")]
)
def test_the_plan_decides_on_a_requeue(line: str, overruled: str) -> None:
    environ = {"SBATCH_REQUEUE": "1", "SBATCH_NO_REQUEUE": "1"}
    assert overruled_variables(environ, f"#SBATCH {line}\n") == {overruled}


def test_an_option_turned_off_stays_off() -> None:
    environ = {"SBATCH_REQUEUE": "1", "SBATCH_NO_REQUEUE": "1", "SBATCH_RESERVATION": "r", "SBATCH_NO_KILL": "1"}
    assert overruled_variables(environ, SCRIPT, ["requeue", "no_kill"]) == {
        "SBATCH_REQUEUE", "SBATCH_NO_REQUEUE", "SBATCH_NO_KILL"
    }  # fmt: skip


def test_further_options_of_srun_are_last() -> None:
    """A sweep turns an option of the profile off with false."""
    options: dict[str, str | int | float | bool] = {
        "mpi": "pmix",
        "label": True,
        "container-writable": False,
        "cpu-freq": 2,
    }
    assert srun_arguments(2, options)[-3:] == ["--mpi=pmix", "--label", "--cpu-freq=2"]
    assert srun_arguments(2, {}) == ["-c", "2", "--kill-on-bad-exit=1", "--wait=120", "--export=ALL"]
