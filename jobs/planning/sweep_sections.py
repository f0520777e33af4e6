"""The sections of a sweep file: each function checks one section on its own, value by value."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from disttrain.config.flags import read_value
from disttrain.config.synonyms import Place
from disttrain.config.train_config import FAMILIES, field_names
from disttrain.config.unknown_key import suggest_key
from disttrain.config.validation import validate
from disttrain.config.yaml_nodes import KeyPath
from disttrain.errors import FieldsError, UserError, shorten
from jobs.planning.allocation import Allocation, is_allocation
from jobs.planning.cluster_profile import SECTIONS as SECTIONS
from jobs.planning.cluster_profile import ClusterProfile, check_section
from jobs.planning.yaml_file import Document

# A sweep's name becomes a folder's name. The folder `torchrun` has the runs that no sweep started.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_RESERVED_NAMES = ("torchrun",)


@dataclass(frozen=True)
class Pattern:
    """An entry of `exclude` (the runs that it matches) or of `include` (the runs that it adds).

    Args:
        values: The checked values by field name.
        allocations: The allocations of the entry; None for all allocations of the sweep.
    """

    values: Mapping[str, Any]
    allocations: tuple[Allocation, ...] | None


def format_override(name: str, text: str) -> str:
    """An override as the user typed it, for messages; a very long one loses its middle.

    Example:
        >>> format_override("lr", "2e-5")
        '--set lr=2e-5'
    """
    return f"--set {name}={shorten(text)}"


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


def read_base(document: Document, overrides: Mapping[str, str]) -> dict[str, Any]:
    """The fields under `base`, with the overrides merged into them.

    Args:
        document: The sweep file.
        overrides: The texts of ``--set`` by field name, as on the command line.

    Raises:
        UserError: A field is unknown or its value is wrong.
    """
    base: dict[str, Any] = {}
    if "base" in document.value:
        values = document.get_mapping("base")
        _check_fields(document, "base")
        base = {name: _checked_at(document, name, "base", name) for name in values}
    for name, text in overrides.items():
        where = format_override(name, text)
        _check_override(name, where)
        value = read_value(name, text, where)
        base[name] = _checked(name, value, where, None if isinstance(value, str | list | dict) else text)
    return base


def _check_override(name: str, where: str) -> None:
    """Checks that an override names a field, and not a section of the sweep file, as in ``slurm.time``."""
    section, _, rest = name.partition(".")
    if section == "base" and rest:
        raise UserError(f"{name} is not a field of a run", where=where, hint=f"write --set {rest}=VALUE")
    if section in SECTIONS:
        hint = "--set changes fields under base only; edit the sweep file"
        raise UserError(f"{section} is not a field of a run", where=where, hint=hint)
    if name not in field_names():
        raise UserError(f"unknown field {name!r}", where=where, hint=_suggest_field(name))


def _check_fields(document: Document, *keys: str | int, others: Sequence[str] = ()) -> None:
    """Checks that each key of the mapping at `keys` is a field of a run, or one of the other names."""
    for name in document.get(*keys):
        if name not in (*field_names(), *others):
            raise document.error((*keys, name), f"unknown field {name!r}", hint=_suggest_field(name, others))


def _suggest_field(name: str, others: Sequence[str] = ()) -> str:
    """The hint for a name that is not a field; only the entries of `exclude` and `include` accept other names."""
    elsewhere = {Place.TOP: SECTIONS, Place.SLURM: ClusterProfile.model_fields}
    if not others:
        return suggest_key(name, field_names(), Place.BASE, elsewhere)
    # For seeds and allocations, an entry has keys of its own.
    elsewhere[Place.TOP] = tuple(key for key in SECTIONS if key not in ("seeds", "allocations"))
    return suggest_key(name, (*field_names(), *others), Place.ENTRY, elsewhere)


def _checked_at(document: Document, name: str, *keys: str | int) -> Any:
    """The value at `keys` of one field; see `_checked`."""
    return _checked(name, document.get(*keys), document.where(*keys), document.written(*keys))


def _checked(name: str, value: Any, where: str, written: str | None = None) -> Any:
    """The value of one field, converted to the field's type: 1 becomes 1.0 in a float field.

    Args:
        name: The field.
        value: Its value, as YAML reads it.
        where: The place of the value, for errors.
        written: The text of a number, boolean or null in the file, for errors.
    """
    texts = {}
    if written is not None:
        texts[name] = written
    try:
        checked = getattr(validate({"model": FAMILIES[0]} | {name: value}, texts), name)
    except FieldsError as error:
        raise UserError(error.message, where=where, hint=error.hint) from None
    if name == "output_dir":
        message = f"output_dir {value!r} cannot be set in a sweep"
        raise UserError(message, where=where, hint="each run has its own folder")
    if name == "setup" and value is not None:
        Allocation.parse(value, where=where)
    return checked


def read_axes(document: Document) -> dict[str, tuple[Any, ...]]:
    """The lists under `axes`.

    Raises:
        UserError: A list is empty, or has a wrong or repeated value.
    """
    lists = _read_lists(document, "axes")
    for name, values in lists.items():
        _check_repeats(document, ("axes", name), list(map(canonical, values)), list(map(repr, values)))
    return lists


def read_zip(document: Document) -> dict[str, tuple[Any, ...]]:
    """The lists under `zip`.

    Raises:
        UserError: A list is empty or has a wrong value, or the lists differ in length.
    """
    lists = _read_lists(document, "zip")
    for name, values in lists.items():
        first = next(iter(lists))
        if len(values) != len(lists[first]):
            message = f"{name} has length {len(values)}, {first} has length {len(lists[first])}"
            hint = f"lists under zip need the same length; {first} is on line {document.line('zip', first)}"
            raise document.error(("zip", name), message, hint=hint)
    return lists


def _read_lists(document: Document, section: str) -> dict[str, tuple[Any, ...]]:
    """The lists under `axes` or `zip`. No list is empty, and a wrong value is an error on its own line."""
    lists: dict[str, tuple[Any, ...]] = {}
    if section not in document.value:
        return lists
    names = document.get_mapping(section)
    _check_fields(document, section)
    for name in names:
        if name == "setup":
            raise document.error((section, name), "setup is not an axis", hint="write the list under allocations")
        values = document.get_list(section, name)
        if not values:
            raise document.error((section, name), f"{name} has no values", hint="write at least one, or drop it")
        lists[name] = tuple(_checked_at(document, name, section, name, index) for index in range(len(values)))
    return lists


def read_seeds(document: Document) -> tuple[int, ...] | None:
    """The list `seeds`; None if the file does not have it.

    Raises:
        UserError: The list is empty, or has a wrong or repeated value.
    """
    if "seeds" not in document.value:
        return None
    values = document.get_list("seeds")
    seeds = [_checked_at(document, "seed", "seeds", index) for index in range(len(values))]
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


def read_slurm(document: Document) -> SlurmSection:
    """The mapping `slurm`, with keys and values that a cluster profile accepts, also below the name of an allocation.

    Raises:
        UserError: It is not a mapping, a key or value is wrong, or the sweep lacks the allocation.
    """
    if "slurm" not in document.value:
        return SlurmSection()
    names = [key for key in document.get_mapping("slurm") if is_allocation(key)]
    known = {
        *read_allocations(document, "allocations"),
        *(allocation for entry in read_patterns(document, "include") for allocation in entry.allocations or ()),
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


def read_patterns(document: Document, section: str) -> tuple[Pattern, ...]:
    """The entries of `exclude` or `include`.

    Raises:
        UserError: A field is unknown or its value is wrong, or an entry of `exclude` is empty.
    """
    if section not in document.value:
        return ()
    return tuple(_read_pattern(document, section, index) for index in range(len(document.get_list(section))))


def _read_pattern(document: Document, section: str, index: int) -> Pattern:
    keys = (section, index)
    entry = document.get_mapping(*keys)
    if section == "exclude" and not entry:
        raise document.error(keys, "an empty mapping matches every run", hint="name the fields of the runs to drop")
    if section == "exclude" and "setup" in entry:
        raise document.error((*keys, "setup"), "setup matches no run", hint="write allocation instead")
    _check_fields(document, *keys, others=("allocation",))
    values = {name: _checked_at(document, name, *keys, name) for name in entry if name != "allocation"}
    if "allocation" not in entry:
        return Pattern(values, None)
    if isinstance(entry["allocation"], list):
        return Pattern(values, read_allocations(document, *keys, "allocation"))
    return Pattern(values, (Allocation.parse(entry["allocation"], where=document.where(*keys, "allocation")),))


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
