"""The sections of a sweep file: each function checks one section on its own, value by value."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from disttrain.config.synonyms import Place
from disttrain.config.train_config import field_names
from disttrain.config.unknown_key import suggest_key
from disttrain.config.yaml_nodes import KeyPath
from jobs.planning.allocation import Allocation, is_allocation
from jobs.planning.cluster_profile import SECTIONS as SECTIONS
from jobs.planning.cluster_profile import ClusterProfile, check_section
from jobs.planning.command_section import CommandSection
from jobs.planning.run_keys import COMMAND, FieldKeys, RunKeys, format_override
from jobs.planning.yaml_file import Document

# A sweep's name becomes a folder's name. The folder `torchrun` has the runs that no sweep started.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_RESERVED_NAMES = ("torchrun",)


@dataclass(frozen=True)
class Pattern:
    """An entry of `exclude` (the runs that it matches) or of `include` (the runs that it adds).

    Args:
        values: The checked values by key.
        allocations: The allocations of the entry; None for all allocations of the sweep.
    """

    values: Mapping[str, Any]
    allocations: tuple[Allocation, ...] | None


def check_sections(document: Document) -> None:
    """Checks the top-level keys of a sweep.

    Raises:
        UserError: A key is unknown, or a required key is missing.
    """
    elsewhere = {Place.BASE: field_names(), Place.SLURM: ClusterProfile.model_fields}
    document.check_keys(SECTIONS, lambda key: suggest_key(key, SECTIONS, Place.TOP, elsewhere))
    for key, example in (("name", "bert-batch-size"), ("allocations", "[1x1, 2x2]")):
        if key not in document.value:
            raise document.error((), f"{key} is missing", hint=f"for example {key}: {example}")


def read_name(document: Document) -> str:
    """The name of the sweep.

    Raises:
        UserError: It is not a string, cannot be a folder's name, or is reserved.
    """
    name = document.value["name"]
    if not isinstance(name, str):
        text = document.written("name") or repr(name)
        raise document.error(("name",), f"name is {text}, not a string", hint=f'quote it: "{text}"')
    if not _NAME.fullmatch(name):
        hint = "it names a folder: use 1 to 100 letters, digits, '.', '_' and '-', with no '.' or '-' at the start"
        raise document.error(("name",), f"{name!r} is not a plain file name", hint=hint)
    if name in _RESERVED_NAMES:
        message = f"{name!r} is reserved for the folder of runs without a sweep"
        raise document.error(("name",), message, hint="choose another name")
    return name


def read_allocations(document: Document, *keys: str | int) -> tuple[Allocation, ...]:
    """The list of allocations at `keys`.

    Raises:
        UserError: The list is empty, or an item is not an allocation or is repeated.
    """
    texts = document.get_list(*keys)
    if not texts:
        raise document.error(keys, "the list has no allocation", hint="for example [1x1, 2x2]")
    allocations = [Allocation.parse(text, where=document.where(*keys, index)) for index, text in enumerate(texts)]
    _check_repeats(document, keys, allocations, [str(text) for text in texts])
    return tuple(allocations)


def read_base(document: Document, keys: RunKeys, overrides: Mapping[str, str]) -> dict[str, Any]:
    """The values under `base`, with the overrides merged into them.

    Args:
        document: The sweep file.
        keys: The keys that a run may have.
        overrides: The texts of ``--set`` by key, as on the command line.

    Raises:
        UserError: A key is unknown or its value is wrong.
    """
    base: dict[str, Any] = {}
    if "base" in document.value:
        values = document.get_mapping("base")
        keys.check_names(document, "base")
        base = {name: keys.value_at(document, name, "base", name) for name in values}
    for name, text in overrides.items():
        where = format_override(name, text)
        if name not in base:
            keys.check_override(name, where)
        base[name] = keys.override(name, text, where)
    return base


def read_axes(document: Document, keys: RunKeys) -> dict[str, tuple[Any, ...]]:
    """The lists under `axes`.

    Raises:
        UserError: A list is empty, or has a wrong or repeated value.
    """
    lists = _read_lists(document, keys, "axes")
    for name, values in lists.items():
        _check_repeats(document, ("axes", name), list(map(canonical, values)), list(map(repr, values)))
    return lists


def read_zip(document: Document, keys: RunKeys) -> dict[str, tuple[Any, ...]]:
    """The lists under `zip`. In a list of commands, null stands for a run of our models, and in one of models likewise.

    Raises:
        UserError: A list is empty or has a wrong value, or the lists differ in length.
    """
    lists = _read_lists(document, keys, "zip")
    for name, values in lists.items():
        first = next(iter(lists))
        if len(values) != len(lists[first]):
            message = f"{name} has length {len(values)}, {first} has length {len(lists[first])}"
            hint = f"lists under zip need the same length; {first} is on line {document.line('zip', first)}"
            raise document.error(("zip", name), message, hint=hint)
    return lists


def _read_lists(document: Document, keys: RunKeys, section: str) -> dict[str, tuple[Any, ...]]:
    """The lists under `axes` or `zip`. No list is empty, and a wrong value is an error on its own line."""
    lists: dict[str, tuple[Any, ...]] = {}
    if section not in document.value:
        return lists
    names = document.get_mapping(section)
    others, may_be_null = [], []
    if section == "zip":
        others = [COMMAND]
        if COMMAND in names and isinstance(keys, FieldKeys):
            may_be_null = [COMMAND, "model"]
    keys.check_names(document, section, others=others)
    for name in names:
        if name == "setup" and isinstance(keys, FieldKeys):
            raise document.error((section, name), "setup is not an axis", hint="write the list under allocations")
        values = document.get_list(section, name)
        if not values:
            raise document.error((section, name), f"{name} has no values", hint="write at least one, or drop it")
        lists[name] = tuple(
            None if value is None and name in may_be_null else keys.value_at(document, name, section, name, index)
            for index, value in enumerate(values)
        )
    return lists


def read_seeds(document: Document) -> tuple[int, ...] | None:
    """The list `seeds`; None if the file does not have it.

    Raises:
        UserError: The list is empty, or has a wrong or repeated value.
    """
    if "seeds" not in document.value:
        return None
    values = document.get_list("seeds")
    seeds = [FieldKeys().value_at(document, "seed", "seeds", index) for index in range(len(values))]
    if not seeds:
        raise document.error(("seeds",), "seeds has no values", hint="write at least one, or drop it")
    _check_repeats(document, ("seeds",), seeds, [repr(seed) for seed in seeds])
    return tuple(seeds)


def read_measure_link(document: Document) -> bool:
    """The value of `measure_link`, which is false by default.

    Raises:
        UserError: It is not a boolean.
    """
    value = document.value.get("measure_link", False)
    if not isinstance(value, bool):
        raise document.error(("measure_link",), f"measure_link is {value!r}", hint="write true or false")
    return value


@dataclass(frozen=True)
class SlurmSection:
    """The section `slurm`: changes to the cluster profile, for all jobs and for those of one allocation."""

    for_all: Mapping[str, Any] = field(default_factory=dict)
    by_allocation: Mapping[Allocation, Mapping[str, Any]] = field(default_factory=dict)


def read_slurm(document: Document, include: Sequence[Pattern]) -> SlurmSection:
    """The mapping `slurm`, with keys and values that a cluster profile accepts, also below the name of an allocation.

    Args:
        document: The sweep file.
        include: Its entries of `include`, which may have allocations of their own.

    Raises:
        UserError: It is not a mapping, a key or value is wrong, or the sweep lacks the allocation.
    """
    if "slurm" not in document.value:
        return SlurmSection()
    names = [key for key in document.get_mapping("slurm") if is_allocation(key)]
    known = {
        *read_allocations(document, "allocations"),
        *(allocation for entry in include for allocation in entry.allocations or ()),
    }
    by_allocation = {}
    for name in names:
        allocation = Allocation.parse(name)
        if allocation not in known:
            hint = f"its allocations: {', '.join(map(str, sorted(known)))}"
            raise document.error(("slurm", name), f"the sweep has no allocation {name}", hint=hint)
        if allocation in by_allocation:
            raise document.error(("slurm", name), f"{allocation} is named twice", hint="drop one of the two")
        by_allocation[allocation] = check_section(document, "slurm", name)
    return SlurmSection(check_section(document, "slurm", without=names), by_allocation)


def read_patterns(document: Document, commands: CommandSection, section: str) -> tuple[Pattern, ...]:
    """The entries of `exclude` or `include`.

    Raises:
        UserError: A key is unknown or its value is wrong, or an entry of `exclude` is empty.
    """
    if section not in document.value:
        return ()
    count = len(document.get_list(section))
    return tuple(_read_pattern(document, commands, section, index) for index in range(count))


def _read_pattern(document: Document, commands: CommandSection, section: str, index: int) -> Pattern:
    place = (section, index)
    entry = document.get_mapping(*place)
    keys = commands.keys
    if section == "exclude" and not entry:
        raise document.error(place, "an empty mapping matches every run", hint="name the fields of the runs to drop")
    if section == "exclude" and "setup" in entry and not commands.own_keys:
        raise document.error((*place, "setup"), "setup matches no run", hint="write allocation instead")
    if section == "include" and COMMAND in entry:
        keys = commands.keys_of_commands
    keys.check_names(document, *place, others=("allocation", COMMAND))
    values = {name: keys.value_at(document, name, *place, name) for name in entry if name != "allocation"}
    if "allocation" not in entry:
        return Pattern(values, None)
    if isinstance(entry["allocation"], list):
        return Pattern(values, read_allocations(document, *place, "allocation"))
    return Pattern(values, (Allocation.parse(entry["allocation"], where=document.where(*place, "allocation")),))


def _check_repeats(document: Document, keys: KeyPath, values: Sequence[Any], texts: Sequence[str]) -> None:
    """Checks that the values of the list at `keys` differ; `texts` are the values for the message."""
    for index, value in enumerate(values):
        first = values.index(value)
        if first < index:
            hint = f"it is on line {document.line(*keys, first)} already; drop one"
            raise document.error((*keys, index), f"{texts[index]} is repeated", hint=hint)


def canonical(value: Any) -> str:
    """A text that is equal for equal values of the same type: 1, 1.0 and true all differ.

    Example:
        >>> canonical({"b": 1.0, "a": True})
        '{"a": true, "b": 1.0}'
    """
    return json.dumps(value, sort_keys=True)
