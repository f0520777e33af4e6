"""One sentence about a value that pydantic does not accept: a field of a run, a key of a profile, an option."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from disttrain.errors import shorten, suggest_name

_KINDS = {
    "int_type": "an integer",
    "int_parsing": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "a string",
    "dict_type": "a mapping",
    "list_type": "a list",
    "tuple_type": "a list",
}
# The limit of each type of error: its key in the error's context, and its words.
_LIMITS = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}
_NUMBERS = {
    "an integer": re.compile(r"[-+]?[0-9]+"),
    "a number": re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?"),
}


def describe_value_error(
    name: str, errors: Sequence[Mapping[str, Any]], meaning: str = "", written: str | None = None
) -> tuple[str, str]:
    """The message and the hint for a value that pydantic does not accept.

    Args:
        name: The name of the value, as the user writes it: ``lr``, ``--step``.
        errors: The errors of pydantic. The first one decides; a union adds one error for each of its types.
        meaning: The meaning of the value: the hint if the value itself suggests none.
        written: The text of a number or boolean, as the user wrote it, for example 0123. Strings need none.

    Example:
        >>> describe_value_error("lr", [{"type": "greater_than", "ctx": {"gt": 0.0}, "input": -1, "loc": ("lr",)}])
        ('lr is -1; it must be greater than 0', '')
    """
    first = errors[0]
    value = first["input"]
    shown = shorten(repr(value))
    if written is not None:
        shown = shorten(written) or "null"  # YAML reads nothing as null
    if first["type"] in _KINDS:
        kinds = [_KINDS[error["type"]] for error in errors if _same_value(error, first) and error["type"] in _KINDS]
        kinds = list(dict.fromkeys(kinds))
        return f"{name} is {shown}, not {_alternatives(kinds)}", _quotes_hint(value, kinds, written) or meaning
    if first["type"] in _LIMITS:
        key, words = _LIMITS[first["type"]]
        number = shown.strip("'")  # a command line has a text
        return f"{name} is {number}; it must be {words} {_number(first['ctx'][key])}", meaning
    if first["type"] == "string_too_short":
        return f"{name} is empty", meaning
    choices = _choices(first)
    if choices:
        return f"{name} is {shown}; choose {_alternatives(choices)}", suggest_name(str(value), choices, meaning)
    message = str(first["msg"])
    return f"{name} is {shown}: {message[:1].lower()}{message[1:]}", meaning


def _same_value(error: Mapping[str, Any], first: Mapping[str, Any]) -> bool:
    """Whether two errors are about one value. In a union, the last part of `loc` is the type that was tried."""
    return error is first or (len(first["loc"]) > 1 and error["loc"][:-1] == first["loc"][:-1])


def _quotes_hint(value: object, kinds: Sequence[str], written: str | None) -> str:
    """The hint for a value whose only mistake is that it has, or lacks, quotes."""
    if isinstance(value, str) and any(_NUMBERS[kind].fullmatch(value) for kind in kinds if kind in _NUMBERS):
        return "remove the quotes"
    if kinds == ["a string"] and isinstance(value, int | float):
        text = written or json.dumps(value)  # true, not True
        return f'quote it: "{shorten(text)}"'
    return ""


def _choices(error: Mapping[str, Any]) -> list[str]:
    """The accepted strings, which pydantic quotes for a Literal, and typer for an enum."""
    if error["type"] == "literal_error":
        return re.findall(r"'([^']*)'", error["ctx"]["expected"])
    return re.findall(r"'([^']*)'", error["msg"].partition(" is not one of ")[2])


def _alternatives(texts: Sequence[str]) -> str:
    """The texts as a list in a sentence: a, b or c."""
    return " or ".join([*filter(None, [", ".join(texts[:-1])]), texts[-1]])


def _number(limit: float) -> str:
    if float(limit).is_integer():
        return str(int(limit))
    return str(limit)
