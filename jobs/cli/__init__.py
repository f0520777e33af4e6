"""The `sweep` command: arguments in, one call into the other modules, text and an exit status out."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from disttrain.errors import UserError

# Everything else is imported inside the commands: `sweep --help` is instant.
if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from jobs.planning.plan import Plan
    from jobs.planning.sweep_file import Sweep
    from jobs.results.collect import Result
    from jobs.results.status import Status
    from jobs.storage.sweep_folder import SweepFolder

app = typer.Typer(
    name="sweep",
    help="Slurm jobs for distributed-training studies: from one sweep YAML to one results table.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


class Format(StrEnum):
    csv = "csv"
    json = "json"


SweepFile = Annotated[Path, typer.Argument(metavar="FILE", help="A sweep YAML.")]
SubmittedSweep = Annotated[
    str | None,
    typer.Argument(metavar="[SWEEP]", help="A sweep YAML, name or folder. Default: the one submitted last."),
]
ClusterName = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        metavar="NAME",
        help="local, debug, or a profile. Default: $SWEEP_CLUSTER, else slurm if there is sbatch, else local.",
    ),
]
OfCluster = Annotated[
    str | None,
    typer.Option("--cluster", metavar="NAME", help="Where it was submitted. Default: where it was submitted last."),
]
Root = Annotated[
    Path | None, typer.Option("--root", metavar="DIR", help="Folder of all sweeps. Default: $SWEEP_ROOT, else ./runs.")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a field of base; repeatable.")
]


@app.command()
def plan(
    file: SweepFile,
    cluster: ClusterName = None,
    set_: Overrides = None,
    root: Root = None,
    scripts: Annotated[bool, typer.Option("--scripts", help="Print the batch scripts that would be sent.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Show every run, and what would be sent, and send nothing."""
    from rich.console import Console

    from jobs.planning.plan import plan_json
    from jobs.results.tables import plan_table

    _, made = _make_plan(file, cluster, set_ or [], root)
    if json_:
        _print_json(plan_json(made))
    elif scripts:
        if made.cluster is None:
            raise UserError(f"cluster {made.cluster_name!r} sends no scripts", hint="give --cluster a Slurm profile")
        print("\n".join(made.script(group) for group in made.groups), end="")
    else:
        Console().print(plan_table(made))


@app.command()
def submit(
    file: SweepFile,
    cluster: ClusterName = None,
    set_: Overrides = None,
    root: Root = None,
    wait: Annotated[bool, typer.Option("--wait", help="Return when every run has ended.")] = False,
    max_parallel: Annotated[
        int | None,
        typer.Option("--max-parallel", min=1, metavar="RANKS", help="local: ranks at once. Default: GPUs, else cores."),
    ] = None,
    poll: Annotated[
        float | None,
        typer.Option("--poll", min=0.1, metavar="SECONDS", help="--wait: between looks. Default: 30; local 1."),
    ] = None,
) -> None:
    """Send the runs that are neither done nor under way."""
    from jobs.launch import debug, launch
    from jobs.planning.cluster_profile import DEBUG, LOCAL
    from jobs.results.watch import Watch
    from jobs.storage.sweep_folder import SweepFolder

    sweep, made = _make_plan(file, cluster, set_ or [], root)
    if max_parallel is not None and made.cluster_name != LOCAL:
        raise UserError(
            f"--max-parallel {max_parallel} is for --cluster local", hint="a profile has max_running for this"
        )
    if made.cluster_name == DEBUG:
        debug(made, sweep)
        return
    folder = SweepFolder(made.folder)
    if not wait:
        launch(made, sweep, max_ranks=max_parallel)
        print(f"sweep status {sweep.name}    shows how it goes")
        return
    with Watch(folder, _console(), os.environ, poll or (1.0 if made.cluster_name == LOCAL else 30.0)) as watch:
        launch(made, sweep, max_ranks=max_parallel, tick=watch.tick)
        try:
            watch.wait()
        except KeyboardInterrupt:
            watch.say(f"the jobs go on; sweep status {sweep.name} shows how")
            raise
    _finish(_status(folder).results, folder)


@app.command()
def status(
    sweep: SubmittedSweep = None,
    cluster: OfCluster = None,
    root: Root = None,
    json_: Annotated[bool, typer.Option("--json", help="Print every column as JSON.")] = False,
) -> None:
    """Show the state of every run, from one call of sacct."""
    from jobs.results.tables import to_json
    from jobs.storage.sweep_folder import find_folder

    folder = find_folder(_root(root), sweep, cluster)
    found = _status(folder)
    if json_:
        print(to_json(found.results, folder.sweep_name, folder.cluster_name), end="")
        raise typer.Exit(_exit_status(found.results))
    _finish(found.results, folder)


