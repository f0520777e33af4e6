"""What differs between the runs of a sweep: the fields that vary, and a readable label for each run."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from disttrain.config.command.command_config import is_command
from disttrain.config.command.command_text import name_of
from disttrain.config.train_config import PATH_FIELDS, TrainConfig
from jobs.planning.plan import is_link
from jobs.planning.run_keys import COMMAND
from jobs.planning.sweep_sections import canonical

_DEFAULTS = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
_ABSENT = object()  # what a command has for a key of other commands only
# More combinations of fields than these are not tried: the label then has every field that varies.
_MOST_FIELDS_TRIED = 3


class Variation:
    """The fields that differ between the runs of a sweep, and the label of each run.

    Args:
        runs: The runs of plan.json, as `plan.run_json` wrote them.

    Attributes:
        fields: The names of the fields that differ: first those of the sweep file's lists, in file order.
    """

    def __init__(self, runs: Sequence[Mapping[str, Any]]) -> None:
        self._runs = runs
        self.fields = tuple(self._varied_fields())
        self._numbers = {name: self._mapping_numbers(name) for name in self.fields}
        self._commands = command_names([run["train"][COMMAND] for run in runs if is_command(run)])
        trained = [run for run in runs if not is_link(run) and not is_command(run)]
        commands = [run for run in runs if is_command(run)]
        links = [run for run in runs if is_link(run)]
        self._label_fields = self._fewest_fields(trained, ())
        # Next to runs of our models, the label of a command says what it is.
        self._command_label_fields = self._fewest_fields(commands, (COMMAND,) if trained else ())
        self._link_label_fields = self._fewest_fields(links, ("model",))

    def values(self, run: Mapping[str, Any]) -> dict[str, Any]:
        """The value of each field that varies, paths as in the sweep file; None where a run has no such field."""
        return {name: _value(run, name) if _has(run, name) else None for name in self.fields}

    def texts(self, run: Mapping[str, Any]) -> dict[str, str]:
        """The values as short texts, for tables: a mapping is its number among the values of its field."""
        return {name: self._text(run, name) if _has(run, name) else "" for name in self.fields}

    def label(self, run: Mapping[str, Any]) -> str:
        """The allocation, and the values that tell this run from the others: ``2x2 lr=2e-05 seed=1``."""
        parts = (f"{name}={self._text(run, name)}" for name in self._fields_in_label(run) if not _is_absent(run, name))
        return " ".join((run["allocation"], *parts))

    def name(self, run: Mapping[str, Any]) -> str:
        """The run in a message: ``2x2-72b9cd04ee1f (2x2 lr=2e-05)``."""
        return run_name(run["run_id"], self.label(run))

    def description(self, run: Mapping[str, Any]) -> str:
        """The label, and the values of the sweep file's lists that vary and are not part of it."""
        others = [name for name in self.fields if name in run["point"] and name not in self._fields_in_label(run)]
        return "".join((self.label(run), *(f", {name}={self._text(run, name)}" for name in others)))

    def _fields_in_label(self, run: Mapping[str, Any]) -> tuple[str, ...]:
        if is_link(run):
            return self._link_label_fields
        if is_command(run):
            return self._command_label_fields
        return self._label_fields

    def _varied_fields(self) -> Iterator[str]:
        listed = itertools.chain.from_iterable(run["point"] for run in self._runs)
        asked = itertools.chain.from_iterable(_asked(run) for run in self._runs)
        for name in dict.fromkeys((*listed, *asked)):
            runs = [run for run in self._runs if is_command(run) or _has(run, name)]
            # Both: a field that only follows from another one, such as the dataset from the model, does not vary, nor
            # does one that is written out in one run and has the same default in another.
            if _differ(_asked(run).get(name, _default(run, name)) for run in runs) and _differ(
                run["train"].get(name, _ABSENT) for run in runs
            ):
                yield name

    def _mapping_numbers(self, name: str) -> dict[str, int]:
        """The number of each mapping among the values of a field, from 1, in the order of the runs."""
        mappings = (canonical(value) for run in self._runs if isinstance(value := _value(run, name), Mapping))
        return {text: number for number, text in enumerate(dict.fromkeys(mappings), start=1)}

    def _text(self, run: Mapping[str, Any], name: str) -> str:
        value = _value(run, name)
        if isinstance(value, Mapping):
            return f"#{self._numbers[name][canonical(value)]}"
        if name == COMMAND and is_command(run):
            return self._commands[value]
        return value_text(value)

    def _fewest_fields(self, runs: Sequence[Mapping[str, Any]], always: tuple[str, ...]) -> tuple[str, ...]:
        """The fewest fields that tell some runs apart, in the order of `fields`.

        Args:
            runs: The runs to tell apart.
            always: Fields that every label has.
        """
        candidates = [name for name in self.fields if name not in always]
        needed = [
            name
            for name in candidates
            if not self._tell_apart(runs, [*always, *(other for other in candidates if other != name)])
        ]
        others = [name for name in candidates if name not in needed]
        for count in range(min(len(others), _MOST_FIELDS_TRIED) + 1):
            for chosen in itertools.combinations(others, count):
                fields = [name for name in candidates if name in needed or name in chosen]
                if self._tell_apart(runs, [*always, *fields]):
                    return (*always, *fields)
        return (*always, *candidates)

    def _tell_apart(self, runs: Sequence[Mapping[str, Any]], fields: Sequence[str]) -> bool:
        """Whether no two runs have the same allocation and the same values in these fields."""
        seen = set()
        for run in runs:
            key = (run["allocation"], *(_is_absent(run, name) or self._text(run, name) for name in fields))
            if key in seen:
                return False
            seen.add(key)
        return True


