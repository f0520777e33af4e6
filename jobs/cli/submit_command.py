"""`sweep submit`: submits the runs that are not done, queued, running or cancelled."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from disttrain.errors import UserError
from jobs.cli.options import Assignments, ClusterName, Overrides, Poll, Root, SweepFile
from jobs.cli.plan_command import plan as show_plan
from jobs.cli.results_output import print_ended
from jobs.cli.shared import all_assignments, plan_sweep, stderr_console

if TYPE_CHECKING:
    from jobs.planning.plan import Plan
    from jobs.planning.sweep_file import Sweep
    from jobs.results.watch import Watch
    from jobs.submission.launch import Gate

Wait = Annotated[bool, typer.Option("--wait", help="Wait until every run has ended, then print the results.")]
MaxParallel = Annotated[
    int | None,
    typer.Option(
        "--max-parallel",
        min=1,
        metavar="RANKS",
        help="With --cluster local: ranks that run at the same time. Default: the number of GPUs, or of cores.",
    ),
]
Replace = Annotated[
    bool,
    typer.Option(
        "--replace",
        help="Cancel and send again the runs that wait with another request (time, partition, ...) than the sweep's.",
    ),
]
Smoke = Annotated[
    bool,
    typer.Option(
        "--smoke",
        help="First send a short run of each allocation and command; the others wait for its success, and are cancelled"
        " if it fails.",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the plan and submit nothing, like sweep plan.")]


_MOST_FAILURES = 10  # failed attempts in a row to send the rest


def submit(
    file: SweepFile,
    assignments: Assignments = None,
    cluster: ClusterName = None,
    set_: Overrides = None,
    root: Root = None,
    dry_run: DryRun = False,
    smoke: Smoke = False,
    replace: Replace = False,
    wait: Wait = False,
    max_parallel: MaxParallel = None,
    poll: Poll = None,
    json_: Annotated[bool, typer.Option("--json", help="With --wait or --dry-run: print JSON.")] = False,
) -> None:
    """Submit the runs that are not done, queued, running or cancelled.

    A second submit submits only failed and new runs. With --wait, the exit status is 1 if one of these runs has
    ended without success.
    """
    from jobs.submission.launch import debug, launch

    _check_options(dry_run=dry_run, smoke=smoke, wait=wait, json_=json_, poll=poll)
    if dry_run:
        show_plan(file, assignments, cluster=cluster, set_=set_, root=root, json_=json_)
        return
    sweep, plan = plan_sweep(file, cluster, all_assignments(assignments, set_), root)
    if max_parallel is not None and plan.cluster.kind != "local":
        hint = "for Slurm, set max_running in the cluster profile"
        raise UserError(f"--max-parallel {max_parallel} needs --cluster local", hint=hint)
    if plan.cluster.kind == "debug":
        if json_:
            raise UserError("--json has no results of --cluster debug", hint="choose another cluster")
        if smoke:
            raise UserError("--smoke has no use with --cluster debug", hint="debug runs one run after the other")
        debug(plan, sweep)
        return
    gate = _gate(sweep, max_parallel, smoke=smoke)
    if wait:
        _submit_and_wait(plan, sweep, max_parallel, poll, json_, replace, gate)
    else:
        launch(plan, sweep, max_ranks=max_parallel, replace=replace, gate=gate)
        print(f"sweep status {sweep.name}    shows the progress")


def _check_options(*, dry_run: bool, smoke: bool, wait: bool, json_: bool, poll: float | None) -> None:
    """Checks that the options do not contradict each other."""
    for given, name in ((wait, "--wait"), (smoke, "--smoke")):
        if dry_run and given:
            raise UserError(f"--dry-run and {name} are both given", hint="choose one")
    if json_ and not (wait or dry_run):
        raise UserError("--json needs --wait or --dry-run", hint="add one, or leave out --json")
    if poll is not None and not wait and not dry_run:
        raise UserError(f"--poll {poll:g} needs --wait", hint="add --wait, or leave out --poll")


def _gate(sweep: Sweep, max_parallel: int | None, *, smoke: bool) -> Gate:
    """What decides which runs are sent now: all, or those that their smoke run allows."""
    if smoke:
        from jobs.submission.smoke import SmokeGate

        return SmokeGate(sweep, max_parallel)
    from jobs.submission.launch import Admitted

    return Admitted


def _submit_and_wait(
    plan: Plan, sweep: Sweep, max_parallel: int | None, poll_s: float | None, as_json: bool, replace: bool, gate: Gate
) -> None:
    from jobs.results.watch import Watch
    from jobs.schedulers.states import scheduler_for
    from jobs.storage.sweep_folder import SweepFolder
    from jobs.submission.chain import resume_stopped
    from jobs.submission.launch import launch

    folder = SweepFolder(plan.folder)
    poll_s = poll_s or scheduler_for(plan.cluster.kind, os.environ).poll_s
    # With --json, stdout has nothing but the results.
    progress = contextlib.redirect_stdout(sys.stderr if as_json else sys.stdout)
    run_ids = {run.run_id for run in plan.runs}
    with progress, Watch(folder, run_ids, stderr_console(), os.environ, poll_s) as watch:
        unsent = launch(plan, sweep, max_ranks=max_parallel, on_poll=watch.tick, replace=replace, gate=gate)
        try:
            never_sent = _send_rest(plan, sweep, unsent, watch, poll_s, gate)
            watch.wait()
            try:
                while resume_stopped(folder):
                    watch.wait()
            except (UserError, OSError) as error:
                watch.say(f"note: {error}; what has stopped needs another sweep submit")
        except KeyboardInterrupt:
            watch.say(f"the jobs continue; sweep status {sweep.name} shows the progress")
            raise
    print_ended(folder, run_ids - never_sent, as_json=as_json)
    if never_sent:
        raise typer.Exit(1)


def _send_rest(
    plan: Plan, sweep: Sweep, unsent: frozenset[str], watch: Watch, poll_s: float, gate: Gate
) -> frozenset[str]:
    """Sends what did not fit, as runs end. Returns the runs that were never sent."""
    from jobs.submission.launch import launch_rest

    failures = 0
    rest: frozenset[str] | None = unsent
    while rest:
        try:
            watch.wait_for_room(rest)
            rest = launch_rest(plan, sweep, rest, gate)
            failures = 0
        except (UserError, OSError) as error:
            # A busy controller or disk must not end a command that waits overnight.
            failures += 1
            if failures == _MOST_FAILURES:
                watch.say(f"note: {error}; the runs that were not sent need another sweep submit")
                return watch.leave_out_unsent()
            watch.say(f"note: {error}; another attempt follows")
            time.sleep(poll_s)
    if rest is None:
        return watch.leave_out_unsent()
    return frozenset()
