"""The values of checkpoint_every: a number of steps, of seconds, or a share of the time."""

from __future__ import annotations

import pytest

from disttrain.config.cadence import Cadence, parse_cadence
from disttrain.errors import FieldsError


@pytest.mark.parametrize(
    ("value", "cadence"),
    [
        (1, Cadence(steps=1)),
        ("0.5s", Cadence(seconds=0.5)),
        ("600s", Cadence(seconds=600.0)),
        ("2.5%", Cadence(share=0.025)),
        ("99%", Cadence(share=0.99)),
    ],
)
def test_each_form_has_its_unit(value: int | str, cadence: Cadence) -> None:
    assert parse_cadence(value) == cadence


@pytest.mark.parametrize("value", [0, -5, "0s", "0%", "100%", "250%", "500", "10m", "1 %", "-1s", "1e3s", ".5s", ""])
def test_any_other_value_is_refused(value: int | str) -> None:
    """A share of 100 % would leave no time to train."""
    with pytest.raises(FieldsError, match="checkpoint_every is"):
        parse_cadence(value)
