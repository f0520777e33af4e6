"""Notifies the user of the first failure of a sweep and of its end: once for each submission.

The last run to end sends it from its compute node: python -m jobs.submission.notification RUN_FOLDER. It knows the
other runs by their files. What left no files, such as a run that Slurm has killed, is seen by the next sweep status.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from disttrain.errors import UserError
from disttrain.records.json_values import to_json
from jobs.planning.labels import Variation
from jobs.planning.plan import count_runs
from jobs.results.failures.failure_reason import explain
from jobs.results.failures.job_log import LogEnd, Tasks
from jobs.results.result import Result
from jobs.results.run_records import read_run
from jobs.slurm.states import JobPhase, State
from jobs.storage.ledger import read_ledger
from jobs.storage.run_facts import failure_files, has_summary
from jobs.storage.sweep_folder import SweepFolder
from jobs.submission.messages import note

_TIMEOUT_S = 15.0
_VOID_S = 60.0  # above the time that sending can take
_VARIABLE = re.compile(r"\$(?:\{(?P<braced>\w+)\}|(?P<plain>\w+))")

Event = Literal["first failure", "end"]


@dataclass(frozen=True)
class RunEnd:
    """What is known of the end of one run.

    Attributes:
        name: The run in a message.
        outcome: How it ended; None if it has not.
        reason: Why it failed.
    """

    name: str
    outcome: Literal["completed", "failed", "cancelled"] | None
    reason: str | None = None


def ends_by_results(results: Sequence[Result]) -> list[RunEnd]:
    """The ends of the runs that the sweep file still has, by the status of the sweep."""
    ends = []
    for row in results:
        if row.dropped:
            continue
        outcome: Literal["completed", "failed", "cancelled"] | None = None
        if row.phase is JobPhase.FINISHED:
            outcome = "completed" if row.state.is_success else "failed"
            if row.scheduled.reason_kind == "cancelled":
                outcome = "cancelled"
        ends.append(RunEnd(row.name, outcome, row.scheduled.reason))
    return ends


def ends_by_files(folder: SweepFolder) -> list[RunEnd]:
    """The same by the files of the runs alone."""
    plan, cancelled = folder.plan(), read_ledger(folder.path).cancelled
    present = [run for run in plan.runs if not run.get("dropped")]
    variation = Variation(present)
    ends = []
    for run in present:
        run_dir, name = folder.run(run["run_id"]), variation.name(run)
        if has_summary(run_dir):
            ends.append(RunEnd(name, "completed"))
            continue
        if failure_files(run_dir):
            records, reason = read_run(run_dir), None
            if records.failures:  # a damaged file still says that the run has failed
                reason = explain(State.FAILED, None, records, Tasks.of(run), LogEnd()).text
            ends.append(RunEnd(name, "failed", reason))
        else:
            ends.append(RunEnd(name, "cancelled" if run["run_id"] in cancelled else None))
    return ends


def notify(
    folder: SweepFolder,
    ends: Sequence[RunEnd],
    environ: Mapping[str, str],
    *,
    wait_s: float = 0.0,
    timeout_s: float = _TIMEOUT_S,
) -> None:
    """Sends what has not been sent yet. A failure to send is a note, and the next command tries again.

    Args:
        folder: The folder of the sweep.
        ends: The ends of its runs.
        environ: The environment, with the variables that the target names.
        wait_s: How long to wait for another process that sends the same.
        timeout_s: How long the target may take.
    """
    target = target_of(folder)
    if target is None:
        return

    def send_once(event: Event, failed: RunEnd | None = None) -> None:
        mark = folder.notified_file(event)
        try:
            if not _claim(mark, wait_s):
                return
        except OSError as error:
            note(f"no notification is sent: {str(mark)!r} cannot be written: {error.strerror}")
            return
        try:
            _send(target, _message(event, folder, ends, failed), environ, timeout_s)
            mark.write_text("sent\n", encoding="utf-8")
        except BaseException as error:
            mark.unlink(missing_ok=True)
            if not isinstance(error, OSError | ValueError | UserError | subprocess.SubprocessError):
                raise
            note(f"notify failed, and is tried again: {error}")

    failed = next((end for end in ends if end.outcome == "failed"), None)
    if failed is not None:
        send_once("first failure", failed)
    if ends and all(end.outcome for end in ends):
        send_once("end")


def target_of(folder: SweepFolder) -> str | None:
    """Where this user's notifications of a sweep go; None if there are none to send."""
    if not folder.is_owner() or not folder.request_file.exists():
        return None
    cluster, _ = folder.read_request()
    return cluster.profile.notify if cluster.profile else None


