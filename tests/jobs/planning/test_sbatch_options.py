"""The user's SBATCH_ variables reach sbatch where profile, sweep and plan say nothing."""

from __future__ import annotations

import pytest

from jobs.planning.sbatch_options import overruled_variables

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
        "SBATCH_PARTITION", "SBATCH_QOS", "SBATCH_CONSTRAINT", "SBATCH_RESERVATION", "SBATCH_EXPORT", "SBATCH_HINT",
        "SBATCH_NO_REQUEUE", "SBATCH_REQUEUE", "SBATCH_GPU_BIND", "SBATCH_PROFILE", "SBATCH_OF_MY_OWN",
        "SBATCH_THREADS_PER_CORE", "SBATCH_REQ_SWITCH", "SBATCH_WAIT_ALL_NODES", "SBATCH_DISTRIBUTION",
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
        "SBATCH_ARRAY_INX", "SBATCH_GPUS", "SBATCH_GPUS_PER_NODE", "SBATCH_GPUS_PER_TASK", "SBATCH_GRES",
        "SBATCH_CPUS_PER_GPU", "SBATCH_JOB_NAME", "SBATCH_OUTPUT", "SBATCH_ERROR", "SBATCH_SIGNAL",
        # sbatch must return, and sacct is asked about this cluster.
        "SBATCH_WAIT", "SBATCH_CLUSTERS",
    ],
)  # fmt: skip
def test_the_plan_is_stronger(variable: str) -> None:
    assert overruled_variables({variable: "mine"}, SCRIPT) == {variable}


def test_an_equal_value_may_stay() -> None:
    assert overruled_variables({"SBATCH_ACCOUNT": "my project", "ACCOUNT": "x"}, SCRIPT) == frozenset()


def test_an_option_turned_off_stays_off() -> None:
    environ = {"SBATCH_REQUEUE": "1", "SBATCH_NO_REQUEUE": "1", "SBATCH_RESERVATION": "r", "SBATCH_NO_KILL": "1"}
    assert overruled_variables(environ, SCRIPT, ["requeue", "no_kill"]) == {
        "SBATCH_REQUEUE", "SBATCH_NO_REQUEUE", "SBATCH_NO_KILL"
    }  # fmt: skip
