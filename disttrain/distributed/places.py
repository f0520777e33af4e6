"""Where the ranks of a run are: their machines and GPUs, what they share, and the line and notices about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Place:
    """The place of one rank, as it is sent to the other ranks.

    Attributes:
        host: The name of its host.
        boot_id: The boot of its host; empty if the system does not report it. Two machines may have the same name.
        device_name: The model of its GPU or CPU.
        gpu: The PCI address of its GPU; empty without a GPU.
        gpu_uuid: The UUID of its GPU or MIG slice; empty without a GPU.
    """

    host: str
    boot_id: str
    device_name: str
    gpu: str = ""
    gpu_uuid: str = ""

    @property
    def machine(self) -> str:
        """What identifies the machine; NCCL compares the same two values."""
        return f"{self.host} {self.boot_id}".rstrip()


def read_boot_id() -> str:
    """The id of this boot of the host; empty if the system does not report it."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def gpu_keys(places: Sequence[Place]) -> list[str]:
    """A text for each rank, which is equal for ranks that share a GPU board, and empty for a rank without a GPU.

    MIG slices of a board have one PCI address and several UUIDs. Containers on a machine have several host names and
    see one UUID.

    Example:
        >>> gpu_keys([Place("a", "1", "H100", "0:3b:0", "u1"), Place("b", "1", "H100", "0:3b:0", "u1")])
        ['a 1 0:3b:0', 'a 1 0:3b:0']
        >>> gpu_keys([Place("a", "1", "H100", "0:3b:0", "u1"), Place("a", "2", "H100", "0:3b:0", "u2")])
        ['a 1 0:3b:0', 'a 2 0:3b:0']
    """
    keys: list[str] = []
    key_of: dict[str, str] = {}
    for place in places:
        key = ""
        if place.gpu:
            address = f"{place.machine} {place.gpu}"
            key = key_of.get(address) or key_of.get(place.gpu_uuid) or address
            key_of[address] = key
            if place.gpu_uuid:
                key_of[place.gpu_uuid] = key
        keys.append(key)
    return keys


def start_line(places: Sequence[Place], backend: str | None) -> str:
    """One line that says what runs where.

    Example:
        >>> start_line([Place("a", "1", "NVIDIA H100", "0:3b:0"), Place("b", "2", "NVIDIA H100", "0:3b:0")], "nccl")
        '2 ranks on 2 hosts, nccl, NVIDIA H100'
    """
    machines = len({place.machine for place in places})
    parts = [f"{_count(len(places), 'rank')} on {_count(machines, 'host')}"]
    if backend is not None:
        parts.append(backend)
    devices = Counter(place.device_name for place in places)
    if len(devices) == 1:
        parts += devices
    else:
        parts += [f"{count} x {name}" for name, count in devices.items()]
    return ", ".join(parts)


def placement_notices(places: Sequence[Place]) -> tuple[str, ...]:
    """What the user should know about these places, except about ranks that share a GPU."""
    notices: list[str] = []
    without = [rank for rank, place in enumerate(places) if not place.gpu]
    if without and len(without) < len(places):
        notices.append(f"{_ranks(without)} no GPU, and the others have: gloo replaces NCCL, times are not comparable")
    machines = Counter(host for host, _ in {(place.host, place.machine) for place in places})
    for host, count in machines.items():
        if count > 1:
            notices.append(f"{count} machines have the host name {host!r}: records and messages do not tell them apart")
    return tuple(notices)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _ranks(ranks: Sequence[int]) -> str:
    names = ", ".join(map(str, ranks))
    return f"rank {names} has" if len(ranks) == 1 else f"ranks {names} have"
