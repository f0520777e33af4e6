"""How the ranks of a run find each other: a port that rank 0 binds, and a token that shows whose port it is."""

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
# A foreign client that connects and sends nothing delays the ranks by this time.
_CLIENT_TIMEOUT_S = 1.0
# A rank waits longer for an answer, so that several foreign clients may delay rank 0.
_ANSWER_TIMEOUT_S = 5.0
_MAGIC = b"disttrain rendezvous 1\n"
_GO = b"all here"


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
    token = _MAGIC + env.token.encode()
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


def bind_first(ports: tuple[int, ...]) -> socket.socket:
    """A socket listening on the first of the ports that is free on this host.

    Raises:
        OSError: All ports are in use.
    """
    family = socket.AF_INET
    if socket.has_dualstack_ipv6():
        family = socket.AF_INET6
    for port in ports:
        listener = socket.socket(family)
        with contextlib.suppress(OSError):
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            # Allows a port with dead connections of an earlier attempt. On Linux, two listeners still cannot share it.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("", port))
            listener.listen(1024)
            return listener
        listener.close()
    raise OSError(f"none of the ports {', '.join(map(str, ports))} is free on {socket.gethostname()}")


def answer_ranks(listener: socket.socket, token: bytes, ranks: int, timeout_s: float) -> None:
    """Answers ranks 1 to `ranks` when they send the token, and releases them together when all have connected.

    Other clients are disconnected. No rank is released earlier: it would connect to the store on this same port, and be
    disconnected like a foreign client.

    Raises:
        TimeoutError: Some ranks did not connect in time; the message names them.
    """
    deadline = time.monotonic() + timeout_s
    with contextlib.ExitStack() as connections:
        answered: dict[int, socket.socket] = {}
        while len(answered) < ranks:
            ready, _, _ = select.select([listener], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                missing = ", ".join(str(rank) for rank in range(1, ranks + 1) if rank not in answered)
                raise TimeoutError(f"ranks {missing} did not connect within {timeout_s:.0f} s")
            connection = connections.enter_context(listener.accept()[0])
            with contextlib.suppress(OSError):
                connection.settimeout(_CLIENT_TIMEOUT_S)
                received_token, _, rank = _receive(connection).rpartition(b" rank ")
                if received_token == token and rank.isdigit() and 1 <= int(rank) <= ranks:
                    _send(connection, token)
                    answered[int(rank)] = connection
                else:
                    connection.close()
        for connection in answered.values():
            with contextlib.suppress(OSError):  # a rank that has died: the store reports that it is missing
                _send(connection, _GO)


def find_port(host: str, ports: tuple[int, ...], token: bytes, rank: int, timeout_s: float) -> int:
    """The port on which rank 0 of this run answers; returns when all ranks have connected.

    Raises:
        TimeoutError: No process answered to the token in time, or not all ranks connected; the message ends with the
            last problem.
    """
    deadline = time.monotonic() + timeout_s
    problem = ""
    for position, port in cycle(enumerate(ports)):
        try:
            with socket.create_connection((host, port), timeout=_ANSWER_TIMEOUT_S) as connection:
                _send(connection, token + b" rank %d" % rank)
                if _receive(connection) == token:
                    connection.settimeout(max(0.1, deadline - time.monotonic()))
                    if _receive(connection) == _GO:
                        return port
            problem = f"port {port} belongs to another process"
        except OSError as error:
            problem = f"port {port}: {error}"
        if time.monotonic() > deadline:
            break
        if position == len(ports) - 1:
            time.sleep(0.1)  # rank 0 may still be importing torch
    raise TimeoutError(f"rank 0 did not answer on {host} within {timeout_s:.0f} s; last problem: {problem}")


def _send(connection: socket.socket, message: bytes) -> None:
    connection.sendall(struct.pack("!H", len(message)) + message)


def _receive(connection: socket.socket) -> bytes:
    """One message, or the bytes that a foreign client sent instead."""
    head = connection.recv(2, socket.MSG_WAITALL)
    if len(head) < 2:
        return b""
    return connection.recv(min(struct.unpack("!H", head)[0], 1024), socket.MSG_WAITALL)


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
