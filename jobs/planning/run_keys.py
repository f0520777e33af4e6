"""The keys of a run in a sweep file, with their values: fields of our models, or the user's own keys of a command."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from disttrain.config.command.command_text import KEY, check_command
from disttrain.config.flags import read_value
from disttrain.config.synonyms import Place
from disttrain.config.train_config import FAMILIES, field_names
from disttrain.config.unknown_key import suggest_key
from disttrain.config.validation import parse_value, validate
from disttrain.errors import FieldsError, UserError, shorten
from jobs.planning.allocation import Allocation
from jobs.planning.cluster_profile import SECTIONS, ClusterProfile
from jobs.planning.yaml_file import Document

COMMAND = "command"
_ALLOCATION = "allocation"


class RunKeys(Protocol):
    """Which keys a run may have, and which values."""

    def check_names(self, document: Document, *keys: str | int, others: Sequence[str] = ()) -> None:
        """Checks that each key of the mapping at `keys` is one of a run, or one of the other names.

        Raises:
            UserError: It is not; the error names the line.
        """

    def value_at(self, document: Document, name: str, *keys: str | int) -> Any:
        """The checked value at `keys` of one key.

        Raises:
            UserError: The run does not accept it; the error names the line.
        """

    def check_override(self, name: str, where: str) -> None:
        """Checks the key of ``--set NAME=TEXT``, which is not yet under `base`.

        Raises:
            UserError: A run does not have it; `where` is the option.
        """

    def override(self, name: str, text: str, where: str) -> Any:
        """The value of ``--set NAME=TEXT``.

        Raises:
            UserError: The run does not accept it.
        """


def format_override(name: str, text: str) -> str:
    """An override as the user typed it, for messages; a very long one loses its middle.

    Example:
        >>> format_override("lr", "2e-5")
        '--set lr=2e-5'
    """
    return f"--set {name}={shorten(text)}"


class FieldKeys:
    """The keys are the fields of `TrainConfig`: the runs are of our models."""

    def check_names(self, document: Document, *keys: str | int, others: Sequence[str] = ()) -> None:
        for name in document.get(*keys):
            if name not in (*field_names(), *others):
                hint = _suggest_field(name, others)
                if (keys[0], name) == ("axes", COMMAND):
                    hint = f"write the list under zip: {COMMAND}: [...]"
                raise document.error((*keys, name), f"unknown field {name!r}", hint=hint)

    def value_at(self, document: Document, name: str, *keys: str | int) -> Any:
        if name == COMMAND:
            return read_command(document, *keys)
        return _checked(name, document.get(*keys), document.where(*keys), document.written(*keys))

    def check_override(self, name: str, where: str) -> None:
        _check_section(name, where, "field")
        if name not in field_names():
            raise UserError(f"unknown field {name!r}", where=where, hint=_suggest_field(name))

    def override(self, name: str, text: str, where: str) -> Any:
        value = read_value(name, text, where)
        return _checked(name, value, where, None if isinstance(value, str | list | dict) else text)


class OwnKeys:
    """The keys are those of the user's command: any name, with any value.

    Args:
        flags: How a key becomes an argument.
    """

    def __init__(self, flags: str) -> None:
        self._flags = flags

    def check_names(self, document: Document, *keys: str | int, others: Sequence[str] = ()) -> None:
        for name in document.get(*keys):
            if name in others:
                continue
            if name == COMMAND:
                hint = "write it at the top level; to vary it, write the list under zip"
                raise document.error((*keys, name), f"{COMMAND} is no key of a command", hint=hint)
            if name == _ALLOCATION:
                hint = "write allocations at the top level"
                raise document.error((*keys, name), f"{_ALLOCATION} is no key of a command", hint=hint)
            self._check_name(name, document.where(*keys, name))

    def _check_name(self, name: str, where: str) -> None:
        if not name.strip() or "\0" in name:
            raise UserError(f"the key {name!r} is no name", where=where, hint="name an option of the command")
        if name.startswith("-") and f"-{KEY}" in self._flags:
            hint = f"write {name.lstrip('-')}: flags puts the dashes before it"
            raise UserError(f"the key {name!r} begins with a dash", where=where, hint=hint)

    def value_at(self, document: Document, name: str, *keys: str | int) -> Any:
        if name == COMMAND:
            return read_command(document, *keys)
        value = document.get(*keys)
        _check_argument(name, value, document.where(*keys))
        return value

    def check_override(self, name: str, where: str) -> None:
        _check_section(name, where, "key")
        if name == _ALLOCATION:
            hint = "--set changes keys under base only; edit the sweep file"
            raise UserError(f"{_ALLOCATION} is no key of a command", where=where, hint=hint)
        self._check_name(name, where)

    def override(self, name: str, text: str, where: str) -> Any:
        try:
            value = parse_value(text)
        except UserError as error:
            raise UserError(error.message, where=where, hint=error.hint) from None
        _check_argument(name, value, where)
        return value


def read_command(document: Document, *keys: str | int) -> str:
    """The command at `keys`.

    Raises:
        UserError: It is not a string, or cannot be started; the error names the line.
    """
    value = document.get(*keys)
    if not isinstance(value, str):
        text = document.written(*keys) or shorten(repr(value))
        hint = "write one text, for example python train.py"
        if isinstance(value, list) and keys == (COMMAND,):
            hint = f"{hint}; for several commands, write the list under zip"
        raise document.error(keys, f"{COMMAND} is {text}, not a string", hint=hint)
    try:
        check_command(value)
    except UserError as error:
        raise document.error(keys, error.message, hint=error.hint) from None
    return value


def _check_argument(name: str, value: Any, where: str) -> None:
    """Checks that a value can be an argument: no argument can have a zero byte."""
    texts = value if isinstance(value, list) else [value]
    if any(isinstance(text, str) and "\0" in text for text in texts):
        raise UserError(f"{name} has a zero byte, which no argument can have", where=where, hint="drop it")


def _check_section(name: str, where: str, kind: str) -> None:
    """Checks that an override does not name a section of the sweep file, as in ``slurm.time``."""
    section, _, rest = name.partition(".")
    if section == "base" and rest:
        raise UserError(f"{name} is not a {kind} of a run", where=where, hint=f"write --set {rest}=VALUE")
    if section in SECTIONS:
        hint = f"--set changes {kind}s under base only; edit the sweep file"
        raise UserError(f"{section} is not a {kind} of a run", where=where, hint=hint)


def _suggest_field(name: str, others: Sequence[str] = ()) -> str:
    """The hint for a name that is not a field; only the entries of `exclude` and `include` accept `allocation`."""
    elsewhere = {Place.TOP: SECTIONS, Place.SLURM: ClusterProfile.model_fields}
    if _ALLOCATION not in others:
        return suggest_key(name, field_names(), Place.BASE, elsewhere)
    # For seeds and allocations, an entry has keys of its own.
    elsewhere[Place.TOP] = tuple(key for key in SECTIONS if key not in ("seeds", "allocations"))
    return suggest_key(name, (*field_names(), *others), Place.ENTRY, elsewhere)


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
