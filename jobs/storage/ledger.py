"""The ledger: an append-only file of the submissions to a cluster. It is locked, synced, and readable after a crash."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from disttrain.errors import UserError
from disttrain.records.json_values import check_fields, parse_object, to_json, type_check
from jobs.storage.claims import ClaimHeldError, claimed
from jobs.storage.ending_signals import exiting_handlers, signal_handlers
from jobs.storage.plan_check import RUN_ID

LEDGER_NAME = "ledger.jsonl"
_APPEND_WAIT_S = 60.0
_SUBMISSION_WAIT_S = 1.0  # of two that begin at the same time, one goes on
_PID_LIMIT = 2**31
_NO_OVERRIDES: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class QueueProcess:
    """The process that works through a local queue. Its runs live only while it lives."""

    host: str
    pid: int
    created_s: float
    pid_space: str | None = None  # what pid is a number of, by `processes.pid_space`; None by a former release
    start_ticks: int | None = None  # pids are reused; (pid, start) is not


def array_of(job_id: str) -> str:
    """The number of the array of a task; a plain job has its own.

    Example:
        >>> array_of("123_4"), array_of("123")
        ('123', '123')
    """
    return job_id.partition("_")[0]


@dataclass(frozen=True)
class Job:
    """One submission of one run."""

    run_id: str
    job_id: str  # as in sacct: 123_4 for a task of an array, 123 for a plain job
    submitted_s: float
    queue: QueueProcess | None = None  # only with the local executor
    # The texts of --set, by field name; None if a former release submitted the run, which did not note them.
    overrides: Mapping[str, str] | None = field(default_factory=dict, hash=False)
    cluster: str | None = None  # the name of the cluster that has the job, by its Slurm; None if that is not known
    # What was requested for it, by the names of submitit's parameters; None if that was not noted.
    request: Mapping[str, Any] | None = field(default=None, hash=False)
    after: tuple[str, ...] = ()  # the smoke jobs that must succeed before it starts

    def may_be_on(self, cluster: str | None) -> bool:
        """Whether the job is on this cluster, or one of the two is not known."""
        return None in (cluster, self.cluster) or self.cluster == cluster


@dataclass(frozen=True)
class Skipped:
    """A run that was not sent, because a smoke run that it would have waited for has failed."""

    after: tuple[str, ...]  # the smoke jobs
    overrides: Mapping[str, str] | None = field(default_factory=dict, hash=False)  # as of `Job`


@dataclass(frozen=True)
class BatchScript:
    """A plain batch script: the user submits it, and each of its jobs writes itself to the ledger when it starts.

    Attributes:
        token: What its jobs carry.
        run_ids: Its runs by the index of the array task; None for one that was forgotten.
        written_s: When it was written, in seconds since 1970. All its jobs are submitted later.
        overrides: The texts of --set.
        request: What it requests for each run.
    """

    token: str
    run_ids: tuple[str | None, ...]
    written_s: float
    overrides: Mapping[str, str] | None = field(default_factory=dict, hash=False)
    request: Mapping[str, Any] | None = field(default=None, hash=False)

    def run_of(self, job_id: str) -> str | None:
        """The run of one of its jobs; None if it is not known.

        Example:
            >>> script = BatchScript("0123456789abcdef", ("a", "b"), 0.0)
            >>> script.run_of("7_1"), script.run_of("8"), script.run_of("9_2")
            ('b', 'a', None)
        """
        index = job_id.partition("_")[2] or "0"
        if not index.isdecimal() or int(index) >= len(self.run_ids):
            return None
        return self.run_ids[int(index)]


@dataclass(frozen=True)
class Ledger:
    """The submissions of one sweep on one cluster."""

    jobs: Mapping[str, tuple[Job, ...]]  # the jobs of each run by run_id, the latest job last
    unconfirmed: tuple[str, ...]  # the runs whose last submission has an intend event and no result
    intended: Mapping[str, Mapping[str, str] | None] = field(default_factory=dict)  # overrides of the unconfirmed runs
    damaged_lines: tuple[int, ...] = ()  # the numbers of the lines that cannot be used; jobs may be missing then
    # The tokens of submissions whose jobs were not recorded, each with its time in seconds since 1970. None of these
    # jobs may run, and sbatch may still make them.
    open_tokens: Mapping[str, float] = field(default_factory=dict)
    held: tuple[str, ...] = ()  # jobs that were recorded and, as far as is known, not released
    cancelled: frozenset[str] = frozenset()  # runs that sweep cancel has cancelled, and that were not sent again
    skipped: Mapping[str, Skipped] = field(default_factory=dict)  # since their latest job, if they have one
    scripts: Mapping[str, BatchScript] = field(default_factory=dict)  # the plain batch scripts, by their tokens

    def all_jobs(self) -> Iterator[Job]:
        """Every job that was ever submitted, and not forgotten."""
        return itertools.chain.from_iterable(self.jobs.values())

    def overrides(self) -> dict[str, Mapping[str, str] | None]:
        """The overrides of the latest submission of each run, by run id; None where they are not known."""
        skipped = {run_id: skip.overrides for run_id, skip in self.skipped.items()}
        return {run_id: jobs[-1].overrides for run_id, jobs in self.jobs.items()} | skipped | dict(self.intended)


def size_bytes(folder: Path) -> int:
    """The size of the ledger of a sweep's folder; 0 if nothing was submitted."""
    try:
        return (folder / LEDGER_NAME).stat().st_size
    except FileNotFoundError:
        return 0


