"""Owns the sacct command line and the parser of its answer."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from jobs.slurm.attempts import AccountingRow, merge_history
from jobs.slurm.states import State, parse_state

# JobName is last, so that whatever a name holds cannot shift another column.
FIELDS = (
    "JobID", "JobIDRaw", "State", "Submit", "Eligible", "Start", "End", "ElapsedRaw", "TimelimitRaw", "Partition",
    "NNodes", "NodeList", "AllocCPUS", "AllocTRES", "MaxRSS", "ExitCode", "DerivedExitCode", "Restarts", "Reason",
    "FailedNode", "JobName",
)  # fmt: skip

# Several characters, none of which Slurm puts together: a job name may hold '|', sacct's own choice, or a newline, and
# a continuation line must not look like a row. Printable, unlike a control character, so that the command can be
# pasted from a log. Every release has --delimiter, and none limits its length.
SEPARATOR = "^|^"

# Epoch seconds need no time zone and know no daylight saving; SLURM_BITSTR_LEN=0 prints array task lists in full.
SACCT_ENVIRON = {"TZ": "UTC", "SLURM_TIME_FORMAT": "%s", "SLURM_BITSTR_LEN": "0"}

# How far the clocks of the login node and the controller may differ before a row counts as an older job with our id.
CLOCK_SLACK_S = 3600

TIMEOUT_S = 120

Runner = Callable[[Sequence[str], Mapping[str, str]], "subprocess.CompletedProcess[str]"]

_JOB_ID = re.compile(r"\d+(?:_(?:\d+|\[[^\]]*\]?))?(?:\+\d+)?(?P<step>\.[^.\[\]]+)?")
_PENDING_TASKS = re.compile(r"(\d+)_\[([^\]]*)\]?")
_TASK_RANGE = re.compile(r"(\d+)(?:-(\d+)(?::(\d+))?)?")
_MEMORY = re.compile(r"(\d+(?:\.\d+)?)([KMGTPE]?)")
_ABSENT = frozenset({"", "none", "none assigned", "unknown", "n/a", "(null)"})


class AccountingUnavailable(Exception):
    """sacct could not be asked or did not answer; one line says why. It says nothing about the jobs."""


def available_fields(helpformat: str) -> tuple[str, ...]:
    """The wanted fields that this release of sacct knows: asking for any other is an error there, not a blank.

    Args:
        helpformat: What ``sacct --helpformat`` prints.

    Returns:
        Those of FIELDS, in their order.

    Example:
        >>> available_fields("Account             AllocCPUS           JobName             JobID               State")
        ('JobID', 'State', 'AllocCPUS', 'JobName')
    """
    offered = {word.lower() for word in helpformat.split()}
    return tuple(name for name in FIELDS if name.lower() in offered)


def sacct_command(job_ids: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """The one command that asks for every attempt and step of some jobs.

    With -j alone sacct looks from the epoch until now, at all users' jobs, and past the site's MaxQueryTimeRange. An
    array is asked for as a whole: a task that waits is only part of its array's record, and the command stays short.

    Args:
        job_ids: Such as ``123`` or ``123_4``.
        wanted: From available_fields.

    Returns:
        The command, to run with SACCT_ENVIRON.

    Example:
        >>> " ".join(sacct_command(["7_0", "7_1", "9"], ["JobID", "State", "JobName"]))
        'sacct -D -P --noconvert --delimiter=^|^ -j 7,9 -o JobID,State,JobName'
    """
    arrays = dict.fromkeys(re.split(r"[_+.]", job_id)[0] for job_id in job_ids)
    delimiter = f"--delimiter={SEPARATOR}"
    return ["sacct", "-D", "-P", "--noconvert", delimiter, "-j", ",".join(arrays), "-o", ",".join(wanted)]


def queued_jobs(name: str, *, environ: Mapping[str, str], run: Runner | None = None) -> frozenset[str]:
    """The ids of jobs of this name that slurmctld still knows, each task of an array by itself.

    Raises:
        AccountingUnavailable: If squeue cannot be asked.
    """
    command = ["squeue", "--noheader", "--array", f"--name={name}", "--states=all", "--format=%i"]
    try:
        done = (run or run_command)(command, environ)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise AccountingUnavailable(f"squeue cannot be asked: {error}") from None
    if done.returncode != 0:
        raise AccountingUnavailable(f"squeue failed: {' '.join(done.stderr.split())}")
    return frozenset(done.stdout.split())


def run_command(command: Sequence[str], environ: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command to its end with captured output, for at most TIMEOUT_S."""
    return subprocess.run(
        command, env=environ, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", errors="replace",
        timeout=TIMEOUT_S, check=False,
    )  # fmt: skip


