"""From the nodes of a YAML text to plain values, with the line of each value."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import yaml

from disttrain.config.yaml_scalars import ScalarLoader
from disttrain.errors import UserError, shorten

# No person writes more than this. The bounds stop an alias bomb before it fills the memory: a few lines of aliases to
# aliases can stand for billions of values.
MAX_VALUES = 100_000
MAX_DEPTH = 64
# A larger number is a typo: no field needs it, and JSON readers of other languages cannot hold it.
MAX_INTEGER = 2**63 - 1

# The path to a value: mapping keys and list indices from the root, as in ("axes", "lr", 1).
KeyPath = tuple[str | int, ...]

_TAG = "tag:yaml.org,2002:"
NULL_TAG = _TAG + "null"
_SCALAR_TAGS = frozenset(_TAG + name for name in ("null", "bool", "int", "float", "str"))
_MERGE_TAG = _TAG + "merge"


def dotted(keys: KeyPath) -> str:
    """A key path as text.

    Example:
        >>> dotted(("axes", "lr", 1))
        'axes.lr[1]'
    """
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).removeprefix(".")


def format_place(path: str, line: int, keys: KeyPath) -> str:
    """The place of a value, for `UserError`.

    Example:
        >>> format_place("s.yaml", 4, ("axes", "lr", 1)), format_place("s.yaml", 1, ())
        ('s.yaml:4: axes.lr[1]', 's.yaml:1')
    """
    place = f"{path}:{line}"
    if keys:
        place += f": {dotted(keys)}"
    return place


class NodeBuilder:
    """Converts nodes to values. Notes the line of each value in `lines`, and the text of each number in `texts`.

    An alias is built again at each place that uses it, so no two values share a list or mapping.
    """

    def __init__(self, path: str) -> None:
        self.lines: dict[KeyPath, int] = {}
        self.texts: dict[KeyPath, str] = {}  # of every scalar that is not a string: 0123, 2e-5, True, ~
        self._path = path
        self._loader = ScalarLoader("")
        self._open: set[int] = set()
        self._count = 0

    def build(self, node: yaml.Node, keys: KeyPath) -> Any:
        """The value of `node`, whose path is `keys`.

        Raises:
            UserError: See `jobs.planning.yaml_file.parse_yaml`.
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
        """Key and value nodes by name: first those merged by ``<<``, then the mapping's own, which replace them."""
        own: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        merged: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        with self._entered(node, keys):
            for key, value in node.value:
                name = self._name(key, keys)
                if name in own:
                    hint = f"first on line {own[name][0].start_mark.line + 1}; drop one"
                    raise self._error(key, (*keys, name), f"key {shorten(repr(name))} is given twice", hint)
                own[name] = key, value
                if key.tag == _MERGE_TAG:
                    merged = self._merged(value, keys)
        return merged | {name: pair for name, pair in own.items() if pair[0].tag != _MERGE_TAG}

    def _merged(self, node: yaml.Node, keys: KeyPath) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        sources = [node]
        if isinstance(node, yaml.SequenceNode):
            sources = node.value
        pairs: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for source in sources:
            if not isinstance(source, yaml.MappingNode):
                raise self._error(node, (*keys, "<<"), "only mappings merge", "write <<: *name of a mapping's anchor")
            pairs = self._pairs(source, keys) | pairs  # YAML's merge type: the first source wins
        return pairs

    def _name(self, key: yaml.Node, keys: KeyPath) -> str:
        if not isinstance(key, yaml.ScalarNode):
            raise self._error(key, keys, "a list or mapping is used as a key", "write a string")
        if key.tag not in (_TAG + "str", _MERGE_TAG):
            text = shorten(key.value)
            raise self._error(key, keys, f"the key {text} is not a string", f'quote it: "{text}"')
        return str(key.value)

    def _scalar(self, node: yaml.ScalarNode, keys: KeyPath) -> Any:
        if node.tag not in _SCALAR_TAGS:
            raise self._tag_error(node, keys)
        try:
            value = self._loader.construct_object(node)  # type: ignore[no-untyped-call, unused-ignore]
            str(value).encode()  # fails for "\\ud800", half a surrogate pair, which no file or terminal accepts
        except (ValueError, LookupError):
            message = f"{shorten(repr(node.value))} is not a valid {node.tag.removeprefix(_TAG)}"
            raise self._error(node, keys, message, "quote it if it is text") from None
        text = shorten(node.value)
        if isinstance(value, float) and not math.isfinite(value):
            raise self._error(node, keys, f"{text} is not a finite number", "write a finite number")
        if isinstance(value, int) and abs(value) > MAX_INTEGER:
            raise self._error(node, keys, f"{text} is too large for a number", "quote it if it is text")
        if not isinstance(value, str):
            self.texts[keys] = node.value
        return value

    @contextmanager
    def _entered(self, node: yaml.Node, keys: KeyPath) -> Iterator[None]:
        """Counts a node, and marks it as open while its content is built."""
        self._count += 1
        if self._count > MAX_VALUES:
            raise self._error(node, keys, f"more than {MAX_VALUES} values, aliases included", "use fewer aliases")
        if id(node) in self._open:
            raise self._error(node, keys, "an alias is inside its own anchor", "write the value instead of the alias")
        if len(self._open) >= MAX_DEPTH:
            raise self._error(node, keys[:3], f"nested deeper than {MAX_DEPTH} levels", "use fewer levels")
        self._open.add(id(node))
        try:
            yield
        finally:
            self._open.remove(id(node))

    def _tag_error(self, node: yaml.Node, keys: KeyPath) -> UserError:
        tag = shorten(node.tag.replace(_TAG, "!!"))
        return self._error(node, keys, f"the tag {tag} is not supported", "drop it")

    def _error(self, node: yaml.Node, keys: KeyPath, message: str, hint: str) -> UserError:
        return UserError(message, where=format_place(self._path, node.start_mark.line + 1, keys), hint=hint)