def read_ledger(folder: Path, first_byte: int = 0) -> Ledger:
    """The ledger of a sweep's folder. It is empty if nothing was submitted.

    Args:
        folder: The folder of the sweep.
        first_byte: An earlier `size_bytes`, to read only the events since then.
    """
    events, damaged = [], {}
    for number, line in _numbered_lines(folder / LEDGER_NAME, first_byte):
        event = _object(line)
        if event is not None and _is_event(event):
            events.append(event)
        else:
            damaged[number] = line
    ledger = replay(events)
    # A script appends without the lock, and its line may be cut off. Its job is found by other traces of it.
    return replace(ledger, damaged_lines=tuple(n for n, line in damaged.items() if not _is_of(line, ledger.scripts)))


def _is_of(line: bytes, scripts: Mapping[str, BatchScript]) -> bool:
    """Whether a damaged line is one that a plain batch script has appended: it begins with the token."""
    match = _SCRIPT_LINE.match(line)
    return match is not None and match[1].decode() in scripts


def replay(events: Iterable[Mapping[str, Any]]) -> Ledger:
    """The ledger that results from a sequence of events.

    Example:
        >>> replay([{"event": "intend", "run_ids": ["a"], "time_s": 1.0},
        ...         {"event": "record", "jobs": {"a": "7"}, "time_s": 2.0}]).jobs["a"][-1].job_id
        '7'
    """
    replaying = _Replaying()
    for event in events:
        apply = _APPLIED.get(event["event"])  # None for an event of a newer version
        if apply is not None:
            apply(replaying, event)
    return replaying.ledger()


