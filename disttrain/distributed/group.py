"""The process group of a run as a context manager: device, backend, and communication between the ranks."""

from __future__ import annotations

import dataclasses
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

from disttrain.distributed.device import (
    choose_device,
    cpu_notice,
    device_name,
    gpu_uuid,
    keep_freed_memory,
    use_full_precision,
)
from disttrain.distributed.places import Place, gpu_keys, placement_notices, read_boot_id, start_line
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
    machines: tuple[str, ...] = ()  # what identifies the machine of each rank, by rank; empty: the hosts' names do
    fallbacks: tuple[str, ...] = ()  # notices about devices and backend, except about shared GPUs

    @property
    def is_main(self) -> bool:
        return self.env.rank == 0

    @property
    def on_one_machine(self) -> bool:
        """Whether all ranks run on the same machine."""
        return len(set(self.machines or self.hosts)) == 1

    @property
    def notices(self) -> tuple[str, ...]:
        """What the user should know about the placement of these ranks."""
        if not self.shared_gpu:
            return self.fallbacks
        shared = "ranks share a GPU, which NCCL does not support: gloo replaces it, and times are not comparable"
        return (shared, *self.fallbacks)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all ranks, on every rank; it is written into `values`."""
        if self.backend is not None:
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Whether it is true on any rank, on every rank."""
        return bool(self.sum(torch.tensor([flag], dtype=torch.int64, device=self.device)))

    def barrier(self) -> None:
        """Waits until every rank is at the barrier."""
        if self.backend is not None:
            dist.barrier()

    def gather(self, values: Tensor) -> list[Tensor]:
        """The values of every rank, by rank, on the CPU of rank 0; the other ranks receive an empty list.

        All ranks call this and pass the same shape. Only rank 0's GPU holds the values of all ranks.
        """
        if self.backend is None:
            return [values]
        if self.backend == "nccl":
            values = values.to(self.device)  # gloo gathers CPU tensors only
        if not self.is_main:
            dist.gather(values, dst=0)
            return []
        received = [torch.empty_like(values) for _ in range(self.env.world_size)]
        dist.gather(values, received, dst=0)
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

    def gather_objects_on_main(self, value: T) -> list[T]:
        """The value of every rank, by rank, on rank 0; the other ranks get their own only. Sent with pickle."""
        if self.backend is None:
            return [value]
        received = [value] * self.env.world_size if self.is_main else None
        dist.gather_object(value, received, dst=0)
        return received or [value]

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Runs the block on rank 0 before the other ranks: they find its files, so a cache is made once.

        After rank 0 comes the first rank of every other host, because a host may see other disks. The other ranks of a
        host follow its first rank. The block may take hours, so no rank waits in a collective, which would time out.
        """
        if self.store is None:
            yield
            return
        machines = self.machines or self.hosts
        machine = machines[self.env.rank]
        main_done = f"turn/{next(self.turns)}"
        host_done = f"{main_done}/{machine}"
        is_first_of_host = self.env.host_rank == 0
        if not self.is_main:
            awaited = host_done
            if is_first_of_host or machine == machines[0]:
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
    use_full_precision(device)
    keep_freed_memory(device)
    place = _own_place(device)
    on_cpu = tuple(filter(None, [cpu_notice(device, wanted)]))
    if env.world_size == 1:
        group = Group(env, device, None, (place.host,), False, fallbacks=on_cpu)
        group.say(start_line([place], None))
        yield group
        return
    store = open_store(env)
    places = _exchange_places(store, env, place)
    # init_process_group does not change the time limit of a store that it did not create, and NCCL's first collective
    # waits on the store.
    store.set_timeout(COLLECTIVE_TIMEOUT)
    gpus = gpu_keys(places)
    used_gpus = [gpu for gpu in gpus if gpu]
    shared_gpu = len(set(used_gpus)) < len(used_gpus)
    backend, nccl_device = "gloo", None
    # NCCL refuses two ranks on one GPU. A run that shares GPUs is a rehearsal, and gloo can do it.
    if len(used_gpus) == env.world_size and not shared_gpu:
        backend, nccl_device = "nccl", device
    _set_gloo_interface(places, env)
    # Each rank would warn that its messages for the clock offset wait for the other operations, as they should.
    os.environ.setdefault("TORCH_NCCL_SHOW_EAGER_INIT_P2P_SERIALIZATION_WARNING", "false")
    dist.init_process_group(
        backend,
        store=store,
        rank=env.rank,
        world_size=env.world_size,
        timeout=COLLECTIVE_TIMEOUT,
        # With a device, NCCL connects now, while all ranks are running, so a failure to connect shows early. Messages
        # between two ranks then use this connection, and not one for each pair.
        device_id=nccl_device,
    )
    group = Group(
        env,
        device,
        backend,
        tuple(other.host for other in places),
        shared_gpu,
        store,
        is_first(gpus, env.rank),
        machines=tuple(other.machine for other in places),
        fallbacks=(*placement_notices(places), *on_cpu),
    )
    group.say(start_line(places, backend))
    try:
        yield group
    except BaseException:
        # The group is not destroyed: NCCL's destroy waits for ranks that may never answer. The process ends anyway.
        raise
    else:
        dist.destroy_process_group()


def _set_gloo_interface(places: Sequence[Place], env: RankEnv) -> None:
    """Makes gloo use the interface towards another machine of the run.

    By default gloo uses the address of this host's own name, which is 127.0.1.1 on Debian.
    """
    own = places[env.rank]
    other = next((place for place in places if place.machine != own.machine), None)
    if other is None:
        return
    address = other.host
    if address == own.host:  # the name would lead back to this machine; rank 0's address names an interface there too
        address = env.master_addr
    interface = interface_towards(address)
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


def _own_place(device: torch.device) -> Place:
    host, boot_id, name = socket.gethostname(), read_boot_id(), device_name(device)
    if device.type != "cuda":
        return Place(host, boot_id, name)
    properties: Any = torch.cuda.get_device_properties(device)
    # NCCL compares PCI addresses, and refuses two MIG slices of one GPU although their UUIDs differ.
    gpu = f"{properties.pci_domain_id:x}:{properties.pci_bus_id:x}:{properties.pci_device_id:x}"
    return Place(host, boot_id, name, gpu, gpu_uuid(device) or "")


def _exchange_places(store: dist.Store, env: RankEnv, own: Place) -> list[Place]:
    """The place of every rank, by rank.

    They are sent through the store, because the choice of the backend depends on them.
    """
    store.set(f"place/{env.rank}", json.dumps(dataclasses.asdict(own)))
    return [Place(**json.loads(store.get(f"place/{rank}"))) for rank in range(env.world_size)]