def _value(run: Mapping[str, Any], name: str) -> Any:
    """The value of a field: the one that the run used, but a path as the sweep file or ``--set`` has it."""
    written = _asked(run).get(name)
    if name in PATH_FIELDS and written is not None:
        return written
    return run["train"].get(name)


def _has(run: Mapping[str, Any], name: str) -> bool:
    """Whether a run has a field. A link run trains nothing: it has only the fields that are set for it."""
    return not (_is_absent(run, name) or (is_link(run) and name not in _asked(run)))


def _is_absent(run: Mapping[str, Any], name: str) -> bool:
    """Whether a run is a command without this key."""
    return is_command(run) and name not in run["train"]


def _default(run: Mapping[str, Any], name: str) -> Any:
    """The value of a field that is not set for a run."""
    if is_command(run):
        return _ABSENT
    return _DEFAULTS.get(name)


def _asked(run: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields that the sweep file or ``--set`` sets for a run; a plan of the former release has fewer of them."""
    asked: Mapping[str, Any] | None = run.get("asked")
    if asked is not None:
        return asked
    if is_link(run):
        return dict(run["point"])
    return {**run["train"], **run["point"]}


def _differ(values: Iterator[Any]) -> bool:
    first = _comparable(next(values, None))
    return any(_comparable(value) != first for value in values)


def _comparable(value: Any) -> tuple[type, Any]:
    """A value to compare with others: 1, 1.0 and true all differ, also within a mapping."""
    if isinstance(value, Mapping | list):
        return str, canonical(value)
    return type(value), value


def run_name(run_id: str, label: str) -> str:
    """The name of a run in tables of lines, messages and figures: its id and its label."""
    return f"{run_id} ({label})"


def value_text(value: Any) -> str:
    """A value as one would write it in YAML, in one line.

    Example:
        >>> value_text(2e-05), value_text(True), value_text(None), value_text("./data")
        ('2e-05', 'true', 'null', './data')
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return json.dumps(value, ensure_ascii=False)
    text = str(value)
    if not text.isprintable():
        return json.dumps(text)  # a line break would split the line of a run
    return text


def command_names(commands: Sequence[str]) -> dict[str, str]:
    """A short name for each command: that of its script or program, and a number if others have the same.

    Example:
        >>> list(command_names(["python src/a.py --x 1", "./run.sh", "python a.py"]).values())
        ['a.py#1', 'run.sh', 'a.py#2']
    """
    names = {command: name_of(command) for command in commands}
    same: dict[str, list[str]] = {}
    for command, name in names.items():
        same.setdefault(name, []).append(command)
    return {
        command: name if len(same[name]) == 1 else f"{name}#{same[name].index(command) + 1}"
        for command, name in names.items()
    }


def link_name(label: str) -> str:
    """A label as a file name: `_` joins its parts, and other characters become `-`.

    Example:
        >>> link_name("2x2 dataset=./a b lr=2e-05")
        '2x2_dataset=.-a_b_lr=2e-05'
    """
    return re.sub(r"[^A-Za-z0-9._=+-]", "-", label.replace(" ", "_"))
