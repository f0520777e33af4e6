"""Strict validation of the plain values of a `TrainConfig`, and the YAML scalars that they are read from."""

from __future__ import annotations

import dataclasses
import json
import re
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from disttrain.config.field_docs import field_meaning
from disttrain.config.synonyms import Place
from disttrain.config.train_config import TrainConfig, field_names
from disttrain.config.unknown_key import suggest_key
from disttrain.config.value_errors import describe_value_error
from disttrain.errors import FieldsError, UserError


class ScalarLoader(yaml.SafeLoader):
    """SafeLoader in which 2e-5 is a number, and only true and false are booleans (YAML 1.2's core schema).

    YAML 1.1 reads 2e-5 as a string, and yes, no, on and off as booleans.
    """


_FLOAT = re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$")
_INT = re.compile(r"^[-+]?[0-9]+$")


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    """SafeLoader's resolvers by first character, with those of YAML 1.1's scalars replaced."""
    replaced = ("float", "int", "bool", "timestamp")
    resolvers = {
        first: [(tag, pattern) for tag, pattern in pairs if tag.rsplit(":", 1)[-1] not in replaced]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    for tag, pattern, first_characters in (
        ("bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), "tTfF"),
        ("int", _INT, "-+0123456789"),
        ("float", _FLOAT, "-+0123456789."),
    ):
        for first in first_characters:
            resolvers.setdefault(first, []).append((f"tag:yaml.org,2002:{tag}", pattern))
    return resolvers


ScalarLoader.yaml_implicit_resolvers = _resolvers()


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    # SafeLoader's own constructor reads 010 as octal 8, which is wrong for a batch size.
    return int(loader.construct_scalar(node))


ScalarLoader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def parse_value(text: str) -> Any:
    """The YAML value in the text of a flag or of ``--set``.

    Raises:
        UserError: The text is not YAML.

    Example:
        >>> parse_value("2e-5"), parse_value("{hidden_size: 32}"), parse_value("no")
        (2e-05, {'hidden_size': 32}, 'no')
    """
    try:
        return yaml.load(text, ScalarLoader)  # noqa: S506 - ScalarLoader is a SafeLoader
    except yaml.YAMLError as error:
        raise UserError(f"{text!r} is not YAML: {error}") from None


@cache
def _fields_model() -> type[BaseModel]:
    """A pydantic model with the fields of `TrainConfig`: in strict mode pydantic builds no dataclass from a mapping."""
    hints = typing.get_type_hints(TrainConfig, include_extras=True)
    fields: dict[str, Any] = {
        field.name: (hints[field.name], ... if field.default is dataclasses.MISSING else field.default)
        for field in dataclasses.fields(TrainConfig)
    }
    strict = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    return create_model("TrainConfigFields", __config__=strict, **fields)


def validate(values: Mapping[str, Any]) -> TrainConfig:
    """A `TrainConfig` from the plain values of YAML or flags.

    Args:
        values: The value of each field by name. Nothing is coerced: ``true`` is not 1 and ``"4"`` is not 4.

    Raises:
        FieldError: The first mistake, with the name of its field.
    """
    for name in values:
        if name not in field_names():
            raise FieldError(name, f"unknown field {name!r}", hint=suggest_key(name, field_names(), Place.BASE))
    try:
        checked = _fields_model().model_validate(dict(values))
    except ValidationError as error:
        errors = error.errors(include_url=False)
        name = str(errors[0]["loc"][0])
        if errors[0]["type"] == "missing":
            raise FieldError(name, f"{name} is missing", hint="this field is required") from None
        meaning = field_meaning(name).partition("; ")[0]  # what follows it is the default, or a special value
        message, hint = describe_value_error(name, errors, meaning)
        raise FieldError(name, message, hint=hint) from None
    for name, value in values.items():
        if isinstance(value, Mapping) and not _is_json(value):
            hint = "use strings, finite numbers, true, false, null, lists and mappings"
            raise FieldError(name, f"{name} is {value!r}, which cannot be written as JSON", hint=hint)
    return TrainConfig(**{name: getattr(checked, name) for name in values})


class FieldError(FieldsError):
    """A mistake in one field of a config; `field` names it, so that the caller can name the source of the value."""

    def __init__(self, field: str, message: str, *, hint: str | None = None) -> None:
        super().__init__((field,), message, hint=hint)
        self.field = field


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True
