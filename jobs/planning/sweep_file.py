"""A sweep as its file tells it: strict reading, every key and value checked on its own, each known by its line."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from disttrain.config.train_config import FAMILIES, field_names
from disttrain.config.validation import validate
from disttrain.errors import FieldsError, UserError
from jobs.planning.allocation import Allocation
from jobs.planning.yaml_file import Document, KeyPath, load_yaml

SECTIONS = ("name", "allocations", "base", "axes", "zip", "exclude", "include", "seeds", "measure_link", "slurm")

# A name is a folder's name; `torchrun` is the folder of the runs that no sweep started.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_RESERVED_NAMES = ("torchrun",)

_NO_OVERRIDES: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Pattern:
    """An entry of `exclude` (the runs it matches) or `include` (the runs it adds).

    Args:
        values: Field name to checked value.
        allocations: The shapes it names; None where it names none, which stands for all of the sweep.
    """

    values: Mapping[str, Any]
    allocations: tuple[Allocation, ...] | None


@dataclass(frozen=True)
class Sweep:
    """What a sweep file asks for. Field values are checked one by one; `expand` checks them together.

    Args:
        document: The file, with its lines.
        folder: The absolute folder that holds the file; relative paths of its fields start there.
        axes: Field name to its values: the product, in file order.
        zip: Field name to its values: lists of one length, walked together.
        seeds: None where the file has no such list.
        measure_link: Whether each allocation gets a run of model `link` as well.
        slurm: Overrides of the cluster profile, not checked here.
        overrides: What ``--set`` gave; `base` holds it already.
    """

    name: str
    document: Document
    folder: str
    allocations: tuple[Allocation, ...]
    base: Mapping[str, Any]
    axes: Mapping[str, tuple[Any, ...]]
    zip: Mapping[str, tuple[Any, ...]]
    exclude: tuple[Pattern, ...]
    include: tuple[Pattern, ...]
    seeds: tuple[int, ...] | None
    measure_link: bool
    slurm: Mapping[str, Any]
    overrides: Mapping[str, Any]

    @property
    def path(self) -> str:
        """The file, as the user named it."""
        return self.document.path

    def where(self, *keys: str | int) -> str:
        """The place of a value, for `UserError`: ``sweep.yaml:12: slurm.time``, or ``--set lr=2e-05``."""
        if len(keys) > 1 and keys[0] == "base" and keys[1] in self.overrides:
            return _set(str(keys[1]), self.overrides[str(keys[1])])
        return self.document.where(*keys)


def load_sweep(path: Path, overrides: Mapping[str, Any] = _NO_OVERRIDES) -> Sweep:
    """Read a sweep file.

    Args:
        path: The YAML file.
        overrides: Field name to plain value, laid over `base`: what ``--set`` gave.

    Raises:
        UserError: The first mistake in the file or the overrides, with its line.
    """
    return parse_sweep(load_yaml(path), os.path.dirname(os.path.abspath(path)), overrides)


def parse_sweep(document: Document, folder: str, overrides: Mapping[str, Any] = _NO_OVERRIDES) -> Sweep:
    """Check a sweep document key by key.

    Args:
        document: The file as read.
        folder: The absolute folder that holds it.
        overrides: Field name to plain value, laid over `base`.

    Raises:
        UserError: The first mistake, with its line.
    """
    _check_sections(document)
    sweep = Sweep(
        name=_name(document),
        document=document,
        folder=folder,
        allocations=_allocations(document, "allocations"),
        base=_base(document, overrides),
        axes=_axes(document),
        zip=_zip(document),
        exclude=_patterns(document, "exclude"),
        include=_patterns(document, "include"),
        seeds=_seeds(document),
        measure_link=_measure_link(document),
        slurm=document.get_mapping("slurm") if "slurm" in document.value else {},
        overrides=dict(overrides),
    )
    _check_each_field_once(sweep)
    if not any("model" in fields for fields in (sweep.base, sweep.axes, sweep.zip)):
        hint = f"write model: {' or '.join(FAMILIES)} under base, or list both under axes"
        raise document.error(("base",), "model is missing", hint=hint)
    return sweep


def _set(name: str, value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=repr)
    return f"--set {name}={text}"


def _check_sections(document: Document) -> None:
    for key in document.value:
        if key in field_names():
            hint = "it is a field of the runs: put it under base, or its values under axes"
            raise document.error((key,), f"unknown key {key!r}", hint=hint)
    document.check_keys(SECTIONS)
    for key, hint in (
        ("name", "write name: bert-batch-size, say"),
        ("allocations", "write allocations: [1x1, 2x2], say"),
    ):
        if key not in document.value:
            raise document.error((), f"{key} is missing", hint=hint)


def _name(document: Document) -> str:
    name = document.value["name"]
    if not isinstance(name, str):
        raise document.error(("name",), f"name is {name!r}, not a text", hint=f'quote it: "{name}"')
    if not _NAME.fullmatch(name):
        hint = "use up to 100 letters, digits, '.', '_' and '-', and neither '.' nor '-' in front: it names a folder"
        raise document.error(("name",), f"{name!r} is not a plain file name", hint=hint)
    if name in _RESERVED_NAMES:
        raise document.error(("name",), f"{name!r} is the folder of runs without a sweep", hint="choose another name")
    return name


def _allocations(document: Document, *keys: str | int) -> tuple[Allocation, ...]:
    shapes: list[Allocation] = []
    texts = document.get_list(*keys)
    if not texts:
        raise document.error(keys, "no allocation is named", hint="write allocations: [1x1, 2x2], say")
    for index, text in enumerate(texts):
        shape = Allocation.parse(text, where=document.where(*keys, index))
        if shape in shapes:
            raise _repeated(document, (*keys, index), str(text), (*keys, shapes.index(shape)))
        shapes.append(shape)
    return tuple(shapes)


def _base(document: Document, overrides: Mapping[str, Any]) -> dict[str, Any]:
    base: dict[str, Any] = {}
    if "base" in document.value:
        values = document.get_mapping("base")
        document.check_keys(field_names(), "base")
        base = {name: _checked(name, value, document.where("base", name)) for name, value in values.items()}
    return base | {name: _checked(name, value, _set(name, value)) for name, value in overrides.items()}


def _checked(name: str, value: Any, where: str) -> Any:
    """One field's value as its type has it: 1 becomes 1.0 where the field is a float."""
    try:
        checked = getattr(validate({"model": FAMILIES[0]} | {name: value}), name)
    except FieldsError as error:
        raise UserError(error.message, where=where, hint=error.hint) from None
    if name == "output_dir":
        raise UserError(
            f"output_dir {value!r} has no place in a sweep", where=where, hint="each run has its own folder"
        )
    if name == "setup" and value is not None:
        Allocation.parse(value, where=where)
    return checked


