"""How far the hosts' monotonic clocks are apart, so that what ranks noted can be laid on one axis of time."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
import torch.distributed as dist

from disttrain.distributed.group import Group

ROUNDS = 20


@dataclass(frozen=True)
class Offset:
    """One rank's clock against that of rank 0."""

    offset_s: float  # to be taken off this rank's times
    error_s: float  # it may be wrong by so much, at most


def clock_offset(group: Group) -> Offset:
    """This rank's monotonic clock less that of rank 0, from the shortest of some round trips (Cristian 1989).

    Rank 0 answers the others one after the other; all ranks call this.
    """
    if group.backend is None:
        return Offset(0.0, 0.0)
    device = group.device if group.backend == "nccl" else torch.device("cpu")  # gloo sends from memory alone
    if group.is_main:
        for rank in range(1, group.env.world_size):
            for _ in range(ROUNDS):
                _receive(rank, device)
                _send(rank, device)
        return Offset(0.0, 0.0)
    trips = []
    for _ in range(ROUNDS):
        sent_s = time.perf_counter()
        _send(0, device)
        main_s = _receive(0, device)
        trips.append((sent_s, main_s, time.perf_counter()))
    return best_offset(trips)


def best_offset(trips: list[tuple[float, float, float]]) -> Offset:
    """The offset of the shortest trip, of which the other clock's time lies somewhere between its ends.

    Args:
        trips: (sent, the other clock's answer, received), in seconds, by one clock the first and the last.

    Example:
        >>> best_offset([(10.0, 4.5, 13.0), (20.0, 15.0, 21.0)])
        Offset(offset_s=5.5, error_s=0.5)
    """
    sent_s, answered_s, received_s = min(trips, key=lambda trip: trip[2] - trip[0])
    return Offset((sent_s + received_s) / 2 - answered_s, (received_s - sent_s) / 2)


def _send(rank: int, device: torch.device) -> None:
    dist.send(torch.tensor([time.perf_counter()], dtype=torch.float64, device=device), dst=rank)


def _receive(rank: int, device: torch.device) -> float:
    box = torch.zeros(1, dtype=torch.float64, device=device)
    dist.recv(box, src=rank)
    return float(box)  # of a GPU it waits for the message, as it must
