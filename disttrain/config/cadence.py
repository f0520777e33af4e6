"""The interval between the checkpoints of a run, as checkpoint_every gives it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from disttrain.errors import FieldsError, shorten


@dataclass(frozen=True)
class Cadence:
    """The interval between the checkpoints of a run; exactly one of the three is set."""

    steps: int | None = None
    seconds: float | None = None
    share: float | None = None  # the share of the time that saving may take, between 0 and 1


def parse_cadence(value: int | str) -> Cadence:
    """The meaning of a value of checkpoint_every.

    Raises:
        FieldsError: The value has none of the three forms.

    Example:
        >>> parse_cadence(500), parse_cadence("600s"), parse_cadence("1%")
        (Cadence(steps=500, seconds=None, share=None), Cadence(steps=None, seconds=600.0, share=None), \
Cadence(steps=None, seconds=None, share=0.01))
    """
    if isinstance(value, int) and value > 0:
        return Cadence(steps=value)
    match = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)(s|%)", str(value))
    if match:
        number, unit = float(match[1]), match[2]
        if unit == "s" and number > 0:
            return Cadence(seconds=number)
        if unit == "%" and 0 < number < 100:
            return Cadence(share=number / 100)
    raise FieldsError(
        ("checkpoint_every",),
        f"checkpoint_every is {shorten(repr(value))}",
        hint="write a number of steps (500), of seconds (600s) or a share of the time (1%)",
    )
