"""The network interfaces of this host, as the kernel lists them."""

from __future__ import annotations

from pathlib import Path

# What connects processes of one host, or containers, and no two nodes.
_INTERNAL = ("lo", "docker", "virbr", "br-", "cni", "flannel", "podman")


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
