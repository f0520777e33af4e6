"""`sweep init`: asks Slurm about the site, and writes a cluster profile and a first sweep."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from disttrain.errors import UserError
from jobs.cli.options import Yes
from jobs.cli.shared import table_console

if TYPE_CHECKING:
    from jobs.site.choices import Choices, Question
    from jobs.site.site_facts import SiteFacts


def init(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Name of the profile. Default: the name of the cluster.")
    ] = None,
    partition: Annotated[str | None, typer.Option("--partition", help="Partition of the jobs.")] = None,
    account: Annotated[str | None, typer.Option("--account", help="Account of the jobs.")] = None,
    qos: Annotated[str | None, typer.Option("--qos", help="QOS of the jobs.")] = None,
    gpu_type: Annotated[str | None, typer.Option("--gpu-type", help="Type of the GPUs, as Slurm names it.")] = None,
    time_: Annotated[str | None, typer.Option("--time", help="Time limit of one run. Default: an hour.")] = None,
    python: Annotated[
        str | None, typer.Option("--python", help="Python on the compute nodes. Default: the one that runs sweep.")
    ] = None,
    command: Annotated[
        str | None, typer.Option("--command", help="Your own script, for the first sweep: 'python train.py'.")
    ] = None,
    sweep: Annotated[
        Path, typer.Option("--sweep", metavar="FILE", help="File of the first sweep. Default: first.yaml.")
    ] = Path("first.yaml"),
    yes: Yes = False,
) -> None:
    """Ask Slurm about the site, and write the profile clusters/NAME.yaml and a first sweep. Nothing is overwritten.

    It asks what Slurm cannot decide and no option answers. With --yes, or if stdin is not a terminal, it takes the
    most likely answer and says so.
    """
    from jobs.site.choices import Choices, choose
    from jobs.site.first_sweep import first_sweep, first_texts, possible_allocations
    from jobs.site.new_files import check_new, check_texts, new_files, write_new
    from jobs.site.profile_text import profile_text

    facts = _query()
    paths = new_files(name, sweep, has_texts=command is None, cluster_name=facts.cluster_name)
    check_new(paths)
    _print_site(facts)
    choices = choose(facts, Choices(partition, account, qos, gpu_type), lambda question: _ask(question, yes))
    _check_options(facts, choices, time_, python, command)
    profile = profile_text(facts, choices, time=time_, python=python, today=time.strftime("%Y-%m-%d"))
    folder = f"./{paths.texts.name}" if paths.texts else ""
    allocations = possible_allocations(facts, choices)
    text = first_sweep(str(sweep), paths.cluster, allocations, command=command, texts=folder)
    check_texts(paths, profile, text)
    texts = {paths.texts / file: content for file, content in first_texts().items()} if paths.texts else {}
    write_new({**texts, paths.sweep: text, paths.profile: profile})
    print(f"wrote {', '.join(map(str, filter(None, (paths.profile, paths.sweep, paths.texts))))}")
    print(f"next: sweep doctor {sweep} --cluster {paths.cluster}, then sweep plan {sweep} --cluster {paths.cluster}")


def _query() -> SiteFacts:
    """What Slurm says of the site.

    Raises:
        UserError: It is not installed, or does not answer.
    """
    from jobs.site.query_site import query_site

    if shutil.which("sbatch") is None:
        hint = "run sweep init on a login node; --cluster local needs no profile"
        raise UserError("Slurm is not installed here: sbatch is not on PATH", hint=hint)
    facts = query_site(environ=os.environ)
    if not facts.partitions and facts.cluster_name is None:
        reason = next((unknown.reason for unknown in facts.unknown), "it shows no partition")
        raise UserError(f"Slurm does not answer: {reason}", hint="try again when sinfo answers")
    return facts


def _print_site(facts: SiteFacts) -> None:
    from jobs.cli.cluster.init_report import site_report

    console = table_console()
    for part in site_report(facts):
        console.print(part, markup=False, highlight=False, crop=False)


def _ask(question: Question, yes: bool) -> str | None:
    """The user's answer to a question, or the suggestion, with a note, if no one can answer."""
    among = f" ({', '.join(question.answers)})" if question.answers else " (empty for your default one)"
    if yes or not sys.stdin.isatty():
        chosen = f"{question.suggestion} of {', '.join(question.answers)}"
        if question.suggestion is None:
            chosen = "your default one"
        print(f"note: {question.text}: {chosen}; {question.option} names another", file=sys.stderr)
        return question.suggestion
    default = question.suggestion or ""
    answer = typer.prompt(f"{question.text}{among}", default=default, show_default=bool(default), err=True)
    return question.checked(answer.strip()) or None


def _check_options(
    facts: SiteFacts, choices: Choices, time_: str | None, python: str | None, command: str | None
) -> None:
    """Checks the options whose values go into the files as they are.

    Raises:
        UserError: One is not a value of its key, or a time is over the limit of the partition.
    """
    from disttrain.config.command.command_text import check_command
    from jobs.planning.cluster_profile import ClusterProfile, override
    from jobs.site.profile_text import format_minutes

    given = {key: value for key, value in (("time", time_), ("python", python)) if value is not None}
    profile = override(ClusterProfile.model_validate({}), given, lambda key: f"--{key}")
    partition = facts.partition_or_default(choices.partition)
    if time_ is not None and partition is not None:
        longest = partition.max_time_min
        if longest is not None and profile.time_min > longest:
            message = f"{time_} is over the limit of the partition {partition.name}"
            raise UserError(message, where="--time", hint=f"at most {format_minutes(longest)}")
    if command is not None:
        try:
            check_command(command)
        except UserError as error:
            raise UserError(error.message, where="--command", hint=error.hint) from None
