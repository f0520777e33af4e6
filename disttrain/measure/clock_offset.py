"""The offset between the hosts' monotonic clocks, so that times of all ranks can be compared."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
import torch.distributed as dist

from disttrain.distributed.group import Group

ROUNDS = 20


@dataclass(frozen=True)
class Offset:
    """The offset of one rank's clock from that of rank 0."""

    offset_s: float  # to be subtracted from this rank's times
    error_s: float  # the largest possible error of offset_s


def clock_offset(group: Group) -> Offset:
    """This rank's monotonic clock minus that of rank 0, from the shortest of several round trips (Cristian 1989).

    Rank 0 answers one rank after another; all ranks call this.
    """
    if group.backend is None:
        return Offset(0.0, 0.0)
    device = torch.device("cpu")  # gloo sends only from host memory
    if group.backend == "nccl":
        device = group.device
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
    """The offset from the shortest trip. The answer was sent at some time within the trip.

    Args:
        trips: (sent, answered, received) in seconds; sent and received by this clock, answered by the other clock.

    Example:
        >>> best_offset([(10.0, 4.5, 13.0), (20.0, 15.0, 21.0)])
        Offset(offset_s=5.5, error_s=0.5)
    """
    sent_s, answered_s, received_s = min(trips, key=lambda trip: trip[2] - trip[0])
    return Offset((sent_s + received_s) / 2 - answered_s, (received_s - sent_s) / 2)


def _send(rank: int, device: torch.device) -> None:
    dist.send(torch.tensor([time.perf_counter()], dtype=torch.float64, device=device), dst=rank)


def _receive(rank: int, device: torch.device) -> float:
    message = torch.zeros(1, dtype=torch.float64, device=device)
    dist.recv(message, src=rank)
    return float(message)  # on a GPU this waits for the message, as intended
