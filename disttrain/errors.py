"""The errors that are the user's to mend: told in one line, never as a traceback."""

from __future__ import annotations


class UserError(Exception):
    """A mistake in what the user gave: a value, a file, an environment.

    Args:
        message: What is wrong, naming the value with ``!r``.
        where: Where it came from (``sweep.yaml:7: base.lr``, ``--lr``), put before the message.
        hint: How to mend it, put behind the message in parentheses.

    Example:
        >>> print(UserError("lr is 'fast', not a number", where="sweep.yaml:7", hint="write lr: 2e-5"))
        sweep.yaml:7: lr is 'fast', not a number (write lr: 2e-5)
    """

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        self.message = message
        self.where = where
        self.hint = hint
        # One line whatever the parts hold: messages of other libraries that we quote may span several.
        text = f"{where}: {message}" if where else message
        text = f"{text} ({hint})" if hint else text
        super().__init__(" ".join(text.split()))

    def __reduce__(self) -> tuple[object, ...]:
        # The default would rebuild from args alone and lose the parts.
        return (_rebuild, (self.message, self.where, self.hint))


class FieldsError(UserError):
    """A mistake in fields of a config, alone or together: `fields` names them, so that a caller can say where."""

    def __init__(self, fields: tuple[str, ...], message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.fields = fields


class NewerAttempt(RuntimeError):
    """Another process has started this run again: what this one still does must not be kept."""


class BrokenNode(RuntimeError):
    """A rank computes wrongly: what it trains is worth nothing, and the fault is its machine's, not the user's."""


def _rebuild(message: str, where: str | None, hint: str | None) -> UserError:
    return UserError(message, where=where, hint=hint)
