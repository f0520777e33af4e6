"""The usage errors of typer as one sentence each, in the words of the other messages."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import typer
from typer.core import TyperCommand

from disttrain.errors import suggest_name

# BadParameter derives from the class of all usage errors, which typer does not export.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]

# The messages of click's parser that have no class of their own: a pattern, and our sentence with its groups.
_SENTENCES = (
    (re.compile(r"Option '(\S+)' requires an argument\.?"), "{0} needs a value"),
    (re.compile(r"Option '(\S+)' does not take a value\.?"), "{0} takes no value"),
    (re.compile(r"Got unexpected extra argument\(s\) \((\S+)\)"), "{0!r} is one argument too many"),
    (re.compile(r"Got unexpected extra argument\(s\) \((.+)\)"), "these arguments are too many: {0}"),
    (re.compile(r"Missing argument '(.+)'\.?"), "{0} is missing"),
    (re.compile(r"No such option: (\S+).*"), "unknown option {0!r}"),
    (re.compile(r"No such command '(.+?)'.*"), "unknown command {0!r}"),
    (re.compile(r"Invalid value for '(\S+)'.*?: (.+?)\.?"), "{0}: {1}"),
)


class Command(TyperCommand):
    """A command whose usage errors name it. The parser of click leaves the command out of some of them."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except UsageError as error:
            error.ctx = getattr(error, "ctx", None) or ctx  # type: ignore[attr-defined]
            raise


def usage_message(error: Exception) -> str:
    """One line: the mistake, and in parentheses the closest name and the help to read."""
    context: Any = getattr(error, "ctx", None)
    message, hint = _sentence(error, context)
    path = "sweep"
    if context is not None:
        path = context.command_path
    return f"{message} ({f'{hint} see {path} --help'.strip()})"


def _sentence(error: Exception, context: Any) -> tuple[str, str]:
    """The message and the hint of a usage error."""
    details = _value_errors(error)
    parameter: Any = getattr(error, "param", None)
    if details and parameter is not None:
        from disttrain.config.value_errors import describe_value_error

        return describe_value_error(parameter.opts[-1], details)
    text = " ".join(str(getattr(error, "format_message", error.__str__)()).split())
    for pattern, sentence in _SENTENCES:
        if match := pattern.fullmatch(text):
            hint = ""
            if sentence.startswith("unknown"):
                hint = suggest_name(*_candidates(match[1], context), "")
            return sentence.format(*match.groups()), hint
    return text.rstrip("."), ""


def _value_errors(error: Exception) -> Sequence[Mapping[str, Any]]:
    """The errors of pydantic, with which typer checks values from 0.29 on."""
    errors: Any = getattr(error.__cause__, "errors", list)
    details: Sequence[Mapping[str, Any]] = errors()
    return details


def _candidates(name: str, context: Any) -> tuple[str, list[str]]:
    """A name that may be a typo, in its long form, and the names that it is compared with."""
    command = getattr(context, "command", None)
    if command is None:
        return name, []
    if name.startswith("-"):
        long_name = f"--{name.lstrip('-')}"
        options = [option for parameter in command.params for option in parameter.opts]
        if len(long_name) == len("--x"):  # too short to resemble anything but the start of a name
            options = [option for option in options if option.startswith(long_name)]
        return long_name, options
    return name, list(getattr(command, "commands", ()))
