"""The cluster profile: where runs are sent, how a profile is found, and how a sweep's `slurm` overrides it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from disttrain.errors import UserError
from jobs.planning.yaml_file import did_you_mean, load_yaml

LOCAL = "local"
DEBUG = "debug"
GENERIC = "slurm"  # the profile of slurm_templates that names nothing but Slurm itself

# Options that the plan sets itself: given once more they would contradict it, or part what it says from what is sent.
_PLANNED_OPTIONS = frozenset({
    "nodes", "ntasks", "ntasks-per-node", "cpus-per-task", "gpus", "gpus-per-node", "gpus-per-task", "gres", "array",
    "job-name", "output", "error", "open-mode", "time", "partition", "account", "qos", "constraint",
})  # fmt: skip

_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<rest>\d+(?::\d+){0,2})")

Line = Annotated[str, Field(min_length=1)]


class ClusterProfile(BaseModel):
    """One cluster as its users see it; every field is a key of a profile, and of a sweep's `slurm`."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    partition: Line | None = None
    account: Line | None = None
    qos: Line | None = None
    constraint: Line | None = None
    time: Line = Field("01:00:00", description="limit of one run, as sbatch takes it: MM, HH:MM:SS, D-HH:MM:SS")
    gpu_request: Literal["gpus-per-node", "gres", "none"] = "gpus-per-node"
    gpu_type: Line | None = None
    cpus_per_gpu: int = Field(4, ge=1)
    memory_gb_per_gpu: float | None = Field(None, gt=0)
    python: Line | None = Field(None, description="interpreter of the compute nodes; default: the one that runs sweep")
    setup: tuple[Line, ...] = Field((), description="shell lines before the run: module load, export HF_HOME=...")
    network_interface: Line | None = Field(
        None,
        description="for NCCL and gloo; default: NCCL's choice, gloo's by the route",
    )
    max_array_size: int = Field(1000, ge=1, description="tasks of one job array, at most MaxArraySize - 1")
    max_running: int | None = Field(None, ge=1, description="tasks of one array that run at once")
    sbatch: dict[str, str | int | float | bool] = Field(
        default_factory=dict, description="any other option of sbatch: {mail-type: END}"
    )

    @property
    def time_min(self) -> int:
        """The time limit in whole minutes, rounded up, as Slurm does."""
        return -(-parse_time_s(self.time) // 60)


def parse_time_s(text: str) -> int:
    """Seconds of a Slurm time limit.

    Raises:
        UserError: It is none of sbatch's forms, or zero.

    Example:
        >>> parse_time_s("90"), parse_time_s("1:30"), parse_time_s("01:00:00"), parse_time_s("2-12")
        (5400, 90, 3600, 216000)
    """
    match = _TIME.fullmatch(text)
    seconds = 0
    if match:
        parts = [int(part) for part in match["rest"].split(":")]
        if match["days"] is not None:  # D-HH, D-HH:MM, D-HH:MM:SS
            hours, minutes, rest = [*parts, 0, 0][:3]
            seconds = int(match["days"]) * 86400 + hours * 3600 + minutes * 60 + rest
        else:  # MM, MM:SS, HH:MM:SS
            hours, minutes, rest = {1: [0, *parts, 0], 2: [0, *parts], 3: parts}[len(parts)]
            seconds = hours * 3600 + minutes * 60 + rest
    if seconds == 0:
        raise UserError(f"time {text!r} is not a time limit", hint="write MM, HH:MM:SS or D-HH:MM:SS, as for sbatch")
    return seconds


def load_profile(path: Path) -> ClusterProfile:
    """The profile of a file.

    Raises:
        UserError: The file is missing or holds a mistake; names its line.
    """
    document = load_yaml(path)
    return _validate(document.value, lambda key: document.where(key))


def override(cluster: ClusterProfile, changes: Mapping[str, Any], where: Callable[[str], str]) -> ClusterProfile:
    """The profile with a sweep's `slurm` laid over it.

    Args:
        cluster: The profile.
        changes: Keys of `ClusterProfile`; `sbatch` and nothing else is merged, key by key.
        where: Gives the place of a key, for errors.

    Raises:
        UserError: A key or value that a profile does not take.
    """
    values = cluster.model_dump() | dict(changes)
    if isinstance(changes.get("sbatch"), dict):
        values["sbatch"] = cluster.sbatch | changes["sbatch"]
    return _validate(values, where)


def _validate(values: Mapping[str, Any], where: Callable[[str], str]) -> ClusterProfile:
    for key in values:
        if key not in ClusterProfile.model_fields:
            raise UserError(
                f"unknown key {key!r}", where=where(key), hint=did_you_mean(key, ClusterProfile.model_fields)
            )
    # Strict mode takes no list for a tuple, and YAML has no tuples.
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    try:
        cluster = ClusterProfile.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = str(first["loc"][0])
        told = first["msg"].replace("valid tuple", "list")
        message = f"{key} is {first['input']!r}: {told[:1].lower()}{told[1:]}"
        number = first["type"] == "string_type" and isinstance(first["input"], int | float)
        hint = f'quote it: "{first["input"]}"' if number else ClusterProfile.model_fields[key].description
        raise UserError(message, where=where(key), hint=hint) from None
    for option in cluster.sbatch:
        if option.startswith("-"):
            raise UserError(f"sbatch has the key {option!r}", where=where("sbatch"), hint="without the dashes in front")
        if option.replace("_", "-") in _PLANNED_OPTIONS:
            hint = "it follows from the allocation, or has a key of its own in the profile"
            raise UserError(f"sbatch has the key {option!r}", where=where("sbatch"), hint=hint)
    try:
        parse_time_s(cluster.time)
    except UserError as error:
        raise UserError(error.message, where=where("time"), hint=error.hint) from None
    return cluster


def find_profile(
    name: str | None,
    environ: Mapping[str, str],
    working_dir: Path,
    which: Callable[[str], str | None] = shutil.which,
) -> tuple[str, ClusterProfile | None]:
    """The cluster that ``--cluster`` means.

    Args:
        name: `local`, `debug`, the path of a profile, or a profile's name; None: ``$SWEEP_CLUSTER``, else the generic
            Slurm profile where sbatch is on PATH, else `local`.
        environ: The environment.
        working_dir: Where ``clusters/`` is looked for first.
        which: Finds a program.

    Returns:
        (name, profile); no profile for `local` and `debug`.

    Raises:
        UserError: There is no such profile; names the places that were looked at.
    """
    wanted = name or environ.get("SWEEP_CLUSTER") or (GENERIC if which("sbatch") else LOCAL)
    if wanted in (LOCAL, DEBUG):
        return wanted, None
    if wanted.endswith((".yaml", ".yml")) or "/" in wanted:
        path = (working_dir / Path(wanted).expanduser()).resolve()
        if path.stem in (LOCAL, DEBUG):
            raise UserError(f"the profile {wanted!r} has the name of an executor", hint="rename the file")
        return path.stem, load_profile(path)
    folders = profile_folders(environ, working_dir)
    for folder in folders:
        path = folder / f"{wanted}.yaml"
        if path.is_file():
            return wanted, load_profile(path)
    known = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
    raise UserError(
        f"no cluster profile {wanted!r} in {', '.join(map(str, folders))}",
        where="--cluster" if name else "$SWEEP_CLUSTER",
        hint=f"known: {', '.join([LOCAL, DEBUG, *known])}",
    )


def profile_folders(environ: Mapping[str, str], working_dir: Path) -> Sequence[Path]:
    """Where a profile's name is looked up, in this order: ./clusters, the user's own, those that come with the tool."""
    config = environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    # A namespace package, so that the same lookup works from a wheel, an editable install and a checkout.
    spec = find_spec("slurm_templates")
    shipped = (spec.submodule_search_locations or ()) if spec else ()
    return [
        working_dir / "clusters",
        Path(config) / "sweep" / "clusters",
        *(Path(folder) for folder in shipped if os.path.isdir(folder)),
    ]


def compute_python(cluster: ClusterProfile | None) -> str:
    """The interpreter that runs the ranks, as a shell takes it.

    With -P, or a folder or file of the user's named `jobs` in the working directory would be imported in place of ours.
    """
    # Quoted, so the shell would not expand a ~.
    return f"{shlex.quote(os.path.expanduser((cluster.python if cluster else None) or sys.executable))} -P"
