"""Waits for the script of a rank, passes signals on to it, and ends it if another rank has failed."""

from __future__ import annotations

import selectors
import signal
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

import psutil

from disttrain.command.channel import Channel, LostPeer
from disttrain.command.report import Report
from disttrain.command.script import Script
from disttrain.command.signals import FORWARDED, WARNING, Signals
from disttrain.command.smoke_stop import ENOUGH

# A script that another rank has left alone gets this time after SIGTERM: it may wait for that rank in C.
_GRACE_S = 10.0
_GRACE_AT_TERMINATION_S = 300.0  # Slurm ends it earlier
_LEFT_LOOK_S = 0.2  # no signal tells the end of a process that the script has left
_SIGNALS_APART_S = 1.0  # Slurm may have signalled the script just before this process
_WORKERS_LOOK_S = 1.0  # for workers that a launcher has restarted
_SMOKE_LOOK_S = 0.5  # for the first metrics of a smoke run
_STOP_ARRIVES_S = 2.0  # within this time, a rank gets the message of rank 0 that has stopped its script
_ALL_LOOK_S = 3.0  # in which the supervisors of all nodes see them: one node without workers ends those of the others


class PeerFailed(Exception):
    """The script of another rank has failed, which that rank has recorded."""

    def __init__(self, rank: int) -> None:
        super().__init__(f"rank {rank} has failed")
        self.rank = rank


