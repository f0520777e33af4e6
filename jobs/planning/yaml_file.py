"""Strict YAML files: plain values, and the line that each of them came from.

What YAML lets pass and a person did not mean is an error here, told with file and line: a key given twice, a key that
is no text, a number that is not finite, a second document, a custom tag. Anchors, aliases and merge keys work as usual.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from disttrain.config.validation import ScalarLoader
from disttrain.errors import UserError

# Far above any file that a person writes. They end a wrong file (a data set, say) and an alias bomb, whose few lines of
# aliases to aliases stand for billions of values, before either fills the memory.
MAX_SIZE_BYTES = 1 << 20
MAX_VALUES = 100_000
MAX_DEPTH = 64

# The way to a value: mapping keys and list positions from the root, as ("axes", "lr", 1).
KeyPath = tuple[str | int, ...]

_TAG = "tag:yaml.org,2002:"
_SCALAR_TAGS = frozenset(_TAG + name for name in ("null", "bool", "int", "float", "str"))
_MERGE_TAG = _TAG + "merge"

_SYNTAX_HINTS = {
    "'\\t'": "indent with spaces, not with tabs",
    "mapping values are not allowed": "quote a text that holds a colon and a blank; keys of one mapping align",
    "found undefined alias": "an anchor &name comes before its alias *name",
    "found another document": "one file holds one document: drop the --- between them",
}


@dataclass(frozen=True)
class Document:
    """A YAML file as it was read: its root mapping, and where each value stood.

    Args:
        path: The file, as the user named it.
        text: All of it.
        value: The root mapping, of plain values: dict, list, str, int, float, bool and None.
        lines: The line of every key and list item, counted from 1; of the root under ``()``.
    """

    path: str
    text: str
    value: Mapping[str, Any]
    lines: Mapping[KeyPath, int]

    def line(self, *keys: str | int) -> int:
        """The line of a value; of what would hold it, where the value itself is not there."""
        while keys not in self.lines:
            keys = keys[:-1]
        return self.lines[keys]

    def where(self, *keys: str | int) -> str:
        """The place of a value, for `UserError`.

        Example:
            >>> parse_yaml("axes:\\n  lr: [1, 2]", "sweep.yaml").where("axes", "lr", 1)
            'sweep.yaml:2: axes.lr[1]'
        """
        return _where(self.path, self.line(*keys), keys)

    def error(self, keys: KeyPath, message: str, *, hint: str | None = None) -> UserError:
        """The error that says what is wrong with the value at `keys`, and where it stands."""
        return UserError(message, where=self.where(*keys), hint=hint)

    def get(self, *keys: str | int) -> Any:
        """The value at `keys`, which has to be there."""
        value: Any = self.value
        for key in keys:
            value = value[key]
        return value

    def get_mapping(self, *keys: str | int) -> dict[str, Any]:
        """The mapping at `keys`, which has to be there.

        Raises:
            UserError: It is something else.
        """
        value = self.get(*keys)
        if not isinstance(value, dict):
            raise self.error(
                keys, f"{dotted(keys)} is {value!r}, not a mapping", hint="write key: value lines below it"
            )
        return value

    def get_list(self, *keys: str | int) -> list[Any]:
        """The list at `keys`, which has to be there.

        Raises:
            UserError: It is something else.
        """
        value = self.get(*keys)
        if not isinstance(value, list):
            raise self.error(keys, f"{dotted(keys)} is {value!r}, not a list", hint="write [a, b], or lines of - a")
        return value

    def check_keys(self, known: Collection[str], *keys: str | int) -> None:
        """Check that the mapping at `keys` has no key but those in `known`.

        Raises:
            UserError: It has one, told with the known key that it looks like.
        """
        for name in self.get(*keys):
            if name not in known:
                raise self.error((*keys, name), f"unknown key {name!r}", hint=did_you_mean(name, known))


def did_you_mean(name: str, known: Collection[str]) -> str:
    """The hint for an unknown name: the known one that looks like it, else all of them.

    Example:
        >>> did_you_mean("axis", ["base", "axes"])
        'did you mean axes?'
    """
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    return f"did you mean {close[0]}?" if close else f"the keys are: {', '.join(known)}"


def dotted(keys: KeyPath) -> str:
    """A key path as a person writes it.

    Example:
        >>> dotted(("axes", "lr", 1))
        'axes.lr[1]'
    """
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).removeprefix(".")


def load_yaml(path: Path) -> Document:
    """Read one YAML file whose root is a mapping.

    Raises:
        UserError: The file cannot be read, or `parse_yaml` refuses its text.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_SIZE_BYTES + 1)
    except FileNotFoundError:
        raise UserError("no such file", where=str(path), hint="check the path") from None
    except IsADirectoryError:
        raise UserError("is a folder, not a file", where=str(path), hint="name the YAML file in it") from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"cannot be read: {reason}", where=str(path), hint="check path and permissions") from None
    if len(data) > MAX_SIZE_BYTES:
        raise UserError("is larger than 1 MiB", where=str(path), hint="is this the YAML file you meant?")
    try:
        return parse_yaml(data.decode(), str(path))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        message = f"is not UTF-8: byte 0x{data[error.start]:02x}"
        raise UserError(message, where=f"{path}:{line}", hint="save the file as UTF-8 text") from None


