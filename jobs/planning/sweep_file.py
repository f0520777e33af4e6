"""A sweep file: strict reading, with the line of every value. Sections are checked one by one, then together."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from disttrain.config.train_config import FAMILIES
from disttrain.config.yaml_nodes import KeyPath
from disttrain.errors import UserError
from jobs.planning.allocation import Allocation
from jobs.planning.command_section import CommandSection, KeyedValue, check_switches, read_commands
from jobs.planning.run_keys import COMMAND, format_override
from jobs.planning.sweep_sections import (
    Pattern,
    SlurmSection,
    check_sections,
    read_allocations,
    read_axes,
    read_base,
    read_measure_link,
    read_name,
    read_patterns,
    read_seeds,
    read_slurm,
    read_zip,
)
from jobs.planning.yaml_file import Document, load_yaml

_NO_OVERRIDES: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Sweep:
    """The content of a sweep file. Field values are checked one by one; `expand` checks them together.

    Args:
        document: The file, with its lines.
        folder: The absolute path of the file's folder; relative paths in the file start there.
        commands: Which runs are commands, and how they run.
        axes: The values by key, in file order; the runs are their product.
        zip: The values by key: lists of equal length, which vary together.
        seeds: The seeds; None if the file has no such list.
        measure_link: Whether each allocation also gets a run of model `link`.
        slurm: The changes to the cluster profile, each checked alone.
        overrides: The texts of ``--set`` by key, as on the command line. `base` includes their values.
    """

    name: str
    document: Document
    folder: str
    allocations: tuple[Allocation, ...]
    commands: CommandSection
    base: Mapping[str, Any]
    axes: Mapping[str, tuple[Any, ...]]
    zip: Mapping[str, tuple[Any, ...]]
    exclude: tuple[Pattern, ...]
    include: tuple[Pattern, ...]
    seeds: tuple[int, ...] | None
    measure_link: bool
    slurm: SlurmSection
    overrides: Mapping[str, str]

    @property
    def path(self) -> str:
        """The file, as the user named it."""
        return self.document.path

    def where(self, *keys: str | int) -> str:
        """The place of a value, for `UserError`: ``sweep.yaml:12: slurm.time``, or ``--set lr=2e-5``."""
        if len(keys) > 1 and keys[0] == "base" and keys[1] in self.overrides:
            return format_override(str(keys[1]), self.overrides[str(keys[1])])
        return self.document.where(*keys)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The key of every value that a run may have."""
        seed = () if self.seeds is None else ("seed",)
        return tuple(dict.fromkeys((*(value.name for value in self.values()), *seed)))

    def values(self) -> Iterator[KeyedValue]:
        """Every value that a run may have, but for the seeds."""
        for name, value in self.base.items():
            yield KeyedValue(name, value, ("base", name))
        for section, lists in (("axes", self.axes), ("zip", self.zip)):
            for name, values in lists.items():
                yield from (KeyedValue(name, value, (section, name, row)) for row, value in enumerate(values))
        for index, entry in enumerate(self.include):
            for name, value in entry.values.items():
                yield KeyedValue(name, value, ("include", index, name))


def load_sweep(path: Path, overrides: Mapping[str, str] = _NO_OVERRIDES) -> Sweep:
    """Reads a sweep file.

    Args:
        path: The YAML file.
        overrides: The texts of ``--set`` by key; their values replace values of `base`.

    Raises:
        UserError: The first mistake in the file or the overrides, with its line.
    """
    return parse_sweep(load_yaml(path), os.path.dirname(os.path.abspath(path)), overrides)


def parse_sweep(document: Document, folder: str, overrides: Mapping[str, str] = _NO_OVERRIDES) -> Sweep:
    """Checks a sweep document section by section.

    Args:
        document: The file's content.
        folder: The absolute path of the file's folder.
        overrides: The texts of ``--set`` by key; their values replace values of `base`.

    Raises:
        UserError: The first mistake, with its line.
    """
    check_sections(document)
    name, allocations, commands = (
        read_name(document),
        read_allocations(document, "allocations"),
        read_commands(document),
    )
    include = read_patterns(document, commands, "include")
    sweep = Sweep(
        name=name,
        document=document,
        folder=folder,
        allocations=allocations,
        commands=commands,
        base=read_base(document, commands.keys, overrides),
        axes=read_axes(document, commands.keys),
        zip=read_zip(document, commands.keys),
        exclude=read_patterns(document, commands, "exclude"),
        include=include,
        seeds=read_seeds(document),
        measure_link=read_measure_link(document),
        slurm=read_slurm(document, include),
        overrides=dict(overrides),
    )
    _check_each_field_once(sweep)
    check_switches(document, commands.switches, sweep.values(), sweep.where)
    if not commands.own_keys and not any("model" in fields for fields in (sweep.base, sweep.axes, sweep.zip)):
        hint = f"write model: {' or '.join(FAMILIES)} under base, or {COMMAND}: python SCRIPT.py at the top level"
        raise document.error(("base",), "model is missing", hint=hint)
    return sweep


def _check_each_field_once(sweep: Sweep) -> None:
    """Checks that each field is in at most one of base, axes, zip and seeds."""
    for name in sweep.zip:
        if name in sweep.axes:
            raise _set_twice(sweep, ("zip", name), ("axes", name))
    for section in ("axes", "zip"):
        for name in getattr(sweep, section):
            if name in sweep.base:
                raise _set_twice(sweep, (section, name), ("base", name))
    for section in ("base", "axes", "zip"):
        if sweep.seeds is not None and "seed" in getattr(sweep, section):
            raise _set_twice(sweep, ("seeds",), (section, "seed"))


def _set_twice(sweep: Sweep, keys: KeyPath, other: KeyPath) -> UserError:
    name = str(other[1])
    if other[0] == "base" and other not in sweep.document.lines:
        message = f"{name} varies in the sweep, at {sweep.where(*keys)}"
        hint = "--set changes fields under base only; edit the list instead"
        return UserError(message, where=sweep.where(*other), hint=hint)
    message = f"{name} has values here and under {other[0]}, on line {sweep.document.line(*other)}"
    return UserError(message, where=sweep.where(*keys), hint="drop one of the two")
