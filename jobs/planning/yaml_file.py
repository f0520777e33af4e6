"""Strict YAML files: plain values, and the line of each value.

Some mistakes are valid YAML. Here they are errors with file and line: a key given twice, a key that is not a string, a
number that is not finite, a second document, a custom tag. Anchors, aliases and merge keys work as usual.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from disttrain.config.yaml_nodes import NULL_TAG, KeyPath, NodeBuilder, dotted, format_place
from disttrain.config.yaml_scalars import WRONG_FILE_HINT, compose
from disttrain.errors import UserError, shorten

# No person writes a larger file. The bound stops a wrong file (a data set, for example) before it fills the memory.
MAX_SIZE_BYTES = 1 << 20

_MAPPING_HINT = "write lines of key: value"


@dataclass(frozen=True)
class Document:
    """A YAML file: its root mapping, and the line of each value.

    Args:
        path: The file, as the user named it.
        text: The complete text.
        value: The root mapping, with plain values: dict, list, str, int, float, bool and None.
        lines: The line of every key and list item, counted from 1. The key ``()`` is the root.
        texts: The text of every number, boolean and null, as it is written: 0123, 2e-5, True.
    """

    path: str
    text: str
    value: Mapping[str, Any]
    lines: Mapping[KeyPath, int]
    texts: Mapping[KeyPath, str]

    def line(self, *keys: str | int) -> int:
        """The line of a value. For a missing value, the line of the nearest parent that exists."""
        while keys not in self.lines:
            keys = keys[:-1]
        return self.lines[keys]

    def where(self, *keys: str | int) -> str:
        """The place of a value, for `UserError`.

        Example:
            >>> parse_yaml("axes:\\n  lr: [1, 2]", "sweep.yaml").where("axes", "lr", 1)
            'sweep.yaml:2: axes.lr[1]'
        """
        return format_place(self.path, self.line(*keys), keys)

    def written(self, *keys: str | int) -> str | None:
        """The text of a number, boolean or null, as it is written. None for any other value."""
        return self.texts.get(keys)

    def error(self, keys: KeyPath, message: str, *, hint: str | None = None) -> UserError:
        """An error about the value at `keys`, with its place."""
        return UserError(message, where=self.where(*keys), hint=hint)

    def get(self, *keys: str | int) -> Any:
        """The value at `keys`, which must exist."""
        value: Any = self.value
        for key in keys:
            value = value[key]
        return value

    def get_mapping(self, *keys: str | int) -> dict[str, Any]:
        """The mapping at `keys`, which must exist.

        Raises:
            UserError: The value is not a mapping.
        """
        value = self.get(*keys)
        if not isinstance(value, dict):
            raise self._wrong_kind(keys, "a mapping", "write lines of key: value below it")
        return value

    def get_list(self, *keys: str | int) -> list[Any]:
        """The list at `keys`, which must exist.

        Raises:
            UserError: The value is not a list.
        """
        value = self.get(*keys)
        if not isinstance(value, list):
            hint = "write [a, b], or lines of - a"
            if isinstance(value, str):
                hint = f"write [{shorten(value)}]"
            elif isinstance(value, int | float):
                hint = f"write [{self.written(*keys)}]"
            raise self._wrong_kind(keys, "a list", hint)
        return value

    def _wrong_kind(self, keys: KeyPath, kind: str, hint: str) -> UserError:
        """The error for a value that is not a `kind`. Its message has the key, so its place is the line only."""
        where = format_place(self.path, self.line(*keys), ())
        text = self.written(*keys) or shorten(repr(self.get(*keys)))
        return UserError(f"{dotted(keys)} is {text}, not {kind}", where=where, hint=hint)

    def check_keys(self, known: Collection[str], suggest: Callable[[str], str], *keys: str | int) -> None:
        """Checks that `known` contains every key of the mapping at `keys`.

        Args:
            known: The accepted keys.
            suggest: A function that returns the hint for an unknown key.
            keys: The place of the mapping.

        Raises:
            UserError: A key is unknown.
        """
        for name in self.get(*keys):
            if name not in known:
                raise self.error((*keys, name), f"unknown key {shorten(repr(name))}", hint=suggest(name))


def load_yaml(path: Path) -> Document:
    """Reads a YAML file whose root is a mapping.

    Raises:
        UserError: The file cannot be read, or `parse_yaml` finds a mistake in its text.
    """
    data = _read_bytes(path)
    try:
        return parse_yaml(data.decode(), str(path))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        message = f"the file is not UTF-8: byte 0x{data[error.start]:02x}"
        raise UserError(message, where=f"{path}:{line}", hint="save the file as UTF-8 text") from None


def _read_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_SIZE_BYTES + 1)
    except FileNotFoundError:
        raise UserError("no such file", where=str(path), hint="check the path") from None
    except IsADirectoryError:
        raise UserError("this is a folder", where=str(path), hint="name the YAML file in it") from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"the file cannot be read: {reason}", where=str(path), hint="check path and permissions"
        ) from None
    if len(data) > MAX_SIZE_BYTES:
        raise UserError("the file is larger than 1 MiB", where=str(path), hint=WRONG_FILE_HINT)
    return data


def parse_yaml(text: str, path: str) -> Document:
    """The values and lines of a YAML text whose root is a mapping.

    Args:
        text: One YAML document.
        path: The name of its file, for messages.

    Raises:
        UserError: The text has a syntax error, a key given twice, a key that is not a string, a number that is not
            finite, a second document, a root that is not a mapping, a tag, or aliases that expand to too many values.

    Example:
        >>> parse_yaml("base:\\n  lr: 2e-5", "sweep.yaml").value
        {'base': {'lr': 2e-05}}
    """
    root = compose(text, path)
    if root is None or root.tag == NULL_TAG:
        raise UserError("the file is empty", where=path, hint=_MAPPING_HINT)
    builder = NodeBuilder(path)
    value = builder.build(root, ())
    if not isinstance(value, dict):
        content = f"only the value {builder.texts.get(()) or shorten(repr(value))}"
        if isinstance(value, list):
            content = "a list"
        raise UserError(f"the file contains {content}", where=path, hint=_MAPPING_HINT)
    return Document(path, text, value, {**builder.lines, (): root.start_mark.line + 1}, builder.texts)
