"""The words of a command, and the placeholders in them: the same for the login node and for the rank."""

from __future__ import annotations

import functools
import os
import re
import shlex

from disttrain.errors import UserError, shorten

PLACEHOLDER = re.compile(r"\{([^{}]*)\}")  # of a value, if the name is a key of the run; else it is text

_PYTHON = re.compile(r"python[0-9.]*")


@functools.lru_cache  # a sweep of many runs has few commands
def command_words(command: str) -> tuple[str, ...]:
    """The words of a command: the program, and its first arguments.

    Raises:
        UserError: It is empty, or has a quote without its pair.

    Example:
        >>> command_words("python train.py --data '/my data'")
        ('python', 'train.py', '--data', '/my data')
    """
    words = split_words(command, "command")
    if not words:
        raise UserError("command is empty", hint="for example command: python train.py")
    return tuple(words)


def split_words(text: str, name: str) -> list[str]:
    """The words of a text, divided as in a shell.

    Args:
        text: The text.
        name: The key that has it in the sweep file.

    Raises:
        UserError: It has a quote or a backslash without its pair.
    """
    try:
        return shlex.split(text)
    except ValueError:  # the message of shlex does not say where
        message = f"{name} {shorten(repr(text))} has a quote or a backslash without its pair"
        raise UserError(message, hint="close the quote, or put the word in the other kind of quotes") from None


def is_python(program: str) -> bool:
    """Whether a program is a Python.

    Example:
        >>> is_python("/opt/bin/python3.12"), is_python("pythonic")
        (True, False)
    """
    return _PYTHON.fullmatch(os.path.basename(program)) is not None
