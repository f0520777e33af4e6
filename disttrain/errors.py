"""The errors that a run reports in one line, without a traceback, and streams that can print every text."""

from __future__ import annotations

import difflib
import io
import sys
from collections.abc import Collection
from typing import NoReturn

# The exit status of a run that has saved its state and stopped, and that should be started again.
STOPPED_STATUS = 85

_LONGEST = 200  # characters of one value in a message


class UserError(Exception):
    """A mistake in what the user gave: a value, a file, an environment.

    Args:
        message: What is wrong; names the value with ``!r``.
        where: The source of the value (``sweep.yaml:7: base.lr``, ``--lr``), printed before the message.
        hint: How to fix it, printed after the message in parentheses.

    Example:
        >>> print(UserError("lr is 'fast', not a number", where="sweep.yaml:7", hint="write lr: 2e-5"))
        sweep.yaml:7: lr is 'fast', not a number (write lr: 2e-5)
    """

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        self.message = message
        self.where = where
        self.hint = hint
        text = message
        if where:
            text = f"{where}: {text}"
        if hint:
            text = f"{text} ({hint})"
        # Always one line: quoted messages of other libraries may span several.
        super().__init__(" ".join(text.split()))

    def __reduce__(self) -> tuple[object, ...]:
        # The default would rebuild from args alone and lose the parts.
        return (_rebuild, (self.message, self.where, self.hint))


class FieldsError(UserError):
    """A mistake in one field of a config or in a combination; `fields` names them, so that a caller can say where."""

    def __init__(self, fields: tuple[str, ...], message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.fields = fields


class NewerAttempt(RuntimeError):
    """Another process has started this run again: this one must not write any more results."""


class Stopped(BaseException):
    """The ranks have stopped after a step because the job is about to end. Like KeyboardInterrupt, it is no error.

    Args:
        step: The last step.
        terminated: Whether Slurm has asked the job to end, without a warning before.
        problem: Why the step could not be saved; None if it was.
    """

    def __init__(self, step: int, *, terminated: bool, problem: str | None = None) -> None:
        super().__init__(f"stopped after step {step}")
        self.step = step
        self.terminated = terminated
        self.problem = problem

    @property
    def how(self) -> str:
        """How the run has stopped, as text."""
        if self.problem is not None:
            return f"stopped after step {self.step}, which could not be saved ({self.problem})"
        return f"stopped after step {self.step}, with a checkpoint"


class ScriptStopped(Stopped):
    """The user's script has ended with `STOPPED_STATUS`: it has saved its state, and asks to be started again.

    Args:
        logged_step: The last step that it has logged; None if it logs none.
        terminated: Whether Slurm has asked the job to end, without a warning before.
        warned: Whether the warning has come.
    """

    def __init__(self, logged_step: int | None, *, terminated: bool, warned: bool) -> None:
        super().__init__(logged_step or 0, terminated=terminated)
        self.logged_step = logged_step
        self.warned = warned

    @property
    def how(self) -> str:
        return f"the script ended with {self.end}"

    @property
    def end(self) -> str:
        """The status, and after which step."""
        text = f"status {STOPPED_STATUS}"
        if self.logged_step is not None:
            text += f" after step {self.logged_step}"
        return text


class ScriptFailed(SystemExit):
    """The user's script has failed, or that of another rank: this process ends with the same status.

    Args:
        status: The exit status of the script, negative for a signal.
        number: The signal by which this process is to end too; None if it ends with a status.
    """

    def __init__(self, status: int, number: int | None = None) -> None:
        super().__init__(128 - status if status < 0 else status)
        self.number = number


class CollectiveTimeout(RuntimeError):
    """Ranks waited in a collective of a training step for one that did not come; the message names it."""


class BrokenNode(RuntimeError):
    """A rank computes wrong results: its training is worthless, and the fault is in its machine, not the user's."""


def suggest_name(name: str, known: Collection[str], otherwise: str, *, cutoff: float = 0.6) -> str:
    """A hint for an unknown name: the known name that is closest to it, or another hint if none is close.

    Args:
        name: The unknown name.
        known: The known names. If only one of them starts with `name`, it counts as close.
        otherwise: The hint if no known name is close.
        cutoff: The least similarity of a close name, from 0 to 1, as for `difflib.get_close_matches`.

    Example:
        >>> suggest_name("epoch", ["epochs", "lr"], "the fields are: epochs, lr")
        'did you mean epochs?'
    """
    close = difflib.get_close_matches(name, known, n=1, cutoff=cutoff)
    if not close and len(name) > 1:
        close = [candidate for candidate in known if candidate.startswith(name)]
    if len(close) == 1:
        return f"did you mean {close[0]}?"
    return otherwise


def shorten(text: str) -> str:
    """A text as part of a message of one line: a long one loses its middle, and control characters are escaped.

    Example:
        >>> shorten("--lr=2e-5"), shorten(repr("n[1-2]")), shorten("a\\nb"), len(shorten("9" * 5000))
        ('--lr=2e-5', "'n[1-2]'", 'a\\\\nb', 200)
    """
    if len(text) > _LONGEST:
        half = (_LONGEST - 3) // 2
        text = f"{text[: _LONGEST - 3 - half]}...{text[-half:]}"
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def first_line(error: BaseException) -> str:
    """The first line of an error's message that is not blank; the name of its class if there is none.

    Example:
        >>> first_line(ValueError("\\n  no such file\\nTraceback")), first_line(KeyError())
        ('no such file', 'KeyError')
    """
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)


def exit_with_error(error: Exception, status: int) -> NoReturn:
    """Ends this process with the line of an error on stderr."""
    # One write includes the line's end: ranks share this stream, and with print another rank's line may come between.
    sys.stderr.write(f"error: {error}\n")
    sys.exit(status)


def print_every_text() -> None:
    """Makes stdout and stderr print every text: a character that their encoding lacks becomes an escape sequence.

    Otherwise a path with an accent ends the program where the encoding is ASCII, as in many batch jobs.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _rebuild(message: str, where: str | None, hint: str | None) -> UserError:
    return UserError(message, where=where, hint=hint)
