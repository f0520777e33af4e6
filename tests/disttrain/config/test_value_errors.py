"""The sentence for each kind of value that pydantic does not accept."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge, Gt, Le, Lt, MinLen, MultipleOf
from pydantic import TypeAdapter, ValidationError

from disttrain.config.value_errors import describe_value_error


@pytest.mark.parametrize(
    ("kind", "value", "message", "hint"),
    [
        (int, "x", "x is 'x', not an integer", "its meaning"),
        (int, "4", "x is '4', not an integer", "remove the quotes"),
        (int, "4.5", "x is '4.5', not an integer", "its meaning"),
        (float, "2e-5", "x is '2e-5', not a number", "remove the quotes"),
        (bool, 1, "x is 1, not true or false", "its meaning"),
        (str, 1, "x is 1, not a string", 'quote it: "1"'),
        (str, True, "x is True, not a string", 'quote it: "true"'),
        (str, [1], "x is [1], not a string", "its meaning"),
        (list[int | str], [1.5], "x is 1.5, not an integer or a string", "its meaning"),
        (dict[str, int], 3, "x is 3, not a mapping", "its meaning"),
        (list[int], 3, "x is 3, not a list", "its meaning"),
        (Annotated[int, Ge(1)], 0, "x is 0; it must be at least 1", "its meaning"),
        (Annotated[float, Gt(0.5)], 0, "x is 0; it must be greater than 0.5", "its meaning"),
        (Annotated[int, Le(2**32 - 1)], 2**32, "x is 4294967296; it must be at most 4294967295", "its meaning"),
        (Annotated[int, Lt(3)], 3, "x is 3; it must be less than 3", "its meaning"),
        (Annotated[str, MinLen(1)], "", "x is empty", "its meaning"),
        (Literal["fp32", "bf16"], "bf", "x is 'bf'; choose fp32 or bf16", "did you mean bf16?"),
        (Literal["fp32", "bf16"], 8, "x is 8; choose fp32 or bf16", "its meaning"),
        (Annotated[int, MultipleOf(2)], 3, "x is 3: input should be a multiple of 2", "its meaning"),
    ],
)
def test_names_value_and_rule(kind: Any, value: object, message: str, hint: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(kind).validate_python(value, strict=True)
    assert describe_value_error("x", caught.value.errors(), "its meaning") == (message, hint)
