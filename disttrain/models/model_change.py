"""The outcome of each change that makes a model faster than the published one: made, or not and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ModelChange:
    """The outcome of one change that a config field asks for."""

    field: str
    obstacle: str | None = None  # the reason why the model was not changed; None: it was changed


def changes_made(changes: Sequence[ModelChange]) -> tuple[str, ...]:
    """The fields that took effect.

    Example:
        >>> changes_made([ModelChange("compact_vocab", "it is tied"), ModelChange("trim_last_layer")])
        ('trim_last_layer',)
    """
    return tuple(change.field for change in changes if change.obstacle is None)


def change_notices(changes: Sequence[ModelChange]) -> tuple[str, ...]:
    """A notice for each field that had no effect.

    Example:
        >>> change_notices([ModelChange("compact_vocab", "it is tied"), ModelChange("trim_last_layer")])
        ('compact_vocab has no effect: it is tied',)
    """
    return tuple(
        f"{change.field} has no effect: {change.obstacle}" for change in changes if change.obstacle is not None
    )
