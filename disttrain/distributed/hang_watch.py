"""Ends a rank whose training step does not end, and says which rank did not come to the collective."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, NoReturn, Self

from disttrain.analysis.hang_cause import find_cause
from disttrain.distributed import flight_recorder
from disttrain.distributed.group import Group
from disttrain.distributed.process_exit import exit_soon
from disttrain.errors import CollectiveTimeout
from disttrain.records import record_files
from disttrain.records.json_values import DamagedFile
from disttrain.records.lifecycle.hang_types import IN_STEP, HangPosition
from disttrain.records.lifecycle.stacks import HANG_GLOB, deepest_frame, flight_name, hang_name, stacks_name
from disttrain.records.summary_types import Failure

# Without collective_timeout_s, a step may take the larger of these two.
_DEFAULT_S = 100.0
_MEDIAN_STEPS = 20
# The first steps of an attempt may compile, allocate and connect, so they are not watched.
FIRST_STEPS = 10
_FEWEST_SAMPLES = 3  # of the step time, for its median
# How long the ranks wait for the files of the others. A shared file system may show a new file late.
_OTHERS_S = (5.0, 30.0)
_DECIDERS = 4  # the most ranks that read the files of all ranks, so that a thousand ranks read few files
_END_S = 90.0  # the time after which a rank ends, even if a thread holds the interpreter's lock


class _Moment(NamedTuple):
    """Where the loop is, in one object: it is replaced in one operation, so no lock is needed."""

    step: int
    since_s: float  # on the monotonic clock
    phase: str
    read_step: int  # the last step whose loss was read from the device
    visits: int  # the number of times that the loop has left its steps


class HangWatch:
    """A thread that looks now and then whether the loop is still in the same step.

    The loop only stores where it is: no lock, no collective, no wait for a GPU. The host runs ahead of a GPU, but not
    far: it waits for the GPU when its queue is full, and when the step writer reads losses. So it too stays in a step.

    A run of one rank has no collectives, and no thread.

    Args:
        group: The ranks.
        folder: The run's folder.
        timeout_s: The config's collective_timeout_s.
        first_step: The first step of this attempt.
        is_overtaken: Whether a newer attempt owns the folder, so that this one must not write.
    """

    def __init__(
        self,
        group: Group,
        folder: Path,
        timeout_s: float | None,
        first_step: int,
        is_overtaken: Callable[[], bool] = lambda: False,
    ) -> None:
        self._group = group
        self._folder = folder
        self._timeout_s = timeout_s
        self._watched_from = first_step + FIRST_STEPS
        self._is_overtaken = is_overtaken
        self._step_s: deque[float] = deque(maxlen=101)
        self._at = self._seen = _Moment(first_step, time.monotonic(), "start", 0, 0)
        self._stacks = folder / stacks_name(group.env.rank)
        self._stacks_bytes = 0
        self._answered = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hang-watch", daemon=True)

    def step(self, step: int, read_step: int) -> None:
        """Notes that a step begins.

        Args:
            step: The step.
            read_step: The last step whose loss was read from the device.
        """
        self._at = _Moment(step, time.monotonic(), IN_STEP, read_step, self._at.visits)

    def outside(self, phase: str) -> None:
        """Notes that no step is running until the next call of `step`: its collectives may take longer.

        Args:
            phase: What the loop does, for the reason of a failure: an evaluation.
        """
        before = self._at
        self._at = _Moment(before.step, time.monotonic(), phase, before.read_step, before.visits + 1)

    def __enter__(self) -> Self:
        if self._group.backend is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()

    def _run(self) -> None:
        pause_s = min(2.0, max(0.05, (self._timeout_s or _DEFAULT_S) / 20))
        waited_s = 0.0
        while not self._ended.wait(pause_s):
            before, at = self._seen, self._at
            # Pauses are counted, not the time: while Slurm has suspended a job, its ranks do not wait.
            waited_s = waited_s + pause_s if at is before else 0.0
            self._sample(before, at)
            self._seen = at
            self._record_on_request()
            limit_s = self._limit_s()
            if limit_s is None or at.step < self._watched_from or waited_s < limit_s / 2:
                continue
            if at.phase != IN_STEP:
                with contextlib.suppress(OSError):  # a full disk must not end this thread
                    self._answer(at)
            elif waited_s >= limit_s or self._others_ask():
                self._end(at, waited_s, min(max(limit_s / 4, _OTHERS_S[0]), _OTHERS_S[1]))

    def _sample(self, before: _Moment, at: _Moment) -> None:
        """Adds the mean time of the steps between two moments, if there was nothing else between them."""
        steps = at.step - before.step
        if steps > 0 and at.visits == before.visits and before.phase == at.phase == IN_STEP:
            self._step_s.append((at.since_s - before.since_s) / steps)

    def _limit_s(self) -> float | None:
        """How long a step may take; None if that is not known yet."""
        if self._timeout_s is not None:
            return self._timeout_s
        if len(self._step_s) < _FEWEST_SAMPLES:
            return None
        return max(_DEFAULT_S, _MEDIAN_STEPS * statistics.median(self._step_s))

    def _record_on_request(self) -> None:
        """Writes the last collectives after a signal has made this rank write its stacks."""
        with contextlib.suppress(OSError):
            size_bytes = self._stacks.stat().st_size
            if size_bytes != self._stacks_bytes:
                self._stacks_bytes = size_bytes
                self._write_flight()

    def _others_ask(self) -> bool:
        """Whether another rank has given up waiting."""
        return any(self._folder.glob(HANG_GLOB))

    def _answer(self, at: _Moment) -> None:
        """Says where this rank is, if others wait for it in a step while it does something else."""
        if not self._answered and self._others_ask():
            self._answered = True
            self._write_position(at)

    def _end(self, at: _Moment, waited_s: float, others_s: float) -> NoReturn:
        """Writes where this rank is and why the step did not end, and ends the process, whatever its threads do."""
        exit_soon(_END_S)
        try:
            if not self._is_overtaken():
                with self._stacks.open("ab") as file:
                    faulthandler.dump_traceback(file, all_threads=True)
                self._write_position(at)
                self._conclude(at, waited_s, others_s)
        except Exception as error:  # noqa: BLE001 - this thread must reach the end, also on a full disk
            record_files.write_failure(self._folder, self._group.env.rank, error)
        finally:
            sys.stderr.flush()
            os._exit(1)

    def _write_position(self, at: _Moment) -> None:
        collectives = flight_recorder.parse(self._write_flight())
        step_began_s = time.time() - (time.monotonic() - at.since_s)
        ended_step = at.read_step
        if self._group.device.type == "cpu" and at.phase == IN_STEP:
            ended_step = at.step - 1  # the host has waited for its all-reduces
        rank = self._group.env.rank
        position = HangPosition(
            rank=rank,
            host=self._group.hosts[rank],
            time_s=time.time(),
            phase=at.phase,
            step=at.step,
            ended_step=ended_step,
            collective=collectives[-1].number if collectives else None,
            entered=flight_recorder.describe(collectives, step_began_s),
            frame=_main_frame(),
        )
        record_files.write_json(self._folder / hang_name(rank), vars(position))

    def _write_flight(self) -> bytes:
        recorded = flight_recorder.dump(self._group.backend)
        if recorded:
            (self._folder / flight_name(self._group.env.rank)).write_bytes(recorded)
        return recorded

    def _conclude(self, at: _Moment, waited_s: float, others_s: float) -> None:
        """Writes the reason as the failure of this rank; not all of many ranks do that."""
        own = hang_name(self._group.env.rank)
        found = self._wait_for_others(others_s)
        if found < self._group.env.world_size:
            self._write_position(at)  # a change of the folder also makes NFS read the folder again
            self._wait_for_others(0.0)
        names = sorted(path.name for path in self._folder.glob(HANG_GLOB))
        if own in names[_DECIDERS:]:
            time.sleep(others_s)  # a launcher ends the others, which write the reason now
            return
        positions = [self._read_position(name) for name in names]
        known = [position for position in positions if position is not None]
        failures = self._failures()
        failed = {
            rank: f"{failure.error}: {failure.message}"
            for rank, failure in failures.items()
            if rank not in {position.rank for position in known}
        }
        reason = find_cause(known, self._group.hosts, failed, waited_s)
        for failure in failures.values():
            if failure.error == CollectiveTimeout.__name__:
                reason = failure.message  # of a rank that gave up earlier, when this one may not have waited yet
        record_files.write_failure(self._folder, self._group.env.rank, CollectiveTimeout(reason))
        sys.stderr.write(f"error: {reason}\n")

    def _wait_for_others(self, limit_s: float) -> int:
        """The number of ranks that have said where they are or why they failed, at the latest after a time limit."""
        deadline_s = time.monotonic() + limit_s
        while True:
            found = {path.stem.rpartition("rank")[2] for glob in _ENDINGS for path in self._folder.glob(glob)}
            if len(found) >= self._group.env.world_size or time.monotonic() >= deadline_s:
                return len(found)
            time.sleep(0.25)

    def _read_position(self, name: str) -> HangPosition | None:
        try:
            return record_files.read_hang_position(self._folder / name)
        except DamagedFile:
            return None

    def _failures(self) -> dict[int, Failure]:
        """The failures of the other ranks, by rank."""
        failures = {}
        for path in self._folder.glob(record_files.FAILURE_GLOB):
            with contextlib.suppress(DamagedFile):
                failure = record_files.read_failure(path)
                if failure is not None and failure.rank != self._group.env.rank:
                    failures[failure.rank] = failure
        return failures


_ENDINGS = (HANG_GLOB, record_files.FAILURE_GLOB)


def _main_frame() -> str | None:
    """The deepest frame of this process's main thread in this package or in the user's code."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    frames = []
    while frame is not None:
        frames.append((frame.f_code.co_filename, frame.f_code.co_name))
        frame = frame.f_back
    return deepest_frame(frames)
