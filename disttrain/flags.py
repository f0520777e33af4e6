"""The command line of bert.py and vit.py: every field of `TrainConfig` as a flag of the same name."""

from __future__ import annotations

import argparse
import dataclasses
import types
import typing
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NoReturn

from annotated_types import DocInfo, Ge, Gt, Interval, Unit

from disttrain.config import TrainConfig, field_names
from disttrain.errors import UserError


def parse_flags(model: str, arguments: Sequence[str]) -> TrainConfig:
    """The config of one run from the flags behind ``bert.py``.

    Values are read as YAML, those of text fields as they stand.

    Args:
        model: The family whose script was started.
        arguments: ``sys.argv[1:]``; both ``--lr 2e-5`` and ``--lr=2e-5``.

    Raises:
        UserError: An unknown flag, or a value that its field does not take.

    Example:
        >>> parse_flags("bert", ["--lr=2e-5", "--max_steps", "3"]).max_steps
        3
    """
    from disttrain.schema import FieldError, validate

    texts = vars(_parser(model).parse_args(list(arguments)))
    values = {"model": model} | {name: read_value(name, text) for name, text in texts.items()}
    try:
        return validate(values)
    except FieldError as error:
        raise UserError(error.message, where=f"--{error.field}", hint=error.hint) from None


def read_value(name: str, text: str) -> Any:
    """The value of a field as a command line gives it: YAML, but of a text field the text as it stands.

    Raises:
        UserError: The text is not YAML.

    Example:
        >>> read_value("lr", "2e-5"), read_value("dataset_config", "3")
        (2e-05, '3')
    """
    from disttrain.schema import parse_value

    return text if name in field_names() and _takes_text(name) else parse_value(text)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message, hint=f"{self.prog} --help lists the flags")


def _parser(model: str) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=f"{model}.py",
        description=f"Train {model} on this rank. Started once for each rank by torchrun, srun or the sweep command.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    for field in dataclasses.fields(TrainConfig):
        if field.name != "model":
            help_text = describe_field(field.name).replace("%", "%%")
            if field.default is not None:
                help_text += f" (default {field.default})"
            parser.add_argument(f"--{field.name}", metavar="VALUE", help=help_text)
    return parser


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


def _takes_text(name: str) -> bool:
    return _plain_types(_hints()[name]) == [str]


def _kind(hint: Any) -> str:
    kind = _plain_types(hint)[0]
    if typing.get_origin(kind) is Literal:
        return " | ".join(str(choice) for choice in typing.get_args(kind))
    return {str: "text", int: "whole number", float: "number"}.get(kind, "mapping")


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
