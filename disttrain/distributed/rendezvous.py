"""How the ranks of a run find each other: a port that rank 0 has bound, proved to be this run's and no other's."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from datetime import timedelta
from itertools import cycle

import torch.distributed as dist

from disttrain.environment.rank_env import RankEnv

# Ranks of one job start within seconds of each other, unless a node loads torch from a cold file system.
RENDEZVOUS_TIMEOUT_S = 600.0
# A stranger that connects and says nothing holds up the others so long, so a rank waits for several of them.
_STRANGER_TIMEOUT_S = 1.0
_ANSWER_TIMEOUT_S = 5.0
_MAGIC = b"disttrain rendezvous 1\n"
_GO = b"all here"


def open_store(env: RankEnv) -> dist.Store:
    """The key-value store of this run, the same for all of its ranks.

    torchrun's own where it started the ranks. Elsewhere rank 0 binds the first free port of the run's own order, and
    answers on it, by the run's token, every other rank that tries the same order; then the store takes over the very
    same socket. So two jobs on one host never share a port, since binding is atomic; a port that a stranger holds is
    passed over; and a rank that reaches another job's port hears no answer for its token.

    Raises:
        TimeoutError: Some ranks did not come within `RENDEZVOUS_TIMEOUT_S`.
    """
    if env.launcher == "torchrun":
        store, _, _ = next(dist.rendezvous("env://", env.rank, env.world_size))
        return dist.PrefixStore(f"disttrain/{env.restart_count}", store)
    token = _MAGIC + env.token.encode()
    if env.rank == 0:
        return _host(env, token)
    port = find_port(env.master_addr, env.port_candidates(), token, env.rank, RENDEZVOUS_TIMEOUT_S)
    return dist.TCPStore(env.master_addr, port, env.world_size, is_master=False, timeout=_store_timeout())


def _host(env: RankEnv, token: bytes) -> dist.Store:
    listener = bind_first(env.port_candidates())
    port = listener.getsockname()[1]
    answer_ranks(listener, token, env.world_size - 1, RENDEZVOUS_TIMEOUT_S)
    # The store owns the descriptor from now on, and closes it.
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


def bind_first(ports: tuple[int, ...]) -> socket.socket:
    """A socket listening on the first of the ports that is free on this host.

    Raises:
        OSError: All are taken.
    """
    for port in ports:
        listener = socket.socket(socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET)
        with contextlib.suppress(OSError):
            if listener.family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            # Past the dead connections of an earlier attempt. It does not let two listeners share a port on Linux.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("", port))
            listener.listen(1024)
            return listener
        listener.close()
    raise OSError(f"none of the ports {', '.join(map(str, ports))} is free on {socket.gethostname()}")


def answer_ranks(listener: socket.socket, token: bytes, ranks: int, timeout_s: float) -> None:
    """Greets ranks 1 to `ranks` as they show the token, hangs up on anyone else, and lets all go once all are here.

    Not before: a rank that went on to the store would knock on this same port, and be taken for a stranger.

    Raises:
        TimeoutError: Some did not come in time; names them.
    """
    deadline = time.monotonic() + timeout_s
    with contextlib.ExitStack() as connections:
        greeted: dict[int, socket.socket] = {}
        while len(greeted) < ranks:
            ready, _, _ = select.select([listener], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                missing = ", ".join(str(rank) for rank in range(1, ranks + 1) if rank not in greeted)
                raise TimeoutError(f"ranks {missing} did not come within {timeout_s:.0f} s")
            connection = connections.enter_context(listener.accept()[0])
            with contextlib.suppress(OSError):
                connection.settimeout(_STRANGER_TIMEOUT_S)
                shown, _, rank = _receive(connection).rpartition(b" rank ")
                if shown == token and rank.isdigit() and 1 <= int(rank) <= ranks:
                    _send(connection, token)
                    greeted[int(rank)] = connection
                else:
                    connection.close()
        for connection in greeted.values():
            with contextlib.suppress(OSError):  # one that died meanwhile is missed by the store
                _send(connection, _GO)


def find_port(host: str, ports: tuple[int, ...], token: bytes, rank: int, timeout_s: float) -> int:
    """The port on which rank 0 of this run answers; returns when all ranks are there.

    Raises:
        TimeoutError: Nobody answered for the token in time, or not all ranks came; names what went wrong last.
    """
    deadline = time.monotonic() + timeout_s
    trouble = ""
    for position, port in cycle(enumerate(ports)):
        try:
            with socket.create_connection((host, port), timeout=_ANSWER_TIMEOUT_S) as connection:
                _send(connection, token + b" rank %d" % rank)
                if _receive(connection) == token:
                    connection.settimeout(max(0.1, deadline - time.monotonic()))
                    if _receive(connection) == _GO:
                        return port
            trouble = f"port {port} belongs to someone else"
        except OSError as error:
            trouble = f"port {port}: {error}"
        if time.monotonic() > deadline:
            break
        if position == len(ports) - 1:
            time.sleep(0.1)  # rank 0 may still be importing torch
    raise TimeoutError(f"rank 0 did not answer on {host} within {timeout_s:.0f} s; last: {trouble}")


def _send(connection: socket.socket, message: bytes) -> None:
    connection.sendall(struct.pack("!H", len(message)) + message)


def _receive(connection: socket.socket) -> bytes:
    """One message, or whatever a stranger sent in its place."""
    head = connection.recv(2, socket.MSG_WAITALL)
    if len(head) < 2:
        return b""
    return connection.recv(min(struct.unpack("!H", head)[0], 1024), socket.MSG_WAITALL)


def interface_towards(host: str) -> str | None:
    """Name of the network interface from which this host reaches another; None where it cannot be told."""
    import fcntl

    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))  # sends nothing: asks the routing table
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
