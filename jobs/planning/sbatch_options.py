"""The options of sbatch and srun: which ones the plan sets, and which SBATCH_ variables hold for the others."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Mapping
from typing import Any

from disttrain.config.synonyms import Place, synonym_hint
from disttrain.errors import UserError, shorten

# Options that the plan sets itself. A second value would contradict the plan, or make it differ from the submission.
PLANNED_OPTIONS = frozenset({
    "nodes", "ntasks", "ntasks-per-node", "cpus-per-task", "gpus", "gpus-per-node", "gpus-per-task", "tres-per-task",
    "gres", "array", "job-name", "output", "error", "open-mode", "time", "partition", "account", "qos", "constraint",
    "requeue", "no-requeue", "signal",
})  # fmt: skip
# Of srun, the plan also sets these.
PLANNED_SRUN_OPTIONS = PLANNED_OPTIONS | {"c", "n", "N", "export", "input", "kill-on-bad-exit", "unbuffered", "wait"}
# srun ends the step this long after the first rank has ended without an error. The other ranks end almost at the same
# time.
_WAIT_FOR_OTHER_RANKS_S = 120
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
_OPTION = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_LINE = re.compile(r"^#SBATCH (--.*)$", re.MULTILINE)


def with_options(parameters: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of submitit's SlurmExecutor, with further options of sbatch.

    Example:
        >>> with_options({"nodes": 1, "additional_parameters": {"requeue": True}}, {"dependency": "afterany:7"})
        {'nodes': 1, 'additional_parameters': {'requeue': True, 'dependency': 'afterany:7'}}
    """
    return {**parameters, "additional_parameters": {**(parameters.get("additional_parameters") or {}), **options}}


def check_sbatch_options(options: Collection[str], own_keys: Collection[str], where: str) -> None:
    """Checks the names of the options that a profile passes to sbatch.

    Args:
        options: The names.
        own_keys: The keys of a profile.
        where: The place of the options, for errors.

    Raises:
        UserError: A name is not one of an option, or the plan sets the option.
    """
    _check_names(options, "sbatch", "{mail-type: END}", where)
    for option in options:
        message = f"sbatch has the key {shorten(repr(option))}"
        if option in ("clusters", "cluster", "M"):
            # The numbers of jobs are those of one cluster: all later commands ask the cluster of this host.
            hint = "submit from a login node of that cluster"
            raise UserError(f"{message}, but jobs go to the cluster of this host", where=where, hint=hint)
        if option.replace("_", "-") in PLANNED_OPTIONS:
            hint = "the profile has its own key for it: write it outside sbatch"
            if option.replace("-", "_") not in own_keys:
                hint = synonym_hint(option, Place.SLURM)
            raise UserError(message, where=where, hint=hint)


def check_srun_options(options: Collection[str], where: str) -> None:
    """Checks the names of the options that a profile passes to srun.

    Raises:
        UserError: A name is not one of an option, or the plan sets the option.
    """
    _check_names(options, "srun", "{mpi: pmix}", where)
    for option in options:
        if option.replace("_", "-") in PLANNED_SRUN_OPTIONS:
            message = f"srun has the key {shorten(repr(option))}, which the plan sets"
            raise UserError(message, where=where, hint="drop it: the ranks get what the job has")


def _check_names(options: Collection[str], key: str, example: str, where: str) -> None:
    for option in options:
        message = f"{key} has the key {shorten(repr(option))}"
        if option.startswith("-"):
            raise UserError(message, where=where, hint="write it without the leading dashes")
        if not _OPTION.fullmatch(option):
            raise UserError(message, where=where, hint=f"write the name of an option: {example}")


def srun_arguments(cpus: int, options: Mapping[str, str | int | float | bool]) -> list[str]:
    """The arguments of srun.

    Args:
        cpus: The CPU cores of each task.
        options: Further options; true has no value, and false is left out.

    Example:
        >>> srun_arguments(4, {"mpi": "pmix", "container-writable": True})[5:]
        ['--mpi=pmix', '--container-writable']
    """
    return [
        # Slurm 22.05 and 23.02 do not pass --cpus-per-task to srun: each rank would get one core.
        "-c",
        str(cpus),
        "--kill-on-bad-exit=1",
        f"--wait={_WAIT_FOR_OTHER_RANKS_S}",
        "--export=ALL",  # with SBATCH_EXPORT=NONE, srun would not pass on what `setup` and submitit set
        *(
            f"--{name}" if value is True else f"--{name}={value}"
            for name, value in options.items()
            if value is not False
        ),
    ]


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
