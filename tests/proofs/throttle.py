"""A slow link between the nodes of the test cluster: the kernel limits the rate at which each node sends."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator

NODES = ("sweeptest-node1", "sweeptest-node2")  # network namespaces, see tests/slurm_cluster
DEVICE = "eth0"


@contextlib.contextmanager
def throttled(rate_mbit_per_s: float, burst: str) -> Iterator[None]:
    """Limits the link's rate while the block runs (tc-tbf, a token bucket); the limit is removed even after an error.

    Args:
        rate_mbit_per_s: The rate in each direction, in 10^6 bits per second.
        burst: The size of the token bucket, in tc's notation. With a small bucket the link does not reach its rate;
            with a large one the limit only acts after that amount of data. 64kb suits 200 Mbit/s, and 1mb 400 Mbit/s.

    Raises:
        subprocess.CalledProcessError: The cluster is not up, the user is not root, or the link already has a limit.
    """
    with contextlib.ExitStack() as limits:
        for node in NODES:
            _tc(node, f"add dev {DEVICE} root tbf rate {rate_mbit_per_s:g}mbit burst {burst} latency 50ms")
            limits.callback(_tc, node, f"del dev {DEVICE} root")
        yield


def _tc(node: str, change: str) -> None:
    subprocess.run(["ip", "netns", "exec", node, "tc", "qdisc", *change.split()], check=True)
