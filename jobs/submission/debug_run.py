"""Runs one run of a submitted sweep again in this process, and says first what is not as in the recorded run."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from disttrain.config.command.command_config import is_command
from disttrain.errors import UserError
from disttrain.records.json_values import check_fields, damaged, read_object
from disttrain.records.record_files import RUN_NAME, decode, metrics_name
from disttrain.records.record_types import StartRecord
from disttrain.records.versions import versions
from jobs.local.debug import run_in_debugger, scratch_folder
from jobs.local.machine import gpu_model, this_machine
from jobs.planning.cluster import DEBUG, Cluster
from jobs.planning.plan import is_link, make_plan
from jobs.storage.code_snapshot import start_in_place
from jobs.storage.code_state import git_state
from jobs.storage.plan_check import PlannedRun
from jobs.storage.sweep_folder import SweepFolder, prepare_runs
from jobs.submission.messages import say
from jobs.submission.resend import run_spec

_START = b'{"kind": "start"'
_CPU = "CPU"


@dataclass(frozen=True)
class Setting:
    """What a run depends on besides its config. What is not known is None.

    Attributes:
        ranks: The number of ranks.
        host: The host of rank 0.
        device: The GPU of rank 0, or CPU.
        git: The commit and whether the checkout has uncommitted changes, as `git_state` returns them.
        versions: The versions of Python and of the packages.
    """

    ranks: int
    host: str | None = None
    device: str | None = None
    git: Mapping[str, Any] | None = None
    versions: Mapping[str, str] = field(default_factory=dict)


def debug_run(folder: SweepFolder, run_id: str, name: str) -> None:
    """Runs a run again with its recorded config, as one rank in this process, in a scratch folder.

    Args:
        folder: The folder of the sweep. Nothing in it is changed.
        run_id: The id of the run.
        name: The name of the run, for messages.

    Raises:
        UserError: The run was never submitted, cannot be run as one rank, or torch is missing.
    """
    # The files in place, not their copy: the user edits these.
    run = start_in_place(_read_run(folder.run(run_id) / RUN_NAME, name))
    if is_link(run):
        raise UserError(f"{name} times the link between ranks, and here is one rank", hint="choose another run")
    if not is_command(run) and find_spec("torch") is None:
        raise UserError("sweep debug trains in this process, and torch is not installed here", hint="use a GPU node")
    try:
        spec = run_spec(run, 0)
    except TypeError as error:
        raise UserError(f"{name} was planned by another release: {error}", hint="use that release") from None
    plan = make_plan(folder.sweep_name, [spec], Cluster(DEBUG, "debug"), scratch_folder(folder.sweep_name))
    scratch = SweepFolder(plan.folder)
    scratch.create()
    prepare_runs(scratch, [run], run.get("import_path") or (), code={})
    say(f"debug: {name} as one rank, in {scratch.run(run_id)}")
    device = None if is_command(run) else run["train"].get("device")
    for line in differences(_recorded(folder.run(run_id), run), _here(device)):
        say(f"  {line}")
    run_in_debugger(plan, plan.runs)


def _read_run(path: Path, name: str) -> dict[str, Any]:
    """The content of a run.json."""
    run = read_object(path)
    if run is None:
        hint = "sweep submit FILE --cluster debug runs every run of a file here"
        raise UserError(f"{name} was never submitted: it has no {path.name}", hint=hint)
    try:
        check_fields(PlannedRun, run)
    except ValueError as error:
        raise damaged(path, error) from None
    return run


def _recorded(run_dir: Path, run: Mapping[str, Any]) -> Setting:
    """The setting of the recorded run: of its last start, or of its submission if it never started."""
    start = _last_start(run_dir / metrics_name(0))
    if start is None:
        return Setting(run["world_size"], git=run.get("git"), versions=run.get("versions") or {})
    device = _CPU if start.device == "cpu" else start.device_name
    return Setting(run["world_size"], start.host, device, run.get("git"), start.versions)


def _last_start(path: Path) -> StartRecord | None:
    """The last record of a start in a rank's records; None if there is none that this release can read."""
    if not path.is_file():
        return None
    last = None
    with path.open("rb") as file:
        for line in file:
            if line.startswith(_START):
                last = line
    try:
        record = decode(last or b"")
    except ValueError:
        return None
    return record if isinstance(record, StartRecord) else None


def _here(device: str | None) -> Setting:
    """The setting of this process.

    Args:
        device: The device of the config.
    """
    gpus = this_machine(os.environ).gpus
    model: str | None = _CPU
    if gpus and device != "cpu":
        model = gpu_model(gpus[0])
    return Setting(1, socket.gethostname(), model, git_state(Path.cwd()), versions())


def differences(recorded: Setting, here: Setting) -> list[str]:
    """A line for each thing that is known not to be as in the recorded run.

    Example:
        >>> differences(Setting(4, "n1", "NVIDIA H200"), Setting(1, "login1", "CPU"))
        ['ranks: 4 recorded, 1 here', 'host: n1 recorded, login1 here', 'device: NVIDIA H200 recorded, CPU here']
    """
    pairs: dict[str, tuple[str | None, str | None]] = {
        "ranks": (str(recorded.ranks), str(here.ranks)),
        "host": (recorded.host, here.host),
        "device": (recorded.device, here.device),
    }
    pairs |= {name: (text, here.versions.get(name, "not installed")) for name, text in recorded.versions.items()}
    lines = [
        f"{name}: {before} recorded, {now} here"
        for name, (before, now) in pairs.items()
        if before is not None and now is not None and before != now
    ]
    code = (_code_text(recorded.git), _code_text(here.git))
    # Uncommitted changes may be others, also of the same commit.
    if recorded.git is not None and (code[0] != code[1] or recorded.git.get("dirty")):
        lines.append(f"code: {code[0]} recorded, {code[1]} here")
    return lines


def _code_text(git: Mapping[str, Any] | None) -> str:
    """A state of the code as text.

    Example:
        >>> _code_text({"commit": "c" * 40, "dirty": True}), _code_text(None)
        ('commit cccccccccccc with uncommitted changes', 'no checkout')
    """
    if git is None:
        return "no checkout"
    text = f"commit {str(git.get('commit'))[:12]}"
    if git.get("dirty"):
        text += " with uncommitted changes"
    return text