def parse_yaml(text: str, path: str) -> Document:
    """The values and lines of a YAML text whose root is a mapping.

    Args:
        text: One YAML document.
        path: The file it was read from, for messages.

    Raises:
        UserError: A syntax error, a key given twice or that is no text, a number that is not finite, more than one
            document, a root that is no mapping, a tag, or aliases that stand for far too much.

    Example:
        >>> parse_yaml("base:\\n  lr: 2e-5", "sweep.yaml").value
        {'base': {'lr': 2e-05}}
    """
    root = _compose(text, path)
    if root is None or root.tag == _TAG + "null":
        raise UserError("is empty", where=path, hint="expected lines of key: value")
    builder = _Builder(path)
    value = builder.build(root, ())
    if not isinstance(value, dict):
        raise UserError(f"holds {value!r}, not a mapping", where=path, hint="expected lines of key: value")
    return Document(path, text, value, {**builder.lines, (): root.start_mark.line + 1})


def _where(path: str, line: int, keys: KeyPath) -> str:
    return f"{path}:{line}: {dotted(keys)}" if keys else f"{path}:{line}"


def _compose(text: str, path: str) -> yaml.Node | None:
    try:
        return ScalarLoader(text).get_single_node()  # type: ignore[no-any-return, no-untyped-call, unused-ignore]
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(path, error) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        message = f"holds the control character {chr(ord(text[error.position]))!r}"
        raise UserError(message, where=f"{path}:{line}", hint="is this a text file?") from None
    except RecursionError:
        raise UserError("is nested too deeply", where=path, hint="is this the YAML file you meant?") from None


def _syntax_error(path: str, error: yaml.MarkedYAMLError) -> UserError:
    mark = error.problem_mark or error.context_mark
    assert mark is not None, "every error of a composer has a mark"
    problem = error.problem or ""
    if error.context and error.context_mark:
        problem = f"{problem}, {error.context} from line {error.context_mark.line + 1}"
    hint = next((hint for part, hint in _SYNTAX_HINTS.items() if part in problem), "the file is not valid YAML")
    return UserError(f"column {mark.column + 1}: {problem}", where=f"{path}:{mark.line + 1}", hint=hint)