def query_sacct(
    job_ids: Sequence[str], *, environ: Mapping[str, str], run: Runner = run_command, since_s: float | None = None
) -> tuple[AccountingRow, ...]:
    """Ask sacct once about all these jobs; sites count every call, so a sweep is one call and never a loop.

    Args:
        job_ids: As for sacct_command; sacct is not started for none.
        environ: The environment. SACCT_* variables, which change what is printed, do not reach sacct; SLURM_CONF does.
        run: Runs a command in an environment.
        since_s: As for parse_sacct.

    Returns:
        All attempts. A job that is missing is not known yet, just after sbatch, or no longer.

    Raises:
        AccountingUnavailable: If sacct is not installed, cannot reach its database, or does not answer.
    """
    if not job_ids:
        return ()
    clean = {name: value for name, value in environ.items() if not name.startswith("SACCT_")} | SACCT_ENVIRON
    wanted = available_fields(_ask(["sacct", "--helpformat"], clean, run))
    return parse_sacct(_ask(sacct_command(job_ids, wanted), clean, run), since_s=since_s)


def _ask(command: Sequence[str], environ: Mapping[str, str], run: Runner) -> str:
    """The command's output, or AccountingUnavailable with the line of stderr that says most."""
    try:
        done = run(command, environ)
    except FileNotFoundError:
        raise AccountingUnavailable("sacct is not installed here, or not on PATH") from None
    except subprocess.TimeoutExpired:
        raise AccountingUnavailable(f"sacct did not answer within {TIMEOUT_S} s") from None
    except OSError as error:
        raise AccountingUnavailable(f"sacct cannot be started: {error}") from None
    # Older releases may print the header, fail to reach the database, and still exit with 0.
    refused = done.stdout.count("\n") <= 1 and "error:" in done.stderr
    if done.returncode == 0 and done.stdout.strip() and not refused:
        return done.stdout
    said = [re.sub(r"^sacct: (error: |fatal: )?", "", line) for line in done.stderr.splitlines() if line.strip()]
    told = [line for line in said if "Problem talking to the database" in line] or said or ["no output"]
    raise AccountingUnavailable(f"sacct failed with exit status {done.returncode}: {told[-1].strip()}")


def parse_sacct(text: str, *, since_s: float | None = None) -> tuple[AccountingRow, ...]:
    """Read sacct's table into one row for each attempt.

    A pending array's remainder, ``123_[4-9%2]``, becomes a row for each of its tasks.

    Args:
        text: The output of sacct_command, which begins with the names of the columns.
        since_s: When the first of the jobs was submitted, in epoch seconds. Ids wrap around at MaxJobId, so rows
            submitted before that (by more than CLOCK_SLACK_S) are another job's.

    Returns:
        The attempts in sacct's order. Columns that are missing, and words that are no value, are None.

    Raises:
        AccountingUnavailable: If the text is no table, or its times are not epoch seconds.

    Example:
        >>> rows = parse_sacct("JobID^|^State^|^Submit^|^JobName\\n7_[0-1%2]^|^PENDING^|^1700000000^|^bert\\n")
        >>> [(row.job_id, row.state.value, row.submit_s, row.end_s) for row in rows]
        [('7_0', 'PENDING', 1700000000, None), ('7_1', 'PENDING', 1700000000, None)]
    """
    rows: list[AccountingRow] = []
    for job, steps in _with_steps(_records(text)):
        row = _attempt(job, steps)
        if since_s is None or row.submit_s is None or row.submit_s >= since_s - CLOCK_SLACK_S:
            rows.extend(_per_task(row))
    # Merged, because an array's pending record lags: it lists tasks that have started and have one of their own.
    return merge_history((), rows)


def _records(text: str) -> Iterator[dict[str, str]]:
    """The table's lines by column name; a line that is no row continues the job name before it."""
    header, *lines = text.removesuffix("\n").split("\n")
    names = header.split(SEPARATOR)
    if names[0] != "JobID":
        raise AccountingUnavailable(f"sacct answered {header[:80]!r} instead of a table")
    table: list[list[str]] = []
    for line in lines:
        values = line.split(SEPARATOR, len(names) - 1)
        if len(values) == len(names) and _JOB_ID.fullmatch(values[0]):
            table.append(values)
        elif table:
            table[-1][-1] += f"\n{line}"
    return (dict(zip(names, values, strict=True)) for values in table)


def _with_steps(records: Iterable[dict[str, str]]) -> list[tuple[dict[str, str], list[dict[str, str]]]]:
    """Each job record with the step records that follow it, which is how sacct orders them for every attempt."""
    jobs: list[tuple[dict[str, str], list[dict[str, str]]]] = []
    for record in records:
        match = _JOB_ID.fullmatch(record["JobID"])
        step = match["step"] if match else None
        if step is None:
            jobs.append((record, []))
        elif jobs and jobs[-1][0]["JobID"] == record["JobID"].removesuffix(step):
            jobs[-1][1].append(record)
    return jobs