@app.command()
def collect(
    sweep: SubmittedSweep = None,
    cluster: OfCluster = None,
    root: Root = None,
    format_: Annotated[Format | None, typer.Option("--format", help="Print this instead of the table.")] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write there, as its suffix or --format says.")
    ] = None,
) -> None:
    """Join accounting and records into one table."""
    from jobs.results.tables import to_csv, to_json
    from jobs.storage.sweep_folder import find_folder, write_text

    folder = find_folder(_root(root), sweep, cluster)
    if output is not None and (output.is_dir() or not output.parent.is_dir()):
        why = "it is a folder" if output.is_dir() else "its folder is not there"
        raise UserError(f"{str(output)!r} cannot be written: {why}", where="-o")
    found = _status(folder)
    if folder.is_owner():
        write_text(folder.results_file, to_csv(found.results))
    json_wanted = format_ is Format.json or (format_ is None and output is not None and output.suffix == ".json")
    text = to_json(found.results, folder.sweep_name, folder.cluster_name) if json_wanted else to_csv(found.results)
    if output is not None:
        if output.is_symlink() or (output.exists() and not output.is_file()):
            output.write_text(text, encoding="utf-8")  # /dev/stdout, say, which must not be replaced by a file
        else:
            write_text(output, text)
        print(f"wrote {output}")
    elif format_ is not None:
        print(text, end="")
        raise typer.Exit(_exit_status(found.results))
    _finish(found.results, folder)


@app.command()
def figures(
    sweep: SubmittedSweep = None,
    cluster: OfCluster = None,
    root: Root = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FOLDER", help="Write there. Default: figures in the sweep's folder."),
    ] = None,
    run: Annotated[str | None, typer.Option("--run", metavar="RUN_ID", help="Of this run alone.")] = None,
    step: Annotated[
        int | None, typer.Option("--step", min=1, metavar="N", help="That a timeline shows. Default: the median one.")
    ] = None,
) -> None:
    """Draw a step's timeline of each run with detailed_timing, and a link's bandwidth."""
    from jobs.results.figures import write_figures
    from jobs.storage.sweep_folder import find_folder

    for path in write_figures(find_folder(_root(root), sweep, cluster), output, run, step):
        print(f"wrote {path}")


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
        _fail(f"{_told(error)} ({context.command_path if context else 'sweep'} --help shows how)")
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


def _told(error: Exception) -> str:
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    return " ".join(str(message).split()).rstrip(".")


def _fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def _root(option: Path | None) -> Path:
    return (option or Path(os.environ.get("SWEEP_ROOT") or "runs")).absolute()


def _make_plan(file: Path, cluster: str | None, assignments: Sequence[str], root: Path | None) -> tuple[Sweep, Plan]:
    from jobs.planning.cluster_profile import Cluster, find_cluster, override
    from jobs.planning.expand import expand
    from jobs.planning.plan import make_plan
    from jobs.planning.sweep_file import load_sweep

    sweep = load_sweep(file, _overrides(assignments))
    name, profile = find_cluster(cluster, os.environ, Path.cwd())
    # Checked for the local executor too: a rehearsal finds what the cluster would refuse.
    overridden = override(profile or Cluster.model_validate({}), sweep.slurm, lambda key: sweep.where("slurm", key))
    profile = overridden if profile else None
    return sweep, make_plan(sweep.name, expand(sweep), name, profile, _root(root) / sweep.name / name)


def _overrides(assignments: Sequence[str]) -> dict[str, Any]:
    from disttrain.config.flags import read_value

    found: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not (key and equals):
            raise UserError(f"{assignment!r} is not KEY=VALUE", where="--set", hint="--set max_steps=3")
        if key in found:
            raise UserError(f"{key} is set twice", where="--set", hint="drop one of the two")
        found[key] = read_value(key, value)
    return found


def _status(folder: SweepFolder) -> Status:
    from jobs.results.status import read_status

    found = read_status(folder, os.environ)
    for notice in found.notices:
        _console().print(f"note: {notice}", markup=False, highlight=False, soft_wrap=True)
    return found


def _finish(results: Sequence[Result], folder: SweepFolder) -> None:
    """Prints the table and the reasons of failures; exits with 1 if there are any."""
    from rich.console import Console

    from jobs.results.tables import failure_lines, results_table

    console = Console()
    if not console.is_terminal:
        console = Console(width=200)  # a log or a pipe has no width of its own; 80 would cut the columns
    console.print(results_table(results, f"{folder.sweep_name} on {folder.cluster_name}", console.width))
    for line in failure_lines(results, folder):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(_exit_status(results))


def _exit_status(results: Sequence[Result]) -> int:
    from jobs.slurm.states import Phase, State

    return int(any(row.phase is Phase.FINISHED and row.state != State.COMPLETED for row in results))


def _console() -> Console:
    """For progress and notes: stderr, so that --json can be piped."""
    from rich.console import Console

    return Console(stderr=True)


def _print_json(value: object) -> None:
    import json

    print(json.dumps(value, indent=2))