class _Builder:
    """Turns nodes into values, and notes the line of each.

    An alias is built anew at each place that uses it, so that no two values share a list or mapping.
    """

    def __init__(self, path: str) -> None:
        self.lines: dict[KeyPath, int] = {}
        self._path = path
        self._loader = ScalarLoader("")
        self._open: set[int] = set()
        self._count = 0

    def build(self, node: yaml.Node, keys: KeyPath) -> Any:
        """The value of `node`, which stands at `keys`.

        Raises:
            UserError: See `parse_yaml`.
        """
        if isinstance(node, yaml.ScalarNode):
            with self._entered(node, keys):
                return self._scalar(node, keys)
        if node.tag not in (_TAG + "map", _TAG + "seq"):
            raise self._tag_error(node, keys)
        if isinstance(node, yaml.MappingNode):
            pairs = self._pairs(node, keys)
            with self._entered(node, keys):
                return {name: self._entry(key, value, (*keys, name)) for name, (key, value) in pairs.items()}
        with self._entered(node, keys):
            return [self._entry(item, item, (*keys, index)) for index, item in enumerate(node.value)]

    def _entry(self, mark: yaml.Node, node: yaml.Node, keys: KeyPath) -> Any:
        self.lines[keys] = mark.start_mark.line + 1
        return self.build(node, keys)

    def _pairs(self, node: yaml.MappingNode, keys: KeyPath) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """Key and value nodes by name: those merged in by ``<<`` first, replaced by the mapping's own."""
        own: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        merged: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        with self._entered(node, keys):
            for key, value in node.value:
                name = self._name(key, keys)
                if name in own:
                    hint = f"first on line {own[name][0].start_mark.line + 1}; drop one"
                    raise self._error(key, (*keys, name), f"key {name!r} is given twice", hint)
                own[name] = key, value
                if key.tag == _MERGE_TAG:
                    merged = self._merged(value, keys)
        return merged | {name: pair for name, pair in own.items() if pair[0].tag != _MERGE_TAG}

    def _merged(self, node: yaml.Node, keys: KeyPath) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        sources = node.value if isinstance(node, yaml.SequenceNode) else [node]
        pairs: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for source in sources:
            if not isinstance(source, yaml.MappingNode):
                raise self._error(node, (*keys, "<<"), "only mappings merge", "write <<: *name of a mapping's anchor")
            pairs = self._pairs(source, keys) | pairs  # as in YAML's merge type: the first source wins
        return pairs

    def _name(self, key: yaml.Node, keys: KeyPath) -> str:
        if not isinstance(key, yaml.ScalarNode):
            raise self._error(key, keys, "a list or mapping stands as a key", "a key is a text")
        if key.tag not in (_TAG + "str", _MERGE_TAG):
            raise self._error(key, keys, f"the key {key.value} is not a text", f'quote it: "{key.value}"')
        return str(key.value)

    def _scalar(self, node: yaml.ScalarNode, keys: KeyPath) -> Any:
        if node.tag not in _SCALAR_TAGS:
            raise self._tag_error(node, keys)
        try:
            value = self._loader.construct_object(node)  # type: ignore[no-untyped-call, unused-ignore]
            str(value).encode()  # "\\ud800", half of a character, is a text that no file or terminal takes
        except (ValueError, LookupError):
            kind = node.tag.removeprefix(_TAG)
            raise self._error(node, keys, f"{node.value!r} is no {kind}", "quote it if it is a text") from None
        if isinstance(value, float) and not math.isfinite(value):
            raise self._error(node, keys, f"{node.value} is not a finite number", "write one that a float can hold")
        return value

    @contextmanager
    def _entered(self, node: yaml.Node, keys: KeyPath) -> Iterator[None]:
        """Count a node, and hold it open while what is inside it is built."""
        self._count += 1
        if self._count > MAX_VALUES:
            raise self._error(node, keys, f"aliases and all, more than {MAX_VALUES} values", "use fewer aliases")
        if id(node) in self._open:
            raise self._error(node, keys, "an alias stands inside its own anchor", "write the value out")
        if len(self._open) >= MAX_DEPTH:
            raise self._error(node, keys[:3], f"nested deeper than {MAX_DEPTH} levels", "write it flatter")
        self._open.add(id(node))
        try:
            yield
        finally:
            self._open.remove(id(node))

    def _tag_error(self, node: yaml.Node, keys: KeyPath) -> UserError:
        tag = node.tag.replace(_TAG, "!!")
        return self._error(node, keys, f"the tag {tag} has no meaning here", "drop it")

    def _error(self, node: yaml.Node, keys: KeyPath, message: str, hint: str) -> UserError:
        return UserError(message, where=_where(self._path, node.start_mark.line + 1, keys), hint=hint)