def _axes(document: Document) -> dict[str, tuple[Any, ...]]:
    lists = _lists(document, "axes")
    for name, values in lists.items():
        texts = [canonical(value) for value in values]
        for index, text in enumerate(texts):
            first = texts.index(text)
            if first < index:
                raise _repeated(document, ("axes", name, index), repr(values[index]), ("axes", name, first))
    return lists


def _zip(document: Document) -> dict[str, tuple[Any, ...]]:
    lists = _lists(document, "zip")
    for name, values in lists.items():
        first = next(iter(lists))
        if len(values) != len(lists[first]):
            message = f"{name} has {len(values)} values, {first} has {len(lists[first])}"
            hint = f"give them one length: they are walked together; {first} is on line {document.line('zip', first)}"
            raise document.error(("zip", name), message, hint=hint)
    return lists


def _lists(document: Document, section: str) -> dict[str, tuple[Any, ...]]:
    """The lists under `axes` or `zip`, none of them empty, every item checked at its own line."""
    lists: dict[str, tuple[Any, ...]] = {}
    if section not in document.value:
        return lists
    names = document.get_mapping(section)
    document.check_keys(field_names(), section)
    for name in names:
        if name == "setup":
            raise document.error((section, name), "setup is no axis", hint="list the shapes under allocations")
        values = document.get_list(section, name)
        if not values:
            raise document.error((section, name), f"{name} has no values", hint="list at least one, or drop it")
        lists[name] = tuple(
            _checked(name, value, document.where(section, name, index)) for index, value in enumerate(values)
        )
    return lists


