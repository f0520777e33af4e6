"""JSON as this project writes and reads it: no infinity and no NaN, and one error for every kind of damage."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from disttrain.errors import UserError, shorten

_INT_LIMIT = 2**63  # a larger number is damage, and would overflow where it is divided
_DECODER = json.JSONDecoder(parse_constant=lambda _: None)  # json.loads would make one for each file


class DamagedFile(UserError):
    """A file of a run or sweep that exists and cannot be used. The message names the file, `where` its folder."""


class UnreadableFile(DamagedFile):
    """The system refuses to read the file, for example because it belongs to another user."""


def to_json(value: Any, indent: int | None = None) -> str:
    """A value as JSON.

    Infinity and NaN, at any depth, become null: JSON has no such numbers, and other parsers refuse Python's.

    Example:
        >>> to_json({"loss": float("nan"), "buckets": [{"gb_per_s": float("inf")}]})
        '{"loss": null, "buckets": [{"gb_per_s": null}]}'
    """
    try:
        return json.dumps(value, indent=indent, allow_nan=False)
    except ValueError:  # rare: the search for such numbers costs more than the text of a record
        return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(name): _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def parse_json(text: bytes | str) -> Any:
    """The value of a JSON text; NaN and infinity, which other programs may write, are null.

    Raises:
        ValueError: The text is not JSON. The message is the reason, in one line.
    """
    if not text.strip():
        raise ValueError("it is empty")
    if isinstance(text, str):
        text = text.encode("utf-8", "surrogatepass")
    if not text.strip(b"\0 \t\r\n"):
        raise ValueError("it has only zero bytes")
    try:
        return _DECODER.decode(text.decode("utf-8"))
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON: {error.msg} in line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def parse_object(text: bytes | str) -> dict[str, Any]:
    """The JSON object of a text.

    Raises:
        ValueError: The text is not a JSON object. The message is the reason, in one line.
    """
    values = parse_json(text)
    if not isinstance(values, dict):
        raise ValueError(f"it is {shorten(repr(values))}, not a JSON object")
    return values


def read_object(path: Path, hint: str | None = None) -> dict[str, Any] | None:
    """The JSON object of a file; None if the file does not exist, also if it disappears during the call.

    Args:
        path: The file.
        hint: What to do if it is damaged.

    Raises:
        DamagedFile: The file is not a JSON object, or cannot be read.
    """
    try:
        return parse_object(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UnreadableFile(f"{path.name} cannot be read: {error.strerror}", where=str(path.parent)) from None
    except ValueError as error:
        raise damaged(path, error, hint) from None


def damaged(path: Path, reason: object, hint: str | None = None) -> DamagedFile:
    """The error for a file with damaged content."""
    return DamagedFile(f"{path.name} is damaged: {reason}", where=str(path.parent), hint=hint)


def check_fields(kind: Any, values: Mapping[str, Any]) -> None:
    """Checks that values have the types of a dataclass's fields.

    Args:
        kind: The dataclass.
        values: The value of each field; a field with a default may be missing.

    Raises:
        ValueError: A field is missing or has a wrong type. The message is the reason, in one line.
    """
    for name, check, is_required in _fields(kind):
        if name not in values:
            if is_required:
                raise ValueError(f"it has no {name!r}")
        elif not check(values[name]):
            raise ValueError(f"{name} is {shorten(repr(values[name]))}")


@functools.cache  # resolving the annotations of a record type takes 1 ms, a line of a record file 20 us
def _fields(kind: Any) -> tuple[tuple[str, Callable[[Any], bool], bool], ...]:
    """The name of each field, the check of its type, and whether it has no default."""
    hints = typing.get_type_hints(kind)
    missing = dataclasses.MISSING
    return tuple(
        (field.name, type_check(hints[field.name]), field.default is missing and field.default_factory is missing)
        for field in dataclasses.fields(kind)
    )


def type_check(hint: Any) -> Callable[[Any], bool]:
    """A function that says whether a JSON value has a type; an array has the type of a tuple.

    Example:
        >>> check = type_check(tuple[float, ...] | None)
        >>> check([1, 2.5]), check(None), check(["1"]), check([float("inf")])
        (True, True, False, False)
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _any_of([type_check(argument) for argument in arguments])
    if origin is typing.Literal:
        return lambda value: value in arguments
    if origin is tuple:
        item = type_check(arguments[0])
        return lambda value: isinstance(value, list | tuple) and all(map(item, value))
    if origin is dict:
        entry = type_check(arguments[1])
        return lambda value: isinstance(value, dict) and all(map(entry, value.values()))
    return _PLAIN_CHECKS.get(hint) or _class_check(hint)


def _any_of(checks: Sequence[Callable[[Any], bool]]) -> Callable[[Any], bool]:
    def is_any(value: Any) -> bool:
        for check in checks:  # noqa: SIM110 - any() takes three times as long, and a sweep has a million values
            if check(value):
                return True
        return False

    return is_any


def _class_check(hint: Any) -> Callable[[Any], bool]:
    if isinstance(hint, type) and issubclass(hint, str):  # an enumeration of texts
        return _is_text
    return lambda _: True


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -_INT_LIMIT <= value < _INT_LIMIT


def _is_number(value: Any) -> bool:
    return (isinstance(value, float) and math.isfinite(value)) or _is_int(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


_PLAIN_CHECKS: dict[Any, Callable[[Any], bool]] = {
    type(None): lambda value: value is None,
    bool: lambda value: isinstance(value, bool),
    int: _is_int,
    float: _is_number,
    str: _is_text,
}
