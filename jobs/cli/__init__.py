"""The `sweep` command: its commands, its error messages and its exit status."""

from __future__ import annotations

import errno
import os
import platform
import sys
from typing import Annotated

import typer

from disttrain.errors import UserError, print_every_text
from jobs import __version__
from jobs.cli.cancel_command import cancel
from jobs.cli.clean_command import clean
from jobs.cli.cluster.doctor_command import doctor
from jobs.cli.cluster.init_command import init
from jobs.cli.cluster.prefetch_command import prefetch
from jobs.cli.debug_command import debug
from jobs.cli.forget_command import forget
from jobs.cli.list_command import list_sweeps
from jobs.cli.logs_command import logs
from jobs.cli.plan_command import plan
from jobs.cli.resend_commands import rerun, retry
from jobs.cli.result_commands import figures, status
from jobs.cli.results.attempts_command import attempts
from jobs.cli.results.best_command import best
from jobs.cli.results.collect_command import collect
from jobs.cli.results.export_command import export
from jobs.cli.results.scaling_command import scaling
from jobs.cli.results.trace_command import trace
from jobs.cli.stacks_command import stacks
from jobs.cli.submit_command import submit
from jobs.cli.usage_errors import Command, UsageError, usage_message
from jobs.cli.wait_command import wait

app = typer.Typer(
    name="sweep",
    help="Run distributed-training studies on Slurm: one sweep file in, one results table out.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for command in (
    init, doctor, plan, prefetch, submit, status, wait, logs, stacks, cancel, retry, rerun, debug, forget, clean,
    collect, scaling, attempts, best, figures, trace, export,
):  # fmt: skip
    app.command(cls=Command)(command)
app.command("list", cls=Command)(list_sweeps)


@app.callback(invoke_without_command=True)
def _without_command(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        print(f"disttrain-sweeps {__version__}, Python {platform.python_version()}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


def main() -> None:
    """Runs the command. A user's mistake gives one line on stderr and exit status 2."""
    print_every_text()
    try:
        status_code = app(prog_name="sweep", standalone_mode=False) or 0
        sys.stdout.flush()
    except UserError as error:
        _fail(str(error))
    except UsageError as error:
        _fail(usage_message(error))
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(130)
    except BrokenPipeError:
        _exit_without_reader()
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):
            _exit_without_reader()  # typer and rich exit with 1, which means a failed run here
        raise
    except OSError as error:
        if error.filename is None and error.errno not in _FULL:
            raise
        if error.filename is None:
            _drop_output()
        _fail(f"{error.filename or 'the output cannot be written'}: {error.strerror}")
    sys.exit(status_code)


# What a write to a full disk or quota, or to a broken one, reports without the name of the file.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def _exit_without_reader() -> None:
    """Ends without an error after the reader of a pipe has closed it (| head). Nothing more can be printed."""
    _drop_output()
    sys.exit(0)


def _drop_output() -> None:
    """Discards what stdout still buffers: Python would try to write it again at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
