"""The process group of a run as a context manager: device, backend, and communication between the ranks."""

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

# How long a collective may wait for a rank before the run fails.
COLLECTIVE_TIMEOUT = timedelta(minutes=30)
# The interval between two progress lines of `Group.parts`.
SAY_EVERY_S = 5.0


@dataclass(frozen=True)
class Group:
    """The ranks of a run, as one of them sees them."""

    env: RankEnv
    device: torch.device
    backend: str | None  # None for a single rank, which does not communicate
    hosts: tuple[str, ...]  # the host of each rank, by rank
    shared_gpu: bool  # several ranks use the same GPU
    store: dist.Store | None = None  # None for a single rank
    first_on_gpu: bool = True  # no lower rank uses the same GPU board
    turns: Iterator[int] = field(default_factory=count, compare=False, repr=False)  # numbers the uses of main_first

    @property
    def is_main(self) -> bool:
        return self.env.rank == 0

    @property
    def notices(self) -> tuple[str, ...]:
        """What the user should know about the placement of these ranks."""
        if not self.shared_gpu:
            return ()
        return ("ranks share a GPU, which NCCL does not support: gloo replaces it, and times are not comparable",)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all ranks, on every rank; it is written into `values`."""
        if self.backend is not None:
            dist.all_reduce(values)
        return values

    def barrier(self) -> None:
        """Waits until every rank is at the barrier."""
        if self.backend is not None:
            dist.barrier()

    def gather(self, values: Tensor) -> list[Tensor]:
        """The values of every rank, by rank, on the CPU; all ranks pass the same shape."""
        if self.backend is None:
            return [values]
        if self.backend == "nccl":
            values = values.to(self.device)  # gloo gathers CPU tensors only
        received = [torch.empty_like(values) for _ in range(self.env.world_size)]
        dist.all_gather(received, values)
        return [gathered.cpu() for gathered in received]

    def broadcast_from_main(self, value: T) -> T:
        """The value of rank 0, on every rank; the values of the other ranks are ignored."""
        if self.backend is None:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def gather_objects(self, value: T) -> list[T]:
        """The value of every rank, by rank, on every rank; sent with pickle."""
        if self.backend is None:
            return [value]
        values = [value] * self.env.world_size
        dist.all_gather_object(values, value)
        return values

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Runs the block on rank 0 before the other ranks: they find its files, so a cache is made once.

        After rank 0 comes the first rank of every other host, because a host may see other disks. The other ranks of a
        host follow its first rank. The block may take hours, so no rank waits in a collective, which would time out.
        """
        if self.store is None:
            yield
            return
        host = self.hosts[self.env.rank]
        main_done = f"turn/{next(self.turns)}"
        host_done = f"{main_done}/{host}"
        is_first_of_host = self.env.host_rank == 0
        if not self.is_main:
            awaited = host_done
            if is_first_of_host or host == self.hosts[0]:
                awaited = main_done
            _wait_for_key(self.store, awaited)
        yield
        if self.is_main:
            self.store.set(main_done, "")
        elif is_first_of_host:
            self.store.set(host_done, "")

    def say(self, line: str) -> None:
        """Prints a line on rank 0 and flushes it, because Slurm and torchrun forward only flushed output."""
        if self.is_main:
            print(line, flush=True)

    def parts(self, total: int, size: int, doing: str) -> Iterator[slice]:
        """Cuts long work into parts, and prints progress on rank 0 every `SAY_EVERY_S` seconds.

        Args:
            total: The number of items.
            size: The number of items of a part; the last part may be smaller.
            doing: The progress line, with placeholders for done and total: ``decoding {} of {} images``.

        Yields:
            The parts, as slices of the items.
        """
        printed_s = time.monotonic()
        for start in range(0, total, size):
            if time.monotonic() - printed_s >= SAY_EVERY_S:
                printed_s = time.monotonic()
                self.say(doing.format(start, total))
            yield slice(start, min(start + size, total))


