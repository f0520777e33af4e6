"""The parser of sacct's table: one row for each attempt of a job."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from jobs.slurm.attempts import AccountingRow, merge_history
from jobs.slurm.states import State, parse_state

# Several characters that Slurm never prints in this sequence. A job name may contain '|', sacct's default, or a
# newline, and a continuation line must not look like a row. The characters are printable, so that the command can be
# pasted from a log. Every release supports --delimiter, and no release limits its length.
SEPARATOR = "^|^"

# How far the clocks of the login node and the controller may differ before a row counts as an older job with our id.
CLOCK_SLACK_S = 3600

# No array has a larger index (MaxArraySize), and no record of waiting tasks has more tasks than Slurm queues.
_LARGEST_INDEX, _MOST_TASKS = 4_000_000, 100_000
# No number of Slurm is longer. A longer one is damage, and would overflow a sum or a quotient.
_MOST_DIGITS = 18

_JOB_ID = re.compile(r"\d+(?:_(?:\d+|\[[^\]]*\]?))?(?:\+\d+)?(?P<step>\.[^.\[\]]+)?")
_PENDING_TASKS = re.compile(r"(\d+)_\[([^\]]*)\]?")
_TASK_RANGE = re.compile(r"(\d+)(?:-(\d+)(?::(\d+))?)?")
_MEMORY = re.compile(r"(\d+(?:\.\d+)?)([KMGTPE]?)")
_REQUESTED_MEMORY = re.compile(r"(?P<amount>\d+(?:\.\d+)?[KMGTPE])(?P<of>[cn]?)")
_ABSENT = frozenset({"", "none", "none assigned", "unknown", "n/a", "(null)"})


class AccountingUnavailable(Exception):
    """sacct or squeue could not be queried; the message is one line with the cause. The jobs may be in any state."""


def parse_sacct(text: str, *, since_s: float | None = None) -> tuple[AccountingRow, ...]:
    """Reads sacct's table into one row for each attempt.

    The record of an array's waiting tasks, ``123_[4-9%2]``, becomes one row for each task.

    Args:
        text: The output of sacct_command, which begins with the column names.
        since_s: The submission time of the first of the jobs, in epoch seconds. Ids wrap around at MaxJobId, so rows
            submitted earlier than this (by more than CLOCK_SLACK_S) belong to another job.

    Returns:
        The attempts in sacct's order. Missing columns and words that stand for no value are None.

    Raises:
        AccountingUnavailable: The text is not a table, or its times are not epoch seconds.

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
    # Merged, because the record of a waiting array lags: it still lists tasks that have started and have their own.
    return merge_history((), rows)


def _records(text: str) -> Iterator[dict[str, str]]:
    """The rows of the table by column name; a line that is not a row continues the job name of the row before."""
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
    """Each job record with its step records: sacct prints the steps of an attempt after the attempt."""
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
    """One attempt from its job record and its step records."""
    node_list = _word(job.get("NodeList"))
    state, end_s = parse_state(job.get("State", "")), _time(job.get("End"))
    started: dict[str, int | None] = {}
    # A waiting attempt, or one cancelled in the queue, shows the requested counts and may have a Start, but no nodes.
    if node_list is not None or "NodeList" not in job:
        started = _start_values(job, has_ended=end_s is not None and not state.is_pending)
    return AccountingRow(
        job_id=job["JobID"],
        job_id_raw=_word(job.get("JobIDRaw")),
        state=state,
        submit_s=_time(job.get("Submit")),
        eligible_s=_time(job.get("Eligible")),
        end_s=end_s,
        timelimit_min=_number(job.get("TimelimitRaw")),
        partition=_word(job.get("Partition")),
        nodes=_number(job.get("NNodes")),
        node_list=node_list,
        alloc_gpus=_gpus(job.get("AllocTRES", "")),
        # sacct prints 0 for a step that was too short to be sampled.
        max_rss_bytes=max((_bytes(step.get("MaxRSS", "")) or 0 for step in steps), default=0) or None,
        requested_memory_bytes=_memory_per_node(job),
        reason=_word(job.get("Reason")),
        failed_node=_word(job.get("FailedNode")),
        out_of_memory=any(parse_state(record.get("State", "")) is State.OUT_OF_MEMORY for record in (job, *steps)),
        job_name=job.get("JobName") or None,
        user_id=_number(job.get("UID")),
        cancelled_by=_number(job.get("State", "").rpartition("CANCELLED by ")[2]),
        unknown_state=_word(job.get("State")) if state is State.UNKNOWN else None,
        **started,
    )


def _start_values(job: Mapping[str, str], *, has_ended: bool) -> dict[str, int | None]:
    """The values that only a started attempt has."""
    start_s = _time(job.get("Start"))
    if start_s is None:
        return {}
    elapsed_s, alloc_cpus = _number(job.get("ElapsedRaw")), _number(job.get("AllocCPUS"))
    values: dict[str, int | None] = {"start_s": start_s, "elapsed_s": elapsed_s, "alloc_cpus": alloc_cpus}
    # A requeued job has no exit code yet: sacct prints 0:0, which would look like success.
    if has_ended:
        values["exit_code"], values["exit_signal"] = _exit(job.get("ExitCode"))
        values["derived_exit_code"], values["derived_exit_signal"] = _exit(job.get("DerivedExitCode"))
    return values


