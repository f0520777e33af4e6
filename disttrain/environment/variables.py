"""Reads variables of an environment: a missing or wrong one is an error that names it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from disttrain.errors import UserError, shorten

# 18 digits are enough for every count, and stay below int()'s limit on the length of a text.
_NUMBER = re.compile(r"[0-9]{1,18}")


def parse_count(text: str) -> int | None:
    """The number in a text; None if the text is anything else.

    Example:
        >>> parse_count("12"), parse_count("-1"), parse_count("9" * 5000)
        (12, None, None)
    """
    if not _NUMBER.fullmatch(text):
        return None
    return int(text)


class Variables:
    """Reads a variable by name, or the first of several names that is set. An empty variable is not set."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def text(self, *names: str, default: str | None = None) -> str:
        """The text of the first variable that is set.

        Raises:
            UserError: None is set, and no default is given; the error has the first name.
        """
        name = self.first(*names)
        if name:
            return self._environ[name]
        if default is not None:
            return default
        raise UserError(f"{names[0]} is not set", where="environment", hint="start the rank with its launcher")

    def number(self, *names: str, default: int | None = None, least: int = 0, most: int | None = None) -> int:
        """The number in the first variable that is set.

        Raises:
            UserError: None is set, and no default is given; or the text is not a number, or out of bounds.
        """
        name = self.first(*names)
        if name is None and default is not None:
            return default
        text = self.text(*names)
        value = parse_count(text)
        if value is None:
            raise UserError(f"{name} is {shorten(repr(text))}, not a number", where="environment")
        if value < least or (most is not None and value > most):
            bounds = f"at least {least}" if most is None else f"from {least} to {most}"
            raise UserError(f"{name} is {value}; it must be {bounds}", where="environment")
        return value

    def optional_number(self, *names: str, least: int = 0) -> int | None:
        """The number in the first variable that is set; None if none is set. Its errors are those of `number`."""
        if self.first(*names) is None:
            return None
        return self.number(*names, least=least)

    def first(self, *names: str) -> str | None:
        """The first of these names that is set."""
        return next((name for name in names if self._environ.get(name)), None)