class _Replaying:
    """A ledger while its events are replayed."""

    def __init__(self) -> None:
        self._jobs: dict[str, tuple[Job, ...]] = {}
        self._intended: dict[str, Mapping[str, str] | None] = {}
        self._open_tokens: dict[str, float] = {}
        self._held: dict[str, None] = {}
        self._requests: dict[str, Mapping[str, Any] | None] = {}  # of the unconfirmed runs
        self._after: dict[str, tuple[str, ...]] = {}  # likewise
        self._cancelled: set[str] = set()
        self._skipped: dict[str, Skipped] = {}
        self._scripts: dict[str, BatchScript] = {}

    def script(self, event: Mapping[str, Any]) -> None:
        script = BatchScript(
            event["token"], tuple(event["run_ids"]), event["time_s"], event.get("set"), event.get("request")
        )
        self._scripts[script.token] = script

    def intend(self, event: Mapping[str, Any]) -> None:
        if event.get("token"):
            self._open_tokens[event["token"]] = event["time_s"]
        self._intended.update(dict.fromkeys(event["run_ids"], event.get("set")))
        self._requests.update(dict.fromkeys(event["run_ids"], event.get("request")))
        self._after.update(dict.fromkeys(event["run_ids"], tuple(event.get("after", ()))))
        self._begin_again(event["run_ids"])

    def record(self, event: Mapping[str, Any]) -> None:
        script = self._scripts.get(event.get("token") or "")
        if script is not None:
            self._record_of(script, event)
            return
        self._open_tokens.pop(event.get("token", ""), None)
        if event.get("held"):
            self._held |= dict.fromkeys(map(array_of, event["jobs"].values()))
        self._begin_again(event["jobs"])
        for job in _recorded_jobs(event, self._intended):
            request, after = self._requests.pop(job.run_id, None), self._after.pop(job.run_id, ())
            job = replace(job, request=request, after=after)
            self._jobs[job.run_id] = (*self._jobs.get(job.run_id, ()), job)
            self._intended.pop(job.run_id, None)

    def _begin_again(self, run_ids: Iterable[str]) -> None:
        for run_id in run_ids:
            self._cancelled.discard(run_id)
            self._skipped.pop(run_id, None)

    def skip(self, event: Mapping[str, Any]) -> None:
        skipped = Skipped(tuple(event["after"]), event.get("set"))
        self._skipped.update(dict.fromkeys(event["run_ids"], skipped))

    def _record_of(self, script: BatchScript, event: Mapping[str, Any]) -> None:
        """Adds the job of a script. A job that is requeued, or that another command has found, is recorded again."""
        for run_id, job_id in event["jobs"].items():
            jobs = self._jobs.get(run_id, ())
            if run_id not in script.run_ids or any(job.job_id == job_id for job in jobs):
                continue
            self._begin_again([run_id])
            cluster = event.get("cluster") or None
            # Not the time of the event: the job may have waited for days before it.
            job = Job(run_id, job_id, script.written_s, None, script.overrides, cluster, script.request)
            self._jobs[run_id] = (*jobs, job)

    def give_up(self, event: Mapping[str, Any]) -> None:
        for run_id in event["run_ids"]:
            self._intended.pop(run_id, None)
        for token in event.get("tokens", ()):
            self._open_tokens.pop(token, None)

    def cancel(self, event: Mapping[str, Any]) -> None:
        self._cancelled.update(event["run_ids"])

    def uncancel(self, event: Mapping[str, Any]) -> None:
        self._cancelled.difference_update(event["run_ids"])

    def release(self, event: Mapping[str, Any]) -> None:
        for job_id in event["job_ids"]:
            self._held.pop(job_id, None)

    def forget(self, event: Mapping[str, Any]) -> None:
        for run_id in event["run_ids"]:
            self._jobs.pop(run_id, None)
            self._intended.pop(run_id, None)
        self._begin_again(event["run_ids"])
        for token, script in self._scripts.items():
            left = tuple(None if run_id in event["run_ids"] else run_id for run_id in script.run_ids)
            self._scripts[token] = replace(script, run_ids=left)

    def ledger(self) -> Ledger:
        return Ledger(
            self._jobs,
            tuple(self._intended),
            self._intended,
            open_tokens=self._open_tokens,
            held=tuple(self._held),
            cancelled=frozenset(self._cancelled),
            skipped=self._skipped,
            scripts=self._scripts,
        )


_APPLIED: dict[str, Callable[[_Replaying, Mapping[str, Any]], None]] = {
    "intend": _Replaying.intend,
    "record": _Replaying.record,
    "give_up": _Replaying.give_up,
    "release": _Replaying.release,
    "forget": _Replaying.forget,
    "cancel": _Replaying.cancel,
    "uncancel": _Replaying.uncancel,
    "skip": _Replaying.skip,
    "script": _Replaying.script,
}
_ARE_TEXTS, _TEXTS, _TIME = type_check(tuple[str, ...]), type_check(dict[str, str]), type_check(float)
# How the line of a plain batch script begins: slurm_templates/plain.sh.j2 prints it.
_SCRIPT_LINE = re.compile(rb'\{"token": "([0-9a-f]{16})"')
_JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+.-]*")  # it is part of file names, and of sacct's command


def _is_event(event: Mapping[str, Any]) -> bool:
    """Whether an object is an event with all that `replay` reads. An event of a newer version is one, too."""
    kind, overrides = event.get("event"), event.get("set")
    if not isinstance(kind, str) or not (overrides is None or _TEXTS(overrides)):
        return False
    if kind in ("intend", "record") and not isinstance(event.get("token"), str | None):
        return False
    if kind == "release":
        return _are_job_ids(event.get("job_ids"))
    if kind in ("intend", "skip") and not _are_job_ids(event.get("after", [] if kind == "intend" else None)):
        return False
    if kind in ("intend", "script") and not (
        isinstance(event.get("request"), Mapping | None) and _TIME(event.get("time_s"))
    ):
        return False
    if kind == "script" and not isinstance(event.get("token"), str):
        return False
    if kind == "give_up" and not _ARE_TEXTS(event.get("tokens", [])):
        return False
    if kind in ("intend", "give_up", "forget", "cancel", "uncancel", "skip", "script"):
        return _are_run_ids(event.get("run_ids"))
    if kind == "record":
        is_complete = _are_jobs(event.get("jobs")) and _TIME(event.get("time_s")) and _is_queue(event.get("queue"))
        return is_complete and isinstance(event.get("cluster"), str | None)
    return True


