"""The bounds of numbers, and which value of a key counts."""

from __future__ import annotations

import pytest

from disttrain.config.validation import parse_value
from disttrain.errors import UserError


@pytest.mark.parametrize("sign", ["", "-"])
def test_the_largest_number_fits_64_bits(sign: str) -> None:
    assert parse_value(f"{sign}{2**63 - 1}") == int(f"{sign}{2**63 - 1}")
    with pytest.raises(UserError, match="is too large for a number"):
        parse_value(f"{sign}{2**63}")


def test_a_key_replaces_what_it_merges() -> None:
    text = "{base: &base {lr: 1, seed: 2}, before: {lr: 3, <<: *base}, after: {<<: *base, lr: 4}}"
    assert parse_value(text) == {
        "base": {"lr": 1, "seed": 2},
        "before": {"lr": 3, "seed": 2},
        "after": {"lr": 4, "seed": 2},
    }
