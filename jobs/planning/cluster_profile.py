"""The cluster profile: its keys, and how a sweep's `slurm` section overrides it."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from disttrain.config.paths import find_variable
from disttrain.config.synonyms import Place
from disttrain.config.train_config import field_names
from disttrain.config.unknown_key import suggest_key
from disttrain.config.value_errors import describe_value_error
from disttrain.config.yaml_nodes import dotted
from disttrain.errors import UserError, shorten
from disttrain.records.lifecycle.attempt_log import Requeue, ResumePolicy, WarningSignal
from jobs.planning.sbatch_options import check_sbatch_options, check_srun_options
from jobs.planning.yaml_file import Document, load_yaml

# The top-level keys of a sweep file. They are here because a profile answers one that is written under slurm.
SECTIONS = (
    "name", "allocations", "command", "flags", "switches", "launcher", "smoke", "base", "axes", "zip", "exclude",
    "include", "seeds", "measure_link", "slurm",
)  # fmt: skip

_TIME = re.compile(r"(?:(?P<days>[0-9]{1,9})-)?(?P<rest>[0-9]{1,9}(?::[0-9]{1,9}){0,2})")

# The keys whose values are options of a command of Slurm.
_OPTION_KEYS = ("sbatch", "srun")

Line = Annotated[str, Field(min_length=1)]
Options = dict[str, str | int | float | bool]

# Whether a run starts in a copy of the user's code, or the files as they are when it starts.
CodeRule = Literal["snapshot", "live"]


class ClusterProfile(BaseModel):
    """One cluster from its users' view. Each field is a key of a profile and of a sweep's `slurm` section."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    partition: Line | None = Field(None, description="partition of the jobs; default: that of the site")
    account: Line | None = Field(None, description="account that the jobs are charged to; default: that of the user")
    qos: Line | None = Field(None, description="QOS of the jobs; default: that of the account")
    constraint: Line | None = Field(None, description="features that the nodes must have, as for sbatch")
    time: Line = Field("01:00:00", description="time limit of one run in sbatch's format: MM, HH:MM:SS or D-HH:MM:SS")
    gpu_request: Literal["gpus-per-node", "gres", "none"] = Field(
        "gpus-per-node",
        # Not `description`, which errors print: the names say enough there.
        json_schema_extra={"description": "how GPUs are requested; none: the partition includes them, or none is used"},
    )
    gpu_type: Line | None = Field(None, description="type of the GPUs, as Slurm names it: a100")
    cpus_per_gpu: int = Field(4, ge=1, description="CPU cores of each rank")
    memory_gb_per_gpu: float | None = Field(None, gt=0, le=1e6, description="write a number of GB, for example 32")
    python: Line | None = Field(
        None, description="Python interpreter on the compute nodes; default: the one that runs sweep"
    )
    setup: tuple[Line, ...] = Field(
        (), description="a list of shell lines that run before the training: module load, export HF_HOME=..."
    )
    code: CodeRule | None = Field(
        None,
        description="whether runs start in a copy of your code that submit makes (snapshot), or in your files as they"
        " are when a run starts (live); default: snapshot for your own script, live for your own model",
    )
    network_interface: Line | None = Field(
        None,
        description="network interface for NCCL and gloo; default: NCCL chooses, gloo follows the route",
    )
    max_array_size: int = Field(1000, ge=1, description="tasks of one job array, at most MaxArraySize - 1")
    max_running: int | None = Field(None, ge=1, description="tasks of one job array that run at the same time")
    requeue: Requeue = Field(
        "slurm",
        description="how a run resumes after a time limit or a preemption: slurm (its job requeues itself), chain (its"
        " job submits the next one) or off (the next sweep submit resumes it)",
    )
    warning_s: int = Field(
        120, ge=10, le=65535, description="seconds between Slurm's warning, at which a run saves, and the time limit"
    )
    warning_signal: WarningSignal = Field(
        "USR2", description="signal that your own script gets at the warning; the runs of our models save by themselves"
    )
    max_timeouts: int = Field(10, ge=0, description="time limits after which a run still resumes by itself")
    max_preemptions: int = Field(20, ge=0, description="preemptions after which a run still resumes by itself")
    max_node_failures: int = Field(3, ge=0, description="node failures after which a run still resumes by itself")
    notify: Line | None = Field(
        None,
        description="where one line of JSON is sent at the first failure and at the end of a sweep: a URL, in which"
        " $NAME is a variable of the environment, or a shell command that reads the line",
    )
    sbatch: Options = Field(default_factory=dict, description="any other option of sbatch: {mail-type: END}")
    srun: Options = Field(
        default_factory=dict, description="any other option of srun, which starts the ranks: {mpi: pmix}"
    )

    @property
    def time_min(self) -> int:
        """The time limit in minutes, rounded up as in Slurm."""
        return -(-parse_time_s(self.time) // 60)

    @property
    def excluded(self) -> str | None:
        """The nodes that its jobs never get."""
        return str(self.sbatch["exclude"]) if self.sbatch.get("exclude") else None

    @property
    def resume_policy(self) -> ResumePolicy:
        """How the runs resume. With a short time limit, the warning comes in its last quarter."""
        time_limit_s = 60 * self.time_min
        return ResumePolicy(
            self.requeue,
            time_limit_s,
            min(self.warning_s, time_limit_s // 4),
            self.max_timeouts,
            self.max_preemptions,
            self.max_node_failures,
            self.warning_signal,
        )


def parse_time_s(text: str) -> int:
    """The seconds of a Slurm time limit.

    Raises:
        UserError: The text is not a time limit of sbatch, or it is zero.

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
        hint = "write MM, HH:MM:SS or D-HH:MM:SS, as for sbatch"
        raise UserError(f"time is {shorten(repr(text))}, not a time limit", hint=hint)
    return seconds


def load_profile(path: Path) -> ClusterProfile:
    """Reads the profile in a file.

    Raises:
        UserError: The file is missing or contains a mistake; the error names the line.
    """
    document = load_yaml(path)
    return ClusterProfile.model_validate(check_section(document))


def check_section(document: Document, *keys: str, without: Collection[str] = ()) -> dict[str, Any]:
    """The keys and values of a profile in a YAML file: of a complete one, or of the `slurm` section of a sweep.

    A number among the options of sbatch and srun stays the text that was written: 0123 is another reservation than 123.

    Args:
        document: The file.
        keys: The place of the mapping.
        without: Keys of the mapping that are not the profile's.

    Raises:
        UserError: A profile does not have a key, or does not accept its value; the error names the line.
    """
    values = {key: value for key, value in document.get_mapping(*keys).items() if key not in without}
    for key in _OPTION_KEYS:
        if isinstance(values.get(key), dict):
            values[key] = {
                name: _as_written(value, document.written(*keys, key, name)) for name, value in values[key].items()
            }
    _validate(values, lambda key: document.where(*keys, key), lambda *inner: document.written(*keys, *inner))
    return {**values, **_tuples(values)}


def _as_written(value: Any, text: str | None) -> Any:
    """The value of an option, or its text if that says more: 0123, 1e3."""
    if text is None or text == str(value) or isinstance(value, bool | None):
        return value
    return text


def override(cluster: ClusterProfile, changes: Mapping[str, Any], where: Callable[[str], str]) -> ClusterProfile:
    """The profile with the values of a sweep's `slurm` section.

    Args:
        cluster: The profile.
        changes: Keys of `ClusterProfile` with new values. `sbatch` and `srun` are merged option by option; every other
            key is replaced.
        where: A function that returns the place of a key, for errors.

    Raises:
        UserError: A profile does not have this key or does not accept this value.
    """
    values = cluster.model_dump() | dict(changes)
    for key in _OPTION_KEYS:
        if isinstance(changes.get(key), dict):
            values[key] = getattr(cluster, key) | changes[key]
    return _validate(values, where)


def _validate(
    values: Mapping[str, Any],
    where: Callable[[str], str],
    written: Callable[..., str | None] = lambda *_: None,
) -> ClusterProfile:
    """The profile with these values; `where` has the place of a key, `written` the text of the value at some keys."""
    for key in values:
        if key not in ClusterProfile.model_fields:
            elsewhere = {Place.BASE: field_names(), Place.TOP: SECTIONS}
            hint = suggest_key(key, ClusterProfile.model_fields, Place.SLURM, elsewhere)
            raise UserError(f"unknown key {key!r}", where=where(key), hint=hint)
    try:
        cluster = ClusterProfile.model_validate({**values, **_tuples(values)})
    except ValidationError as error:
        raise _value_error(error.errors(include_url=False), where, written) from None
    check_sbatch_options(cluster.sbatch, ClusterProfile.model_fields, where("sbatch"))
    check_srun_options(cluster.srun, where("srun"))
    _check_texts(cluster, where)
    _check_notify(cluster, where)
    try:
        parse_time_s(cluster.time)
    except UserError as error:
        raise UserError(error.message, where=where("time"), hint=error.hint) from None
    return cluster


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """The lists as tuples: strict mode does not accept a list for a tuple, and YAML has no tuples."""
    return {key: tuple(value) for key, value in values.items() if isinstance(value, list)}


def _value_error(
    errors: Sequence[ErrorDetails], where: Callable[[str], str], written: Callable[..., str | None]
) -> UserError:
    """The error for a value that pydantic did not accept."""
    key, *inner = errors[0]["loc"]
    name = str(key)
    if name in ("setup", *_OPTION_KEYS):  # their items have names
        name = dotted((name, *inner[:1]))
    text = written(key, *inner[:1])
    description = ClusterProfile.model_fields[str(key)].description or ""
    message, hint = describe_value_error(name, errors, description, text)
    value = errors[0]["input"]
    if key == "time" and isinstance(value, int | float):
        try:
            parse_time_s(text or str(value))
        except UserError as error:  # quotes would not make it a time limit
            message, hint = f"time is {text or value}, not a time limit", error.hint or ""
    return UserError(message, where=where(str(key)), hint=hint)


def _check_texts(cluster: ClusterProfile, where: Callable[[str], str]) -> None:
    """Checks that no value needs a shell, or breaks its line in the batch script. Only lines of `setup` are shell."""
    texts = {key: (key, value) for key, value in cluster if isinstance(value, str)}
    for key in _OPTION_KEYS:
        texts |= {dotted((key, name)): (key, str(value)) for name, value in getattr(cluster, key).items()}
    for name, (key, value) in texts.items():
        variable = find_variable(value)
        if variable and name not in ("sbatch.comment", "notify"):
            message = f"{name} is {shorten(repr(value))}; the variable {variable} is not expanded"
            raise UserError(message, where=where(key), hint="write the value itself; only lines of setup are shell")
        if not value.isprintable():
            message = f"{name} is {shorten(repr(value))}, which has a line break or another control character"
            raise UserError(message, where=where(key), hint="write it in one line")


def _check_notify(cluster: ClusterProfile, where: Callable[[str], str]) -> None:
    """Checks that the address of notifications has no password: profiles are shared, and request.json is a file."""
    if cluster.notify is not None and re.match(r"https?://[^/@]*:[^/@$]+@", cluster.notify):
        message = "notify is an address with a password in it"
        raise UserError(
            message, where=where("notify"), hint="write $NAME in its place, and export NAME before sweep submit"
        )