def _are_run_ids(values: Any) -> bool:
    return _ARE_TEXTS(values) and all(map(RUN_ID.fullmatch, values))


def _are_job_ids(values: Any) -> bool:
    return _ARE_TEXTS(values) and all(map(_JOB_ID.fullmatch, values))


def _are_jobs(jobs: Any) -> bool:
    return _TEXTS(jobs) and _are_run_ids(list(jobs)) and _are_job_ids(list(jobs.values()))


def _is_queue(queue: Any) -> bool:
    """Whether a value of a record event is a queue's process; Slurm's jobs have none."""
    if not queue:
        return True
    if not isinstance(queue, dict) or not queue.keys() <= QueueProcess.__dataclass_fields__.keys():
        return False
    try:
        check_fields(QueueProcess, queue)
    except ValueError:
        return False
    return bool(0 < queue["pid"] < _PID_LIMIT)


def _recorded_jobs(event: Mapping[str, Any], intended: Mapping[str, Mapping[str, str] | None]) -> Iterator[Job]:
    """The jobs of a record event, with the overrides of the event (local queue) or of their intend event (Slurm)."""
    queue = None
    if event.get("queue"):
        queue = QueueProcess(**event["queue"])
    for run_id, job_id in event["jobs"].items():
        overrides = event.get("set", intended.get(run_id))
        yield Job(run_id, job_id, event["time_s"], queue, overrides, event.get("cluster"))


def intend(
    folder: Path,
    run_ids: Sequence[str],
    time_s: float,
    overrides: Mapping[str, str] = _NO_OVERRIDES,
    token: str | None = None,
    request: Mapping[str, Any] | None = None,
    after: Sequence[str] = (),
) -> None:
    """Notes that these runs are about to be submitted. It is written first, so that a crash leaves a trace.

    Args:
        folder: The folder of the sweep.
        run_ids: The runs.
        time_s: The time in seconds since 1970.
        overrides: The texts of ``--set`` by field name. Only with them the sweep file yields these runs.
        token: What the jobs of this submission will carry; None for local runs.
        request: What is requested for each of them.
        after: The smoke jobs that must succeed before they start.
    """
    event: dict[str, Any] = {"event": "intend", "time_s": time_s, "run_ids": list(run_ids), "set": dict(overrides)}
    if token is not None:
        event["token"] = token
    if request is not None:
        event["request"] = dict(request)
    if after:
        event["after"] = list(after)
    _append(folder, event)


def record(
    folder: Path,
    jobs: Mapping[str, str],
    time_s: float,
    queue: QueueProcess | None = None,
    overrides: Mapping[str, str] = _NO_OVERRIDES,
    cluster: str | None = None,
    token: str | None = None,
    *,
    held: bool = False,
) -> None:
    """Notes the job id of each run.

    Args:
        folder: The folder of the sweep.
        jobs: The job ids by run id.
        time_s: The time in seconds since 1970.
        queue: The process of the queue of local runs.
        overrides: The texts of ``--set`` for local runs. They have no intend event: their queue waits for this one.
        cluster: The name of the cluster by its Slurm.
        token: What the jobs carry, as in `intend`.
        held: Whether they were submitted on hold, to be released after this.
    """
    event: dict[str, Any] = {"event": "record", "time_s": time_s, "jobs": dict(jobs)}
    if cluster is not None:
        event["cluster"] = cluster
    if token is not None:
        event |= {"token": token, "held": held}
    if queue:
        event |= {"queue": asdict(queue), "set": dict(overrides)}
    _append(folder, event)


def add_script(
    folder: Path,
    run_ids: Sequence[str],
    time_s: float,
    overrides: Mapping[str, str],
    token: str,
    request: Mapping[str, Any],
) -> None:
    """Notes a plain batch script, before its file is written.

    Args:
        folder: The folder of the sweep.
        run_ids: Its runs, in the order of the array's tasks.
        time_s: The time in seconds since 1970.
        overrides: The texts of ``--set`` by field name.
        token: What its jobs will carry.
        request: What it requests for each run.
    """
    event = {"event": "script", "time_s": time_s, "run_ids": list(run_ids), "set": dict(overrides)}
    _append(folder, {**event, "token": token, "request": dict(request)})


