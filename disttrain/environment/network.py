"""The network interfaces and InfiniBand adapters of this host, as the kernel lists them."""

from __future__ import annotations

import re
from pathlib import Path

# What connects processes of one host, or containers, and no two nodes.
_INTERNAL = (
    "lo", "docker", "virbr", "br-", "cni", "flannel", "podman", "veth", "cali", "tap", "tun", "vnet", "lxc", "cilium",
)  # fmt: skip


def interface_speeds(folder: Path = Path("/sys/class/net")) -> dict[str, int]:
    """The speed of each active interface between hosts in Mbit/s; those whose speed is not known are left out."""
    speeds = {}
    for interface in sorted(folder.glob("*")):
        if interface.name.startswith(_INTERNAL):
            continue
        try:
            is_up = (interface / "operstate").read_text(encoding="ascii").strip() == "up"
            mbits = int((interface / "speed").read_text(encoding="ascii"))
        except (OSError, ValueError):
            continue  # an interface without a cable has no speed
        if is_up and mbits > 0:
            speeds[interface.name] = mbits
    return speeds


def ib_rates(folder: Path = Path("/sys/class/infiniband")) -> dict[str, float]:
    """The rate of each adapter of InfiniBand or RoCE with an active port, in Gbit/s; without those of unknown rate."""
    rates: dict[str, float] = {}
    for port in sorted(folder.glob("*/ports/*")):
        try:
            is_active = "ACTIVE" in (port / "state").read_text(encoding="ascii")
            rate = parse_rate((port / "rate").read_text(encoding="ascii"))
        except (OSError, ValueError):
            continue
        if is_active and rate:
            name = port.relative_to(folder).parts[0]
            rates[name] = max(rate, rates.get(name, 0.0))
    return rates


def parse_rate(text: str) -> float | None:
    """The Gbit/s in the rate of a port; None if the text has none.

    Example:
        >>> parse_rate("200 Gb/sec (4X HDR)"), parse_rate("2.5 Gb/sec"), parse_rate("")
        (200.0, 2.5, None)
    """
    match = re.match(r"([0-9]+(?:\.[0-9]+)?) Gb/sec", text)
    return float(match[1]) if match else None
