"""The process group of a run as a context manager: device, backend, and what the ranks tell each other."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from disttrain.distributed.device import choose_device
from disttrain.distributed.rendezvous import interface_towards, open_store
from disttrain.environment.rank_env import RankEnv

T = TypeVar("T")

# How long a collective may wait for a rank before the run is given up.
COLLECTIVE_TIMEOUT = timedelta(minutes=30)
SAY_EVERY_S = 5.0


@dataclass(frozen=True)
class Group:
    """The ranks of a run, seen from one of them."""

    env: RankEnv
    device: torch.device
    backend: str | None  # None for one rank, which has nobody to talk to
    hosts: tuple[str, ...]  # of each rank, by rank
    shared_gpu: bool
    store: dist.Store | None = None  # None for one rank
    first_on_gpu: bool = True  # no rank before this one has the same board
    turns: Iterator[int] = field(default_factory=count, compare=False, repr=False)  # numbers those of main_first

    @property
    def is_main(self) -> bool:
        return self.env.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all ranks, on each of them."""
        if self.backend is not None:
            dist.all_reduce(values)
        return values

    def barrier(self) -> None:
        """Waits for every rank."""
        if self.backend is not None:
            dist.barrier()

    def gather(self, values: Tensor) -> list[Tensor]:
        """The values of every rank, by rank, on the CPU; of one shape."""
        if self.backend is None:
            return [values]
        sent = values.to(self.device) if self.backend == "nccl" else values  # gloo gathers from memory alone
        received = [torch.empty_like(sent) for _ in range(self.env.world_size)]
        dist.all_gather(received, sent)
        return [each.cpu() for each in received]

    def broadcast_from_main(self, value: T) -> T:
        """What rank 0 gave; what the other ranks give is not looked at."""
        if self.backend is None:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather_objects(self, value: T) -> list[T]:
        """The value of every rank, by rank, on each of them; by pickle."""
        if self.backend is None:
            return [value]
        values = [value] * self.env.world_size
        dist.all_gather_object(values, value)
        return values

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Rank 0 runs the block before the others do, which then find its files: a cache is made once, not n times.

        Behind it the first rank of every other host, which may see other disks, and then that one's neighbours. It may
        take hours: no collective waits meanwhile, which would give up.
        """
        if self.store is None:
            yield
            return
        turn, host = f"turn/{next(self.turns)}", self.hosts[self.env.rank]
        leads = self.env.host_rank == 0
        if not self.is_main:
            _await(self.store, turn if leads or host == self.hosts[0] else f"{turn}/{host}")
        yield
        if self.is_main:
            self.store.set(turn, "")
        elif leads:
            self.store.set(f"{turn}/{host}", "")

    def say(self, line: str) -> None:
        """Prints a line on rank 0, at once: Slurm and torchrun hand on what is flushed."""
        if self.is_main:
            print(line, flush=True)

    def parts(self, total: int, size: int, doing: str) -> Iterator[slice]:
        """The parts of something long, one after the other; every few seconds rank 0 says how far it has come.

        Args:
            total: Its length.
            size: Of a part.
            doing: What is said, with places for what is done and for the total: ``decoding {} of {} images``.
        """
        said_s = time.monotonic()
        for start in range(0, total, size):
            if time.monotonic() - said_s >= SAY_EVERY_S:
                said_s = time.monotonic()
                self.say(doing.format(start, total))
            yield slice(start, min(start + size, total))


def _await(store: dist.Store, key: str) -> None:
    """Waits for a key by looking: a blocking wait would hold the store's connection, which NCCL's threads share."""
    pause_s = 0.001
    while not store.check([key]):
        time.sleep(pause_s)
        pause_s = min(0.5, pause_s * 1.5)


@contextmanager
def process_group(env: RankEnv, wanted: str) -> Iterator[Group]:
    """Opens the process group of a run, and closes it.

    Args:
        env: This rank's place.
        wanted: The config's device: auto, cuda or cpu.

    Yields:
        The group; gloo without a GPU and where ranks share one, else NCCL.
    """
    device = choose_device(env, wanted)
    if env.world_size == 1:
        yield Group(env, device, None, (socket.gethostname(),), False)
        return
    store = open_store(env)
    places = _exchange_places(store, env, device)
    # This store is ours, so init_process_group leaves its time limit alone: NCCL's first collective waits on it.
    store.set_timeout(COLLECTIVE_TIMEOUT)
    gpus = [place["gpu"] for place in places if place["gpu"]]
    # NCCL refuses two ranks on one GPU; such a run is a rehearsal, which gloo can carry.
    shared_gpu = len(set(gpus)) < len(gpus)
    backend = "nccl" if len(gpus) == env.world_size and not shared_gpu else "gloo"
    others = [place["host"] for place in places if place["host"] != socket.gethostname()]
    name = interface_towards(others[0]) if others else None
    if name is not None:
        # gloo otherwise takes the address that this host's own name resolves to, on Debian 127.0.1.1.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    dist.init_process_group(
        backend,
        store=store,
        rank=env.rank,
        world_size=env.world_size,
        timeout=COLLECTIVE_TIMEOUT,
        # NCCL then connects here and now, while all ranks are there, and fails early where it cannot.
        device_id=device if backend == "nccl" else None,
    )
    try:
        first = is_first([place["gpu"] for place in places], env.rank)
        yield Group(env, device, backend, tuple(place["host"] for place in places), shared_gpu, store, first)
    except BaseException:
        # No goodbye to ranks that may never answer: NCCL's destroy waits for them. The process ends anyway.
        raise
    else:
        dist.destroy_process_group()


def is_first(gpus: Sequence[str], rank: int) -> bool:
    """Whether no rank before this one has its GPU.

    Args:
        gpus: Of every rank, by rank; empty: it has none.
        rank: This one.

    Example:
        >>> [is_first(["n1 0:3b:0", "n1 0:3b:0", "n2 0:3b:0", ""], rank) for rank in range(4)]
        [True, False, True, True]
    """
    return not gpus[rank] or gpus[rank] not in gpus[:rank]


def _exchange_places(store: dist.Store, env: RankEnv, device: torch.device) -> list[dict[str, str]]:
    """Host and GPU of every rank, by rank, through the store: it must be known before a backend is chosen."""
    host, gpu = socket.gethostname(), ""
    if device.type == "cuda":
        found: Any = torch.cuda.get_device_properties(device)
        # Its place on the bus, as NCCL knows it: two MIG slices of one GPU have two UUIDs, and NCCL refuses them.
        gpu = f"{host} {found.pci_domain_id:x}:{found.pci_bus_id:x}:{found.pci_device_id:x}"
    mine = {"host": host, "gpu": gpu}
    store.set(f"place/{env.rank}", json.dumps(mine))
    return [json.loads(store.get(f"place/{rank}")) for rank in range(env.world_size)]