def _wait_for_key(store: dist.Store, key: str) -> None:
    """Polls for a key: a blocking wait would occupy the store's connection, which NCCL's threads share."""
    pause_s = 0.001
    while not store.check([key]):
        time.sleep(pause_s)
        pause_s = min(0.5, pause_s * 1.5)


@contextmanager
def process_group(env: RankEnv, wanted: str) -> Iterator[Group]:
    """Opens the process group of a run, and closes it.

    Args:
        env: The environment of this rank.
        wanted: The config's device: auto, cuda or cpu.

    Yields:
        The group. Its backend is gloo if a rank has no GPU or ranks share one, else NCCL.
    """
    device = choose_device(env, wanted)
    if env.world_size == 1:
        yield Group(env, device, None, (socket.gethostname(),), False)
        return
    store = open_store(env)
    places = _exchange_places(store, env, device)
    # init_process_group does not change the time limit of a store that it did not create, and NCCL's first collective
    # waits on the store.
    store.set_timeout(COLLECTIVE_TIMEOUT)
    hosts, gpus = tuple(place["host"] for place in places), [place["gpu"] for place in places]
    used_gpus = [gpu for gpu in gpus if gpu]
    shared_gpu = len(set(used_gpus)) < len(used_gpus)
    backend, nccl_device = "gloo", None
    # NCCL refuses two ranks on one GPU. A run that shares GPUs is a rehearsal, and gloo can do it.
    if len(used_gpus) == env.world_size and not shared_gpu:
        backend, nccl_device = "nccl", device
    _set_gloo_interface(hosts)
    dist.init_process_group(
        backend,
        store=store,
        rank=env.rank,
        world_size=env.world_size,
        timeout=COLLECTIVE_TIMEOUT,
        # With a device, NCCL connects now, while all ranks are running, so a failure to connect shows early.
        device_id=nccl_device,
    )
    try:
        yield Group(env, device, backend, hosts, shared_gpu, store, is_first(gpus, env.rank))
    except BaseException:
        # The group is not destroyed: NCCL's destroy waits for ranks that may never answer. The process ends anyway.
        raise
    else:
        dist.destroy_process_group()


def _set_gloo_interface(hosts: Sequence[str]) -> None:
    """Makes gloo use the interface towards another host of the run.

    By default gloo uses the address of this host's own name, which is 127.0.1.1 on Debian.
    """
    other_host = next((host for host in hosts if host != socket.gethostname()), None)
    if other_host is None:
        return
    interface = interface_towards(other_host)
    if interface is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)


def is_first(gpus: Sequence[str], rank: int) -> bool:
    """Whether no lower rank uses the GPU of this rank.

    Args:
        gpus: The GPU of every rank, by rank; empty for a rank without a GPU.
        rank: The rank in question.

    Example:
        >>> [is_first(["n1 0:3b:0", "n1 0:3b:0", "n2 0:3b:0", ""], rank) for rank in range(4)]
        [True, False, True, True]
    """
    return not gpus[rank] or gpus[rank] not in gpus[:rank]


def _exchange_places(store: dist.Store, env: RankEnv, device: torch.device) -> list[dict[str, str]]:
    """The host and the GPU of every rank, by rank.

    They are sent through the store, because the choice of the backend depends on them.
    """
    host, gpu = socket.gethostname(), ""
    if device.type == "cuda":
        properties: Any = torch.cuda.get_device_properties(device)
        # NCCL compares PCI addresses, and refuses two MIG slices of one GPU although their UUIDs differ.
        gpu = f"{host} {properties.pci_domain_id:x}:{properties.pci_bus_id:x}:{properties.pci_device_id:x}"
    store.set(f"place/{env.rank}", json.dumps({"host": host, "gpu": gpu}))
    return [json.loads(store.get(f"place/{rank}")) for rank in range(env.world_size)]