def _attempt(job: Mapping[str, str], steps: Sequence[Mapping[str, str]]) -> AccountingRow:
    """One attempt from its job record and its steps'."""
    state = parse_state(job.get("State", ""))
    node_list = _word(job.get("NodeList"))
    # One that waits, or was cancelled in the queue, has counts of what it asked for, and may have a Start; never nodes.
    started = _time(job.get("Start")) if node_list or "NodeList" not in job else None
    end_s = _time(job.get("End"))
    # Nor has a requeued job an exit code yet: sacct prints 0:0, which would read as success.
    ended = started is not None and end_s is not None and not state.is_pending
    exit_code, exit_signal = _exit(job.get("ExitCode")) if ended else (None, None)
    derived_code, derived_signal = _exit(job.get("DerivedExitCode")) if ended else (None, None)
    return AccountingRow(
        job_id=job["JobID"],
        job_id_raw=_word(job.get("JobIDRaw")),
        state=state,
        submit_s=_time(job.get("Submit")),
        eligible_s=_time(job.get("Eligible")),
        start_s=started,
        end_s=end_s,
        elapsed_s=_number(job.get("ElapsedRaw")) if started is not None else None,
        timelimit_min=_number(job.get("TimelimitRaw")),
        partition=_word(job.get("Partition")),
        nodes=_number(job.get("NNodes")),
        node_list=node_list,
        alloc_cpus=_number(job.get("AllocCPUS")) if started is not None else None,
        alloc_gpus=_gpus(job.get("AllocTRES", "")),
        # 0 is sacct's word for a step too short to be sampled.
        max_rss_bytes=max((_bytes(step.get("MaxRSS", "")) or 0 for step in steps), default=0) or None,
        exit_code=exit_code,
        exit_signal=exit_signal,
        derived_exit_code=derived_code,
        derived_exit_signal=derived_signal,
        restarts=_number(job.get("Restarts")),
        reason=_word(job.get("Reason")),
        failed_node=_word(job.get("FailedNode")),
        out_of_memory=any(parse_state(record.get("State", "")) is State.OUT_OF_MEMORY for record in (job, *steps)),
        job_name=job.get("JobName") or None,
    )


def _per_task(row: AccountingRow) -> Iterator[AccountingRow]:
    """The row itself, or for the record of an array's waiting tasks one row for each."""
    match = _PENDING_TASKS.fullmatch(row.job_id)
    if not match:
        yield row
        return
    for task in _task_indices(match[2]):
        # The record's raw id will be that of one of its tasks, and nobody knows yet which.
        yield replace(row, job_id=f"{match[1]}_{task}", job_id_raw=None)


def _task_indices(text: str) -> Iterator[int]:
    """The indices in the brackets of a waiting array's id.

    Args:
        text: Numbers, ranges and ranges with a step, perhaps a limit of how many may run at once.

    Returns:
        The indices. An entry cut off by the ``...`` of a list that was too long for sacct is left out.

    Example:
        >>> list(_task_indices("0-2,7,10-20:5%2")), list(_task_indices("0,5,1..."))
        ([0, 1, 2, 7, 10, 15, 20], [0, 5])
    """
    for item in text.partition("%")[0].split(","):
        match = _TASK_RANGE.fullmatch(item)
        if match:
            yield from range(int(match[1]), int(match[2] or match[1]) + 1, int(match[3] or 1))


def _word(text: str | None) -> str | None:
    """The text, unless it is blank or one of sacct's words for nothing."""
    return None if text is None or text.strip().lower() in _ABSENT else text


def _number(text: str | None) -> int | None:
    """A whole number; None for any word: blank, UNLIMITED, Partition_Limit."""
    return int(text) if text and text.isascii() and text.isdigit() else None


def _time(text: str | None) -> int | None:
    """A time in epoch seconds; None for Unknown and the like. Any other format must not pass for an unknown time."""
    word = _word(text)
    if word is not None and _number(word) is None:
        raise AccountingUnavailable(f"sacct printed the time {word!r}: SLURM_TIME_FORMAT did not reach it")
    return _number(word)


def _exit(text: str | None) -> tuple[int | None, int | None]:
    """Exit code and signal of sacct's ``code:signal``, the signal None when there was none.

    Example:
        >>> _exit("1:0"), _exit("0:9"), _exit("")
        ((1, None), (0, 9), (None, None))
    """
    code, _, signal = (text or "").partition(":")
    return _number(code), _number(signal) or None


def _gpus(alloc_tres: str) -> int | None:
    """The allocated GPUs, each once: a site may list them by type, in total, or both ways; None if neither.

    Example:
        >>> _gpus("cpu=8,gres/gpu:a100=4,gres/gpu=4,node=2"), _gpus("gres/gpu:a100=2,gres/gpu:h100=1"), _gpus("cpu=8")
        (4, 3, None)
    """
    counts = dict(item.split("=", 1) for item in alloc_tres.split(",") if "=" in item)
    if "gres/gpu" in counts:
        return _number(counts["gres/gpu"])
    typed = [_number(count) or 0 for name, count in counts.items() if name.startswith("gres/gpu:")]
    return sum(typed) if typed else None


def _bytes(text: str) -> int | None:
    """Bytes from MaxRSS: bare with --noconvert, else with a suffix that counts in 1024; None when not sampled.

    Example:
        >>> _bytes("12554240"), _bytes("12260K"), _bytes("1.50G"), _bytes("")
        (12554240, 12554240, 1610612736, None)
    """
    match = _MEMORY.fullmatch(text)
    return round(float(match[1]) * 1024 ** " KMGTPE".index(match[2] or " ")) if match else None