class Supervisor:
    """One rank's side of a run.

    Args:
        script: The script of this rank.
        channel: The connections to the other ranks.
        signals: The signals that come.
        warning: The signal that the script gets as a warning.
        forwarded: The signals that the script does not get from their sender.
        warns_children: Whether the script is a launcher, whose children are to be warned.
        warned: Whether the warning has come already.
        is_enough: A function that says whether the script of a smoke run has shown enough; None for any other run.

    Attributes:
        warned: Whether the warning has come.
        terminated: Whether the request to end has come.
        restarted: Whether a launcher has restarted the workers after their warning. It was ended for that.
    """

    def __init__(
        self,
        script: Script,
        channel: Channel,
        signals: Signals,
        *,
        warning: signal.Signals = WARNING,
        forwarded: Collection[signal.Signals] = FORWARDED,
        warns_children: bool = False,
        warned: bool = False,
        is_enough: Callable[[], bool] | None = None,
    ) -> None:
        self._script = script
        self._channel = channel
        self._signals = signals
        self._warning = warning
        self._forwarded = forwarded
        self._warns_children = warns_children
        self._is_enough = is_enough
        self._was_stopped = False  # the script of a smoke run
        self.warned = False
        self.terminated = False
        self.restarted = False
        self._workers: frozenset[psutil.Process] = frozenset()  # those that were warned
        self._reports: dict[int, Report] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(signals, selectors.EVENT_READ)
        for rank, connection in channel.peers.items():
            self._selector.register(connection, selectors.EVENT_READ, rank)
        if warned:
            self._handle(WARNING)

    def close(self) -> None:
        self._selector.close()

    @property
    def warned_workers(self) -> frozenset[int]:
        """The processes of the workers of a launcher that were warned."""
        return frozenset(worker.pid for worker in self._workers)

    def wait_for_script(self, every_s: float, each_time: Callable[[], object]) -> int:
        """The exit status of the script, negative for a signal; 0 if it was stopped because it has shown enough.

        Args:
            every_s: The interval of a call in the meantime, in seconds.
            each_time: The function that is called.

        Raises:
            LostPeer: Another rank has ended without a report. The script was ended.
            PeerFailed: The script of another rank has failed. The script was ended.
        """
        while (status := self._script.status()) is None:
            try:
                messages = self._wait(self._interval_s(every_s))
                self._end_restarted()
                self._stop_if_enough(messages)
            except (LostPeer, PeerFailed):
                self._end_script()
                raise
            each_time()
        if self._was_stopped or (status and self._is_stopped_elsewhere()):
            return 0
        if status == -signal.SIGTERM and not self.terminated:
            self._wait(_SIGNALS_APART_S)
        return status

    def _interval_s(self, every_s: float) -> float:
        if self._is_enough is not None:
            return min(every_s, _SMOKE_LOOK_S)
        return min(every_s, _WORKERS_LOOK_S) if self._workers else every_s

    def _stop_if_enough(self, messages: Sequence[Any]) -> None:
        """Stops the script of a smoke run that has shown enough, on all ranks.

        Raises:
            LostPeer: Another rank has ended without a report.
            PeerFailed: The script of another rank has failed.
        """
        if self._is_enough is None or not (self._is_enough() or _say_enough(messages)):
            return
        self._was_stopped = True
        self._channel.send({"kind": ENOUGH})  # before the end of this script, of which the others may fail
        self._script.send(signal.SIGTERM)
        deadline = time.monotonic() + _GRACE_S
        while self._still_runs(deadline):
            self._wait(_LEFT_LOOK_S)

    def _still_runs(self, deadline: float) -> bool:
        """Whether the script, or what it had started before its end, still runs. After the deadline it is killed."""
        if not (self._script.status() is None or self._script.left_any()):
            return False
        if time.monotonic() >= deadline:
            self._script.kill()
        return True

    def _is_stopped_elsewhere(self) -> bool:
        """Whether the script of a smoke run has failed because rank 0 has stopped its own."""
        if self._is_enough is None:
            return False
        deadline = time.monotonic() + _STOP_ARRIVES_S
        while (left_s := deadline - time.monotonic()) > 0:  # a signal may end a wait before the message comes
            if _say_enough(self._wait(left_s)):
                return True
        return False

    def wait_for_reports(self) -> dict[int, Report]:
        """Rank 0: the reports of all other ranks, by rank.

        Raises:
            LostPeer: Another rank has ended without a report.
            PeerFailed: The script of another rank has failed.
        """
        while len(self._reports) < len(self._channel.peers):
            self._wait(None)
        return self._reports

    def wait_for_release(self) -> bool:
        """Any other rank: waits until all scripts have ended; whether the run has stopped and is to start again.

        Raises:
            LostPeer: Rank 0 has ended.
            PeerFailed: The script of another rank has failed.
        """
        while True:
            messages = self._wait(None)
            for message in messages:
                if message["kind"] == "release":
                    return bool(message["stopped"])

    def _wait(self, timeout_s: float | None) -> list[Any]:
        """Waits for signals and messages, and handles them; the messages that are none of the kinds below."""
        others = []
        for key, _ in self._selector.select(timeout_s):
            if key.fileobj is self._signals:
                for number in self._signals.read():
                    self._handle(number)
                continue
            rank: int = key.data
            try:
                message = self._channel.receive(rank)
            except LostPeer:
                if rank not in self._reports:
                    raise
                self._selector.unregister(key.fileobj)  # it has reported, and may end
                continue
            if message["kind"] == "report":
                self._reports[rank] = Report.from_message(message)
            elif message["kind"] == "lost":
                raise LostPeer(message["rank"])
            elif message["kind"] == "failed":
                raise PeerFailed(message["rank"])
            else:
                others.append(message)
        return others

    def _handle(self, number: signal.Signals) -> None:
        if number == WARNING:
            self.warned = True
            self._warn()
            return
        if number == signal.SIGTERM:
            self.terminated = True
        if number in self._forwarded:
            self._script.send(number)

    def _end_restarted(self) -> None:
        """Ends a launcher that has replaced all workers that were warned: others would train until the job ends."""
        if self.restarted or not self._workers:
            return
        running = self._script.children()
        if not running or running & self._workers:
            return
        self.restarted = True
        self._wait(_ALL_LOOK_S)
        if not self.terminated:
            self._script.send(signal.SIGTERM)

    def _warn(self) -> None:
        if self._warns_children:
            self._workers = self._workers or self._script.children()
        # Slurm itself sends only its own signal to the script, and to all processes or to none of them.
        if WARNING not in self._forwarded and self._warning == WARNING:
            return
        if self._warns_children:
            self._script.send_to_children(self._warning)
        else:
            self._script.warn(self._warning)

    def _end_script(self) -> None:
        """Ends the script and what it has started, also if they ignore SIGTERM.

        If Slurm ends the job, they get all the time that it gives.
        """
        if not self.terminated:
            self._script.send(signal.SIGTERM)
        deadline = time.monotonic() + (_GRACE_AT_TERMINATION_S if self.terminated else _GRACE_S)
        while self._still_runs(deadline):
            for key, _ in self._selector.select(_LEFT_LOOK_S):
                if key.fileobj is self._signals:
                    for number in self._signals.read():
                        self._handle(number)
                else:
                    self._selector.unregister(key.fileobj)


def _say_enough(messages: Sequence[Any]) -> bool:
    return any(message["kind"] == ENOUGH for message in messages)