def _claim(mark: Path, wait_s: float) -> bool:
    """Whether this process is the one to send. The mark is empty while a process sends, and says so afterwards.

    A process that was killed while it sent leaves an empty mark, which is void after some time.

    Raises:
        OSError: The mark cannot be written.
    """
    deadline_s = time.monotonic() + wait_s
    while True:
        try:
            # The file system creates or refuses the file in one atomic step, also over NFS.
            os.close(os.open(mark, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            return True
        except FileExistsError:
            pass
        with contextlib.suppress(FileNotFoundError):
            status = mark.stat()
            if status.st_size:
                return False
            if time.time() - status.st_mtime > _VOID_S:
                mark.unlink(missing_ok=True)
                continue
        # When a rank ends, so do all ranks of the run, and with them the process that sends.
        if time.monotonic() >= deadline_s:
            return False
        time.sleep(0.2)


def _message(event: Event, folder: SweepFolder, ends: Sequence[RunEnd], failed: RunEnd | None) -> str:
    """One line of JSON."""
    plan = folder.plan()
    counts = {name: [end.outcome for end in ends].count(name) for name in ("completed", "failed", "cancelled")}
    outcomes = ", ".join(f"{number} {name}" for name, number in counts.items() if number)
    text = f"{plan.sweep} on {plan.cluster} has ended: {count_runs(len(ends))}, {outcomes}"
    if failed is not None:
        text = f"{plan.sweep} on {plan.cluster}, first failure: {failed.name}: {failed.reason or 'no reason is known'}"
    values = {"event": event, "sweep": plan.sweep, "cluster": plan.cluster, "runs": len(ends), **counts, "text": text}
    if failed is not None:
        values |= {"run": failed.name, "reason": failed.reason}
    return to_json(values)


def _send(target: str, line: str, environ: Mapping[str, str], timeout_s: float) -> None:
    if not target.startswith(("http://", "https://")):
        subprocess.run(
            ["sh", "-c", target], input=f"{line}\n", text=True, env=dict(environ), timeout=timeout_s, check=True
        )
        return
    request = urllib.request.Request(  # noqa: S310 - http or https, by the line above
        _expanded(target, environ), data=f"{line}\n".encode(), headers={"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout_s):  # noqa: S310
            pass
    except (urllib.error.URLError, http.client.HTTPException) as error:
        # The error of the library may show the address, and with it the secret.
        reason: object = type(error).__name__
        if isinstance(error, urllib.error.HTTPError):
            reason = error.code
        elif isinstance(error, urllib.error.URLError):
            reason = error.reason
        raise OSError(f"{target}: {reason}") from None


def _expanded(target: str, environ: Mapping[str, str]) -> str:
    """The address with the values of the variables that it names.

    Raises:
        UserError: A variable is not set.
    """

    def value(match: re.Match[str]) -> str:
        name = match["braced"] or match["plain"]
        if not environ.get(name):
            raise UserError(f"notify: the variable {name} is not set")
        return environ[name]

    return _VARIABLE.sub(value, target)


def main() -> None:
    folder = SweepFolder(Path(sys.argv[1]).parent.parent)
    try:
        notify(folder, ends_by_files(folder), os.environ, wait_s=_TIMEOUT_S)
    except UserError as error:
        note(f"no notification is sent: {error}")


if __name__ == "__main__":
    main()
