"""The key-value store through which the ranks of a run find each other, and the network interface between them."""

from __future__ import annotations

import contextlib
import socket
import struct
from datetime import timedelta

import torch.distributed as dist

from disttrain.environment.port_agreement import RENDEZVOUS_TIMEOUT_S, answer_ranks, bind_first, find_port, token_of
from disttrain.environment.rank_env import RankEnv


def open_store(env: RankEnv) -> dist.Store:
    """The key-value store of this run, the same for all of its ranks.

    Under torchrun this is torchrun's own store. Otherwise rank 0 binds the first free port of the run's list of ports.
    The other ranks try the same list, and rank 0 answers those that send the run's token. Then the store takes over the
    bound socket. Two jobs on one host never share a port, because binding is atomic. A port that another process uses
    is skipped. A rank that connects to another job's port gets no answer to its token.

    Raises:
        TimeoutError: Some ranks did not connect within `RENDEZVOUS_TIMEOUT_S`.
    """
    if env.launcher == "torchrun":
        store, _, _ = next(dist.rendezvous("env://", env.rank, env.world_size))
        return dist.PrefixStore(f"disttrain/{env.restart_count}", store)
    token = token_of(env)
    if env.rank == 0:
        return _host(env, token)
    port = find_port(env.master_addr, env.port_candidates(), token, env.rank, RENDEZVOUS_TIMEOUT_S)
    return dist.TCPStore(env.master_addr, port, env.world_size, is_master=False, timeout=_store_timeout())


def _host(env: RankEnv, token: bytes) -> dist.Store:
    listener = bind_first(env.port_candidates())
    port = listener.getsockname()[1]
    answer_ranks(listener, token, env.world_size - 1, RENDEZVOUS_TIMEOUT_S)
    # From now on the store owns the descriptor, and closes it.
    return dist.TCPStore(
        env.master_addr,
        port,
        env.world_size,
        is_master=True,
        timeout=_store_timeout(),
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )


def _store_timeout() -> timedelta:
    return timedelta(seconds=RENDEZVOUS_TIMEOUT_S)


def interface_towards(host: str) -> str | None:
    """The name of the network interface from which this host reaches another; None if it cannot be found."""
    import fcntl

    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))  # sends nothing: only queries the routing table
            address = probe.getsockname()[0]
            for _, name in socket.if_nameindex():
                request = struct.pack("256s", name.encode())
                with contextlib.suppress(OSError):
                    answer = fcntl.ioctl(probe.fileno(), 0x8915, request)  # SIOCGIFADDR
                    if socket.inet_ntoa(answer[20:24]) == address and name != "lo":
                        return name
    except OSError:
        return None
    return None
