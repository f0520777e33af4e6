"""The `sweep` command: arguments in, one call into the other packages, text and an exit status out."""

from __future__ import annotations

import os
import sys

import typer

from disttrain.errors import UserError
from jobs.cli.plan_command import plan
from jobs.cli.result_commands import collect, figures, status
from jobs.cli.submit_command import submit

app = typer.Typer(
    name="sweep",
    help="Slurm jobs for distributed-training studies: from one sweep YAML to one results table.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for command in (plan, submit, status, collect, figures):
    app.command()(command)


@app.callback(invoke_without_command=True)
def _help(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


# typer carries its own copy of click from 0.29 on, and the real one before: either way BadParameter derives from the
# class of every usage error.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]


def main() -> None:
    """Runs the command; the user's mistakes are one line on stderr and exit status 2."""
    try:
        status_code = app(prog_name="sweep", standalone_mode=False)
        sys.stdout.flush()
    except UserError as error:
        _fail(str(error))
    except _UsageError as error:
        context = getattr(error, "ctx", None)
        _fail(f"{_usage_message(error)} ({context.command_path if context else 'sweep'} --help shows how)")
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(130)
    except BrokenPipeError:
        _reader_gone()
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):
            _reader_gone()  # typer and rich make exit status 1 of it, which means a failed run here
        raise
    except OSError as error:
        if error.filename is None:
            raise
        _fail(f"{error.filename}: {error.strerror}")
    sys.exit(status_code if isinstance(status_code, int) else 0)


def _reader_gone() -> None:
    """The reader of a pipe has gone (| head): not a failure, and nothing to print it to."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(0)


def _usage_message(error: Exception) -> str:
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    return " ".join(str(message).split()).rstrip(".")


def _fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