def give_up(folder: Path, run_ids: Sequence[str], time_s: float, reason: str, tokens: Sequence[str] = ()) -> None:
    """Notes that these runs have no job, and that no job will carry these tokens."""
    event = {"event": "give_up", "time_s": time_s, "run_ids": list(run_ids), "reason": reason, "tokens": list(tokens)}
    _append(folder, event)


def released(folder: Path, job_ids: Sequence[str], time_s: float) -> None:
    """Notes that these jobs, or arrays, were released."""
    _append(folder, {"event": "release", "time_s": time_s, "job_ids": list(job_ids)})


def cancel(folder: Path, run_ids: Sequence[str], time_s: float) -> None:
    """Notes that the user cancelled these runs. They are not sent again before the user asks for it."""
    _append(folder, {"event": "cancel", "time_s": time_s, "run_ids": list(run_ids)})


def uncancel(folder: Path, run_ids: Sequence[str], time_s: float) -> None:
    """Notes that cancelled runs may be sent again."""
    _append(folder, {"event": "uncancel", "time_s": time_s, "run_ids": list(run_ids)})


def skip(
    folder: Path, run_ids: Sequence[str], time_s: float, overrides: Mapping[str, str], after: Sequence[str]
) -> None:
    """Notes that these runs are not sent, because one of these smoke jobs has failed."""
    event = {"event": "skip", "time_s": time_s, "run_ids": list(run_ids), "set": dict(overrides), "after": list(after)}
    _append(folder, event)


def forget(folder: Path, run_ids: Sequence[str], time_s: float) -> None:
    """Notes that the user removed these runs. The ledger then has no job of them."""
    _append(folder, {"event": "forget", "time_s": time_s, "run_ids": list(run_ids)})


@contextmanager
def submission_lock(folder: Path, wait_s: float = _SUBMISSION_WAIT_S) -> Iterator[None]:
    """Locks the submission of a sweep, so that two commands cannot submit or remove the same runs.

    A process that is told to end gives the lock back: from another login node, nobody could see that it has ended.

    Args:
        folder: The folder of the sweep.
        wait_s: How long to wait for another process.

    Raises:
        UserError: Another process has the lock, or the folder cannot be written.
    """
    with signal_handlers(exiting_handlers()), ExitStack() as stack:
        try:
            stack.enter_context(claimed(folder / ".submit.claim", wait_s))
        except ClaimHeldError as error:
            message = f"another sweep command is running in {folder}: {error.holder}"
            raise UserError(message, hint=error.hint) from None
        except OSError as error:
            raise UserError(f"{str(folder)!r} cannot be written: {error.strerror}") from None
        yield


def append_lines(path: Path, lines: Sequence[str]) -> None:
    """Appends complete lines under the file's lock, with fsync.

    If a crash has left an incomplete last line, a line break is written after it first.

    Raises:
        OSError: The lines could not be written, for example because the disk is full. Its filename is the path.
    """
    try:
        with claimed(path.with_name(f".{path.name}.claim"), _APPEND_WAIT_S), path.open("ab+") as file:
            if file.tell() > 0:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write("".join(line + "\n" for line in lines).encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        error.filename = str(path)  # a full disk is noticed by a write, which does not name the file
        raise


def read_numbered_lines(path: Path, first_byte: int = 0) -> list[tuple[int, dict[str, Any] | None]]:
    """The lines of a file that `append_lines` wrote, each with its number: its JSON object, or None if it is damaged.

    They are read, and numbered, from the first byte.

    A last line without an end is left out if it is no object: it is being written, or a crash left it.
    A file that does not exist has no lines.
    """
    return [(number, _object(line)) for number, line in _numbered_lines(path, first_byte)]


def _numbered_lines(path: Path, first_byte: int) -> list[tuple[int, bytes]]:
    """The texts of these lines."""
    try:
        content = path.read_bytes()[first_byte:]
    except (FileNotFoundError, NotADirectoryError):
        return []
    *complete, last = content.split(b"\n")
    numbered = [(number, line) for number, line in enumerate(complete, start=1) if line]
    if _object(last) is not None:
        numbered.append((len(complete) + 1, last))
    return numbered


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        return parse_object(line)
    except ValueError:
        return None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file that `append_lines` wrote, without damaged lines."""
    return [values for _, values in read_numbered_lines(path) if values is not None]


def _append(folder: Path, event: Mapping[str, Any]) -> None:
    append_lines(folder / LEDGER_NAME, [to_json(event)])