def _seeds(document: Document) -> tuple[int, ...] | None:
    if "seeds" not in document.value:
        return None
    seeds: list[int] = []
    for index, value in enumerate(document.get_list("seeds")):
        seed = _checked("seed", value, document.where("seeds", index))
        if seed in seeds:
            raise _repeated(document, ("seeds", index), repr(seed), ("seeds", seeds.index(seed)))
        seeds.append(seed)
    if not seeds:
        raise document.error(("seeds",), "seeds has no values", hint="list at least one, or drop it")
    return tuple(seeds)


def _measure_link(document: Document) -> bool:
    value = document.value.get("measure_link", False)
    if not isinstance(value, bool):
        raise document.error(("measure_link",), f"measure_link is {value!r}", hint="write true or false")
    return value


def _patterns(document: Document, section: str) -> tuple[Pattern, ...]:
    entries = document.get_list(section) if section in document.value else []
    return tuple(_pattern(document, section, index) for index in range(len(entries)))


def _pattern(document: Document, section: str, index: int) -> Pattern:
    keys = (section, index)
    entry = document.get_mapping(*keys)
    if section == "exclude" and not entry:
        raise document.error(keys, "an empty mapping matches every run", hint="name the fields of the runs to drop")
    if section == "exclude" and "setup" in entry:
        raise document.error((*keys, "setup"), "setup matches no run", hint="write allocation instead")
    document.check_keys((*field_names(), "allocation"), *keys)
    values = {
        name: _checked(name, value, document.where(*keys, name))
        for name, value in entry.items()
        if name != "allocation"
    }
    return Pattern(values, _pattern_allocations(document, *keys))


def _pattern_allocations(document: Document, *keys: str | int) -> tuple[Allocation, ...] | None:
    named = document.get(*keys)
    if "allocation" not in named:
        return None
    if isinstance(named["allocation"], list):
        return _allocations(document, *keys, "allocation")
    return (Allocation.parse(named["allocation"], where=document.where(*keys, "allocation")),)


def _check_each_field_once(sweep: Sweep) -> None:
    """Check that no field has two places: base, an axis, zip, seeds."""
    for name in sweep.zip:
        if name in sweep.axes:
            raise _two_places(sweep, ("zip", name), ("axes", name))
    for section in ("axes", "zip"):
        for name in getattr(sweep, section):
            if name in sweep.base:
                raise _two_places(sweep, (section, name), ("base", name))
    for section in ("base", "axes", "zip"):
        if sweep.seeds is not None and "seed" in getattr(sweep, section):
            raise _two_places(sweep, ("seeds",), (section, "seed"))


def _two_places(sweep: Sweep, keys: KeyPath, other: KeyPath) -> UserError:
    name = "seed" if keys == ("seeds",) else str(keys[1])
    if other[0] == "base" and other not in sweep.document.lines:
        message = f"{name} varies in the sweep, at {sweep.where(*keys)}"
        return UserError(
            message, where=sweep.where(*other), hint="--set gives a field under base; edit the list instead"
        )
    message = f"{name} has values here and under {other[0]}, on line {sweep.document.line(*other)}"
    return UserError(message, where=sweep.where(*keys), hint="drop one of the two")


def _repeated(document: Document, keys: KeyPath, text: str, first: KeyPath) -> UserError:
    return document.error(
        keys, f"{text} is repeated", hint=f"it stands on line {document.line(*first)} already; drop one"
    )


def canonical(value: Any) -> str:
    """A text that is the same for equal values of one type: 1, 1.0 and true all differ.

    Example:
        >>> canonical({"b": 1.0, "a": True})
        '{"a": true, "b": 1.0}'
    """
    return json.dumps(value, sort_keys=True)
