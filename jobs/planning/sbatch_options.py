"""The options of sbatch: which ones the plan sets, and which SBATCH_ variables of the user hold for the others."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Mapping
from typing import Any

# Options that the plan sets itself. A second value would contradict the plan, or make it differ from the submission.
PLANNED_OPTIONS = frozenset({
    "nodes", "ntasks", "ntasks-per-node", "cpus-per-task", "gpus", "gpus-per-node", "gpus-per-task", "tres-per-task",
    "gres", "array", "job-name", "output", "error", "open-mode", "time", "partition", "account", "qos", "constraint",
    "requeue", "no-requeue", "signal",
})  # fmt: skip
# The keys of a profile with an option of the same meaning, and the variable that is their default.
USER_DEFAULTS = {
    "partition": "SBATCH_PARTITION", "account": "SBATCH_ACCOUNT", "qos": "SBATCH_QOS",
    "constraint": "SBATCH_CONSTRAINT", "time": "SBATCH_TIMELIMIT",
}  # fmt: skip

# The options of a job that waits for another one.
WAITING_OPTIONS = frozenset({"dependency", "kill-on-invalid-dep"})

_REQUEUE = frozenset({"requeue", "no-requeue"})  # options without a value

# A variable never sets these: the plan decides, sbatch must not wait, and sacct is asked about one cluster.
_NEVER = (PLANNED_OPTIONS - USER_DEFAULTS.keys() - _REQUEUE) | {"cpus-per-gpu", "wait", "clusters"}
# Variables that are not named after their option.
_OPTIONS = {
    "SBATCH_ARRAY_INX": "array",
    "SBATCH_MEM_PER_NODE": "mem",
    "SBATCH_TIMELIMIT": "time",
    "SBATCH_DEBUG": "verbose",
    "SBATCH_REQ_SWITCH": "switches",
    "SBATCH_WAIT4SWITCH": "switches",
}
MEMORY_OPTIONS = frozenset({"mem", "mem-per-cpu", "mem-per-gpu"})
# Each excludes the others.
_ALTERNATIVES = (MEMORY_OPTIONS, _REQUEUE)
_LINE = re.compile(r"^#SBATCH (--.*)$", re.MULTILINE)


def with_options(parameters: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of submitit's SlurmExecutor, with further options of sbatch.

    Example:
        >>> with_options({"nodes": 1, "additional_parameters": {"requeue": True}}, {"dependency": "afterany:7"})
        {'nodes': 1, 'additional_parameters': {'requeue': True, 'dependency': 'afterany:7'}}
    """
    return {**parameters, "additional_parameters": {**(parameters.get("additional_parameters") or {}), **options}}


def overruled_variables(environ: Mapping[str, str], script: str, options: Collection[str] = ()) -> frozenset[str]:
    """The SBATCH_ variables that must not reach sbatch. To sbatch, a variable is stronger than a line of the script.

    Args:
        environ: The environment of the user.
        script: The batch script.
        options: Further options that profile and sweep decide: those that they turn off.

    Returns:
        The variables of options that the plan, the profile or the sweep decides with another value.

    Example:
        >>> environ = {"SBATCH_ACCOUNT": "mine", "SBATCH_RESERVATION": "mine", "SBATCH_ARRAY_INX": "0-7"}
        >>> sorted(overruled_variables(environ, "#SBATCH --account=theirs"))
        ['SBATCH_ACCOUNT', 'SBATCH_ARRAY_INX']
    """
    # The plan shows the user's default of a key. Without it in the script, profile or sweep turn the option off.
    decided: dict[str, str | None] = dict.fromkeys(USER_DEFAULTS)
    decided |= {option.replace("_", "-"): None for option in options}
    for line in _LINE.findall(script):
        option, _, value = shlex.split(line)[0].removeprefix("--").partition("=")
        if option in _REQUEUE:
            value = environ.get(
                f"SBATCH_{option.upper().replace('-', '_')}", ""
            )  # whatever its value, it says the same
        decided[option] = value
    for alternatives in _ALTERNATIVES:
        if not alternatives.isdisjoint(decided):
            decided = dict.fromkeys(alternatives) | decided
    return frozenset(
        name
        for name, value in environ.items()
        if name.startswith("SBATCH_") and (_option(name) in _NEVER or decided.get(_option(name), value) != value)
    )


def _option(variable: str) -> str:
    """The option that a variable sets."""
    return _OPTIONS.get(variable) or variable.removeprefix("SBATCH_").lower().replace("_", "-")
