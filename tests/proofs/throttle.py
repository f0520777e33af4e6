"""A slow link between the nodes of the test cluster: what leaves either of them is held to a rate, by the kernel."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator

NODES = ("sweeptest-node1", "sweeptest-node2")  # network namespaces, see tests/slurm_cluster
DEVICE = "eth0"


@contextlib.contextmanager
def throttled(rate_mbit_per_s: float, burst: str) -> Iterator[None]:
    """Holds the link to a rate as long as the block runs (tc-tbf, a token bucket); also a failed block gives it back.

    Args:
        rate_mbit_per_s: In each direction, 10^6 bits a second.
        burst: What may pass at once, as tc takes it. Too small and the link falls short of its rate, too large and it
            shows only behind that much data: 64kb is right for 200 Mbit/s, 1mb for 400 Mbit/s.

    Raises:
        subprocess.CalledProcessError: The cluster is not up, this is not root, or the link is throttled already.
    """
    with contextlib.ExitStack() as held:
        for node in NODES:
            _tc(node, f"add dev {DEVICE} root tbf rate {rate_mbit_per_s:g}mbit burst {burst} latency 50ms")
            held.callback(_tc, node, f"del dev {DEVICE} root")
        yield


def _tc(node: str, change: str) -> None:
    subprocess.run(["ip", "netns", "exec", node, "tc", "qdisc", *change.split()], check=True)