def _per_task(row: AccountingRow) -> Iterator[AccountingRow]:
    """The row itself; for the record of an array's waiting tasks, one row for each task."""
    match = _PENDING_TASKS.fullmatch(row.job_id)
    if not match:
        yield row
        return
    for task in itertools.islice(_task_indices(match[2]), _MOST_TASKS):
        # The raw id of the record will belong to one of its tasks; sacct does not say to which one.
        yield replace(row, job_id=f"{match[1]}_{task}", job_id_raw=None)


def _task_indices(text: str) -> Iterator[int]:
    """The indices in the brackets of a waiting array's id.

    Args:
        text: Numbers, ranges and ranges with a step, possibly with a limit of simultaneous tasks.

    Returns:
        The indices. An entry that sacct truncated with ``...``, because the list was too long, is left out.

    Example:
        >>> list(_task_indices("0-2,7,10-20:5%2")), list(_task_indices("0,5,1..."))
        ([0, 1, 2, 7, 10, 15, 20], [0, 5])
    """
    for item in text.partition("%")[0].split(","):
        match = _TASK_RANGE.fullmatch(item)
        if match is None or any(_number(number) is None for number in match.groups("1")):
            continue
        first, last, step = int(match[1]), int(match[2] or match[1]), int(match[3] or 1)
        if last <= _LARGEST_INDEX and step > 0:
            yield from range(first, last + 1, step)


def _word(text: str | None) -> str | None:
    """The text; None if it is blank or one of sacct's words for a missing value."""
    if text is None or text.strip().lower() in _ABSENT:
        return None
    return text


def _number(text: str | None) -> int | None:
    """A non-negative integer; None for anything else, such as a blank, UNLIMITED or Partition_Limit."""
    if text and text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS:
        return int(text)
    return None


def _time(text: str | None) -> int | None:
    """A time in epoch seconds; None for Unknown and similar words. Any other format is an error."""
    number, word = _number(text), _word(text)
    if number is None and word is not None:
        raise AccountingUnavailable(f"sacct printed the time {word!r}: SLURM_TIME_FORMAT did not reach it")
    return number


def _exit(text: str | None) -> tuple[int | None, int | None]:
    """The exit code and the signal of sacct's ``code:signal``; the signal is None instead of 0.

    Example:
        >>> _exit("1:0"), _exit("0:9"), _exit("")
        ((1, None), (0, 9), (None, None))
    """
    code, _, signal = (text or "").partition(":")
    return _number(code), _number(signal) or None


def _gpus(alloc_tres: str) -> int | None:
    """The number of allocated GPUs. A site may list them by type, in total, or both; None if it lists no GPUs.

    Example:
        >>> _gpus("cpu=8,gres/gpu:a100=4,gres/gpu=4,node=2"), _gpus("gres/gpu:a100=2,gres/gpu:h100=1"), _gpus("cpu=8")
        (4, 3, None)
    """
    counts = dict(item.split("=", 1) for item in alloc_tres.split(",") if "=" in item)
    if "gres/gpu" in counts:
        return _number(counts["gres/gpu"])
    typed = [_number(count) or 0 for name, count in counts.items() if name.startswith("gres/gpu:")]
    if not typed:
        return None
    return sum(typed)


def _bytes(text: str) -> int | None:
    """Bytes from MaxRSS: a plain number with --noconvert, else with a suffix in powers of 1024; None if not sampled.

    Example:
        >>> _bytes("12554240"), _bytes("12260K"), _bytes("1.50G"), _bytes("")
        (12554240, 12554240, 1610612736, None)
    """
    match = _MEMORY.fullmatch(text)
    if not match or len(match[1]) > _MOST_DIGITS:
        return None
    power = " KMGTPE".index(match[2] or " ")
    return round(float(match[1]) * 1024.0**power)


def _memory_per_node(job: Mapping[str, str]) -> int | None:
    """The requested memory per node in bytes; None if it is unknown, and for 0, which means all memory of a node.

    From Slurm 21.08 on ReqMem is the total of the job. Before, it ended with `c` per CPU or with `n` per node.

    Example:
        >>> _memory_per_node({"ReqMem": "600M", "NNodes": "2"}), _memory_per_node({"ReqMem": "4Gn", "NNodes": "2"})
        (314572800, 4294967296)
        >>> _memory_per_node({"ReqMem": "2Gc", "NNodes": "2", "AllocCPUS": "8"}), _memory_per_node({"ReqMem": "0n"})
        (8589934592, None)
    """
    match = _REQUESTED_MEMORY.fullmatch(job.get("ReqMem", ""))
    amount = _bytes(match["amount"]) if match else None
    nodes, cpus = _number(job.get("NNodes")), _number(job.get("AllocCPUS"))
    if match is None or not amount or not nodes:
        return None
    if match["of"] == "n":
        return amount
    if match["of"] == "c":
        return amount * cpus // nodes if cpus else None
    return amount // nodes
