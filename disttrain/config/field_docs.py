"""What each field of `TrainConfig` takes, in words and for a command line: all of it read off the annotations."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from typing import Annotated, Any, Literal

from annotated_types import DocInfo, Ge, Gt, Interval, Unit

from disttrain.config.train_config import TrainConfig

_PAGE = """# Every field of a run

The keys under `base` and `axes` of a sweep, and the flags of `bert.py` and `vit.py` (`--per_gpu_batch 4`).
Written by `python -m disttrain.config.field_docs`; a test holds it against the code.

"""


def describe_field(name: str) -> str:
    """One line on a field: its type, bounds, unit and meaning, all read off its annotation.

    Example:
        >>> describe_field("warmup_ratio")
        'number from 0 to 1; share of the steps in which lr rises to its peak'
    """
    hint = _hints()[name]
    unit = next((item.unit for item in _metadata(hint) if isinstance(item, Unit)), None)
    meaning = next(item.documentation for item in _metadata(hint) if isinstance(item, DocInfo))
    kind = _kind(hint) + _bounds(hint) + (f" in {unit}" if unit else "")
    return f"{kind}; {meaning}"


def fields_table() -> str:
    """Every field as a Markdown table: docs/config.md, which ``python -m disttrain.config.field_docs`` writes."""
    rows = ["| field | takes | default | meaning |", "|---|---|---|---|"]
    for field in dataclasses.fields(TrainConfig):
        kind, _, meaning = describe_field(field.name).partition("; ")
        default = "required" if field.default is dataclasses.MISSING else "" if field.default is None else field.default
        default = str(default).lower() if isinstance(default, bool) else default  # as YAML has it
        rows.append(f"| `{field.name}` | {kind.replace('|', 'or')} | {default} | {meaning} |")
    return "\n".join(rows) + "\n"


@functools.cache  # some ms, and every field of a flag parser asks
def _hints() -> dict[str, Any]:
    return typing.get_type_hints(TrainConfig, include_extras=True)


def _metadata(hint: Any) -> list[Any]:
    """All metadata of an annotation, those of `Annotated` inside a union included."""
    found: list[Any] = []
    if typing.get_origin(hint) is Annotated:
        inner, *items = typing.get_args(hint)
        return [*items, *_metadata(inner)]
    for argument in typing.get_args(hint):
        found += _metadata(argument)
    return found


def _plain_types(hint: Any) -> list[Any]:
    origin = typing.get_origin(hint)
    if origin is Annotated:
        return _plain_types(typing.get_args(hint)[0])
    if origin in (typing.Union, types.UnionType):
        return [kind for part in typing.get_args(hint) if part is not type(None) for kind in _plain_types(part)]
    return [hint]


def takes_text(name: str) -> bool:
    """Whether a field holds text and nothing else, so that what a command line gives is not read as YAML."""
    return _plain_types(_hints()[name]) == [str]


def _kind(hint: Any) -> str:
    return " or ".join(_kind_of(kind) for kind in _plain_types(hint))


def _kind_of(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return " | ".join(str(choice) for choice in typing.get_args(kind))
    return {str: "text", int: "whole number", float: "number", bool: "true or false"}.get(kind, "mapping")


def _bounds(hint: Any) -> str:
    for item in _metadata(hint):
        if isinstance(item, Interval):
            below = f"to {item.le}" if item.le is not None else f"to below {item.lt}"
            return f" from {item.ge} {below}"
        if isinstance(item, Ge):
            return f" from {item.ge}"
        if isinstance(item, Gt):
            return f" above {item.gt}"
    return ""


if __name__ == "__main__":
    print(_PAGE + fields_table(), end="")
