"""What every command needs in plan.json: without it, the file is damaged."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, get_args

from disttrain.config.command.command_config import SECTION, is_command
from disttrain.errors import UserError, shorten
from disttrain.records.json_values import check_fields
from jobs.planning.allocation import Allocation
from jobs.planning.cluster import Kind

RUN_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")  # it is a folder's name
_MOST_RANKS = 10**6


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """The needed part of a run."""

    run_id: str
    allocation: str
    world_size: int
    point: dict[str, Any]
    asked: dict[str, Any] | None = None
    train: dict[str, Any]
    script: dict[str, Any] | None = None
    dropped: bool = False


@dataclass(frozen=True, kw_only=True)
class _Script:
    """The needed part of the section `script` of a command's run."""

    flags: str
    switches: tuple[str, ...]
    launcher: str
    working_dir: str
    extra_arguments: str = ""
    stop_after_s: float | None = None


@dataclass(frozen=True)
class StoredPlan:
    """The content of a plan.json.

    Attributes:
        sweep: The name of the sweep and of its jobs.
        cluster: The name of the cluster.
        kind: The kind of the cluster.
        runs: The runs, in order, as `plan.run_json` wrote them; a dropped run also has `dropped`.
    """

    sweep: str
    cluster: str
    kind: Kind
    runs: list[dict[str, Any]]


def check_plan(plan: Mapping[str, Any]) -> None:
    """Checks the content of a plan.json.

    Raises:
        ValueError: It cannot be used. The message is the reason, in one line.
    """
    _check_names(plan)
    runs = plan.get("runs")
    if not isinstance(runs, list):
        raise ValueError("it has no list 'runs'")
    for number, run in enumerate(runs):
        where = f"runs[{number}]"
        if not isinstance(run, dict):
            raise ValueError(f"{where} is {shorten(repr(run))}")
        try:
            check_fields(PlannedRun, run)
            if is_command(run):
                _check_script(run[SECTION] or {})
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        if not RUN_ID.fullmatch(run["run_id"]):
            raise ValueError(f"{where}: run_id is {shorten(repr(run['run_id']))}")
        if not _is_allocation(run["allocation"]):
            raise ValueError(f"{where}: allocation is {shorten(repr(run['allocation']))}")
        if not 0 < run["world_size"] <= _MOST_RANKS:
            raise ValueError(f"{where}: world_size is {run['world_size']}")
        name = "command" if is_command(run) else "model"
        if not isinstance(run["train"].get(name), str):
            raise ValueError(f"{where}: train.{name} is {shorten(repr(run['train'].get(name)))}")


def _check_script(section: Mapping[str, Any]) -> None:
    """Checks the section `script` of a run."""
    check_fields(_Script, section)
    unknown = section.keys() - {field.name for field in fields(_Script)}
    if unknown:
        raise ValueError(f"{SECTION} has {shorten(repr(min(unknown)))}, of another release")
    if not section["launcher"].strip():
        raise ValueError(f"launcher is {section['launcher']!r}")


def _check_names(plan: Mapping[str, Any]) -> None:
    """Checks what stands above the runs. A former release did not write all of it."""
    for name in ("sweep", "cluster", "kind"):
        if not isinstance(plan.get(name), str | None):
            raise ValueError(f"{name} is {shorten(repr(plan[name]))}")
    if plan.get("kind") not in (None, *get_args(Kind)):
        raise ValueError(f"kind is {shorten(repr(plan['kind']))}")


def _is_allocation(text: str) -> bool:
    try:
        return str(Allocation.parse(text)) == text
    except UserError:
        return False
