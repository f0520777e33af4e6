"""What a sweep file says of commands: `command`, `flags`, `launcher` and others, and which runs are commands."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from disttrain.config.command.command_config import DEFAULT_FLAGS, RANKS
from disttrain.config.command.command_text import check_flags, check_launcher, check_smoke
from disttrain.config.yaml_nodes import KeyPath
from disttrain.errors import UserError, shorten, suggest_name
from jobs.planning.run_keys import COMMAND, FieldKeys, OwnKeys, RunKeys, read_command
from jobs.planning.yaml_file import Document

_SETTINGS = ("flags", "switches", "launcher", "smoke")
_SMOKE_EXAMPLE = "--max-steps 2"


@dataclass(frozen=True)
class CommandSection:
    """How the commands of a sweep run.

    Args:
        command: The command of all runs; None if the sweep has none, or several.
        flags: How a key and its value become arguments.
        switches: The keys that are written without a value.
        launcher: What starts the processes.
        smoke: What a smoke run of a command gets as further arguments; empty for none.
        own_keys: Whether every run of `base`, `axes` and `zip` is a command, so that the keys are the user's.
    """

    command: str | None = None
    flags: str = DEFAULT_FLAGS
    switches: tuple[str, ...] = ()
    launcher: str = RANKS
    smoke: str = ""
    own_keys: bool = False

    @property
    def keys(self) -> RunKeys:
        """The keys of `base`, `axes`, `zip` and `exclude`."""
        if self.own_keys:
            return self.keys_of_commands
        return FieldKeys()

    @property
    def keys_of_commands(self) -> OwnKeys:
        """The keys of an entry of `include` that has a command."""
        return OwnKeys(self.flags)


class KeyedValue(NamedTuple):
    """A value in the sweep file, with its key and its place."""

    name: str
    value: Any
    keys: KeyPath


def read_commands(document: Document) -> CommandSection:
    """What the file says of commands.

    Raises:
        UserError: A value is wrong, or nothing that it is for has a command.
    """
    zipped = _zipped_commands(document)
    command = None
    if COMMAND in document.value:
        command = read_command(document, COMMAND)
        if zipped:
            message = f"{COMMAND} has values here and at the top level, on line {document.line(COMMAND)}"
            raise document.error(("zip", COMMAND), message, hint="drop one of the two")
    if command is None and not zipped and not _included_commands(document):
        for name in _SETTINGS:
            if name in document.value:
                hint = "write command: at the top level, or drop it"
                raise document.error((name,), f"{name} is for a command, and no run has one", hint=hint)
    return CommandSection(
        command=command,
        flags=_read_text(document, "flags", DEFAULT_FLAGS, check_flags),
        switches=_read_switches(document),
        launcher=_read_text(document, "launcher", RANKS, check_launcher),
        smoke=_read_text(document, "smoke", "", check_smoke),
        own_keys=command is not None or (bool(zipped) and None not in zipped),
    )


def _zipped_commands(document: Document) -> list[Any]:
    """The values of `zip.command`, before other checks."""
    section = document.value.get("zip")
    if isinstance(section, dict) and isinstance(section.get(COMMAND), list):
        return list(section[COMMAND])
    return []


def _included_commands(document: Document) -> bool:
    entries = document.value.get("include")
    return isinstance(entries, list) and any(isinstance(entry, dict) and COMMAND in entry for entry in entries)


def _read_text(document: Document, name: str, default: str, check: Callable[[str], None]) -> str:
    if name not in document.value:
        return default
    value = document.value[name]
    if not isinstance(value, str):
        text = document.written(name) or shorten(repr(value))
        example = default or _SMOKE_EXAMPLE
        raise document.error((name,), f"{name} is {text}, not a string", hint=f'for example {name}: "{example}"')
    try:
        check(value)
    except UserError as error:
        raise document.error((name,), error.message, hint=error.hint) from None
    return value


def _read_switches(document: Document) -> tuple[str, ...]:
    if "switches" not in document.value:
        return ()
    names = document.get_list("switches")
    for index, name in enumerate(names):
        if not isinstance(name, str):
            text = document.written("switches", index) or shorten(repr(name))
            raise document.error(("switches", index), f"{text} is not a key", hint="write the name of a key")
        if name in names[:index]:
            raise document.error(("switches", index), f"{name} is repeated", hint="drop one")
    return tuple(names)


def check_switches(
    document: Document, switches: Iterable[str], values: Iterable[KeyedValue], where: Callable[..., str]
) -> None:
    """Checks that each switch is a key of the sweep, and true or false.

    Args:
        document: The sweep file.
        switches: The names.
        values: All values of the sweep.
        where: A function that returns the place of a value.

    Raises:
        UserError: It is not.
    """
    found = list(values)
    names = list(dict.fromkeys(value.name for value in found))
    for index, name in enumerate(switches):
        if name not in names:
            hint = suggest_name(name, names, "a switch is a key under base, axes, zip or include")
            raise document.error(("switches", index), f"the sweep has no key {name!r}", hint=hint)
        wrong = next((value for value in found if value.name == name and not isinstance(value.value, bool)), None)
        if wrong is not None:
            message = f"{name} is {shorten(repr(wrong.value))}, but it is a switch"
            raise UserError(message, where=where(*wrong.keys), hint="write true or false, or drop it from switches")
