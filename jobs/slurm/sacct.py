"""The query to Slurm's accounting: one sacct call for all jobs of a sweep."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence

from jobs.slurm.attempts import AccountingRow
from jobs.slurm.command import Runner, query_environ, run_command
from jobs.slurm.sacct_table import SEPARATOR, AccountingUnavailable, parse_sacct

# JobName is last, so that no character in a name can shift another column. Slurm 23.02 added FailedNode; all others are
# in every release since 19.05.
FIELDS = (
    "JobID", "JobIDRaw", "State", "Submit", "Eligible", "Start", "End", "ElapsedRaw", "TimelimitRaw", "Partition",
    "NNodes", "NodeList", "AllocCPUS", "AllocTRES", "ReqMem", "MaxRSS", "ExitCode", "DerivedExitCode", "Reason",
    "FailedNode", "UID", "JobName",
)  # fmt: skip

# Epoch seconds do not depend on a time zone or on daylight saving. SLURM_BITSTR_LEN=0 prints array task lists in full.
SACCT_ENVIRON = {"TZ": "UTC", "SLURM_TIME_FORMAT": "%s", "SLURM_BITSTR_LEN": "0"}

_REFUSED_FIELD = re.compile(r'Invalid field requested: "(\w+)"')


def sacct_command(job_ids: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """The one command that requests every attempt and step of some jobs.

    With -j alone sacct searches from the epoch until now, the jobs of all users, and beyond the site's
    MaxQueryTimeRange. The command requests complete arrays: a waiting task is only part of the record of its array, and
    the command stays short.

    Args:
        job_ids: The job ids, like ``123`` or ``123_4``.
        wanted: The fields to request.

    Returns:
        The command, to be run with SACCT_ENVIRON.

    Example:
        >>> " ".join(sacct_command(["7_0", "7_1", "9"], ["JobID", "State", "JobName"]))
        'sacct -D -P --noconvert --delimiter=^|^ -j 7,9 -o JobID,State,JobName'
    """
    arrays = dict.fromkeys(re.split(r"[_+.]", job_id)[0] for job_id in job_ids)
    delimiter = f"--delimiter={SEPARATOR}"
    return ["sacct", "-D", "-P", "--noconvert", delimiter, "-j", ",".join(arrays), "-o", ",".join(wanted)]


def query_sacct(
    job_ids: Sequence[str], *, environ: Mapping[str, str], run: Runner = run_command, since_s: float | None = None
) -> tuple[AccountingRow, ...]:
    """Queries sacct once for all these jobs. Sites limit the number of calls, so a sweep is one call and never a loop.

    A release that lacks a field names it and makes no query; it is then asked again without the field.

    Args:
        job_ids: The job ids, as for sacct_command; without any, sacct is not started.
        environ: The environment. SLURM_CONF is passed to sacct; SACCT_* variables, which change the output, are not.
        run: A function that runs a command in an environment.
        since_s: The submission time of the first job, as for parse_sacct.

    Returns:
        All attempts. A missing job is not in sacct yet, just after sbatch, or no longer.

    Raises:
        AccountingUnavailable: sacct is not installed, cannot reach its database, or does not answer.
    """
    if not job_ids:
        return ()
    clean = query_environ(environ) | SACCT_ENVIRON
    wanted = list(FIELDS)
    while True:
        try:
            table = _query(sacct_command(job_ids, wanted), clean, run)
        except AccountingUnavailable as error:
            refused = _REFUSED_FIELD.search(str(error))
            if refused is None or refused[1] not in wanted:
                raise
            wanted.remove(refused[1])
        else:
            return parse_sacct(table, since_s=since_s)


def _query(command: Sequence[str], environ: Mapping[str, str], run: Runner) -> str:
    """The command's output; AccountingUnavailable with the most useful line of stderr if it fails."""
    try:
        done = run(command, environ)
    except FileNotFoundError:
        raise AccountingUnavailable("sacct is not installed here, or not on PATH") from None
    except subprocess.TimeoutExpired as error:
        raise AccountingUnavailable(f"sacct did not answer within {error.timeout:.0f} s") from None
    except OSError as error:
        raise AccountingUnavailable(f"sacct cannot be started: {error}") from None
    # Older releases may print the header, fail to reach the database, and still exit with 0.
    only_header = done.stdout.count("\n") <= 1 and "error:" in done.stderr
    if done.returncode == 0 and done.stdout.strip() and not only_header:
        return done.stdout
    errors = [re.sub(r"^sacct: (error: |fatal: )?", "", line) for line in done.stderr.splitlines() if line.strip()]
    database_errors = [line for line in errors if "Problem talking to the database" in line]
    *_, message = database_errors or errors or ["no output"]
    raise AccountingUnavailable(f"sacct failed with exit status {done.returncode}: {message.strip()}")
