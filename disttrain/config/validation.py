"""Strict validation of the plain values of a `TrainConfig`, and the value in the text of a flag."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from disttrain.config.field_docs import field_meaning
from disttrain.config.synonyms import Place
from disttrain.config.train_config import TrainConfig, field_names
from disttrain.config.unknown_key import suggest_key
from disttrain.config.value_errors import describe_value_error
from disttrain.config.yaml_nodes import NodeBuilder
from disttrain.config.yaml_scalars import compose
from disttrain.errors import FieldsError, UserError, shorten


def parse_value(text: str) -> Any:
    """The YAML value in the text of a flag or of ``--set``.

    Raises:
        UserError: The text is not YAML, or has what a sweep file cannot have (`jobs.planning.yaml_file.parse_yaml`).

    Example:
        >>> parse_value("2e-5"), parse_value("{hidden_size: 32}"), parse_value("no")
        (2e-05, {'hidden_size': 32}, 'no')
    """
    try:
        node = compose(text, "")
    except UserError as error:
        hint = "write one value, for example 2e-5 or {hidden_size: 32}"
        raise UserError(f"{shorten(repr(text))} is not YAML: {error.message}", hint=hint) from None
    if node is None:
        return None
    try:
        return NodeBuilder("").build(node, ())
    except UserError as error:
        place = (error.where or "").partition(": ")[2]  # inside the value; its line is of no use
        raise UserError(": ".join(filter(None, [place, error.message])), hint=error.hint) from None


_NO_TEXTS: Mapping[str, str] = MappingProxyType({})


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


def fields_schema() -> dict[str, dict[str, Any]]:
    """The JSON Schema of each field by name, with what it means."""
    properties: dict[str, dict[str, Any]] = _fields_model().model_json_schema()["properties"]
    return {name: {"description": field_meaning(name), **schema} for name, schema in properties.items()}


def validate(values: Mapping[str, Any], written: Mapping[str, str] = _NO_TEXTS) -> TrainConfig:
    """A `TrainConfig` from the plain values of YAML or flags.

    Args:
        values: The value of each field by name. Nothing is coerced: ``true`` is not 1 and ``"4"`` is not 4.
        written: The texts of numbers and booleans, as the user wrote them: 0123, 2e-5. Messages quote them.

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
        message, hint = describe_value_error(name, errors, meaning, written.get(name))
        raise FieldError(name, message, hint=hint) from None
    for name, value in values.items():
        if isinstance(value, Mapping) and not _is_json(value):
            hint = "use strings, finite numbers, true, false, null, lists and mappings"
            message = f"{name} is {shorten(repr(value))}, which cannot be written as JSON"
            raise FieldError(name, message, hint=hint)
    return TrainConfig(**{name: getattr(checked, name) for name in values})


class FieldError(FieldsError):
    """A mistake in one field of a config; `field` names it, so that the caller can name the source of the value."""

    def __init__(self, field: str, message: str, *, hint: str | None = None) -> None:
        super().__init__((field,), message, hint=hint)
        self.field = field


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return True
