"""The `sweep` command as a page: docs/commands.md, which ``python -m jobs.cli.command_docs`` writes."""

from __future__ import annotations

from typing import Any

import typer

from jobs.cli import app

_PAGE = """# Commands

Written by `python -m jobs.cli.command_docs` from the command's own help; a test compares them.

FILE is a sweep YAML. SWEEP is such a file, the name of a sweep, or its folder.

RUN is a label, a run id, or the unique start of an id. KEY=VALUE after FILE is the same as `--set KEY=VALUE`.

`sweep --version` prints the version. `sweep --install-completion` lets the shell complete commands and options.

Exit status: 0 done; 1 a run of the sweep ended without success, with `--check`, `wait` and `submit --wait` only; 2 a
mistake in the command, the sweep or the profile, in one line on stderr; 130 ended by Ctrl-C.
"""


def commands_page() -> str:
    """The complete page."""
    group: Any = typer.main.get_command(app)
    return "\n".join([_PAGE, *(_section(name, command) for name, command in group.commands.items())])


def _section(name: str, command: Any) -> str:
    parts = [f"## sweep {name}\n\n{command.help}\n", "| argument or option | meaning |", "|---|---|"]
    parts += [f"| {_usage(parameter)} | {parameter.help} |" for parameter in command.params]
    return "\n".join(parts) + "\n"


def _usage(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{parameter.metavar or parameter.name.upper()}`"
    names = ", ".join(parameter.opts)
    if parameter.is_flag:
        return f"`{names}`"
    value = parameter.metavar or parameter.name.strip("_").upper()
    return f"`{names} {value}`".replace("|", "\\|")  # a cell of a table


if __name__ == "__main__":
    print(commands_page(), end="")
