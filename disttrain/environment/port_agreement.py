"""How the processes of a run find each other: a port that rank 0 binds, and a token that shows whose port it is."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from collections.abc import Iterable
from itertools import cycle

from disttrain.environment.rank_env import RankEnv

# Ranks of one job start within seconds of each other, unless a node loads torch from a cold file system.
RENDEZVOUS_TIMEOUT_S = 600.0
# A foreign client that connects and sends nothing delays the ranks by this time.
_CLIENT_TIMEOUT_S = 1.0
# A rank waits longer for an answer, so that several foreign clients may delay rank 0.
_ANSWER_TIMEOUT_S = 5.0
_MAGIC = b"disttrain rendezvous 1\n"
_GO = b"all here"


def token_of(env: RankEnv) -> bytes:
    """What a rank sends to show that it belongs to this attempt of this run."""
    return _MAGIC + env.token.encode()


def bind_first(ports: tuple[int, ...]) -> socket.socket:
    """A socket listening on the first of the ports that is free on this host.

    Raises:
        OSError: All ports are in use.
    """
    listener = reserve_first(ports)
    listener.listen(1024)
    return listener


def reserve_first(ports: tuple[int, ...]) -> socket.socket:
    """A socket bound to the first of the ports that is free on this host. It does not listen.

    As long as it is open, `bind_first` and `reserve_first` of another run skip the port, and a library that sets
    SO_REUSEADDR, as torch's store does, can still listen on it.

    Raises:
        OSError: All ports are in use.
    """
    family = socket.AF_INET
    if socket.has_dualstack_ipv6():
        family = socket.AF_INET6
    for port in ports:
        reserved = socket.socket(family)
        with contextlib.suppress(OSError):
            if family == socket.AF_INET6:
                reserved.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            # Without SO_REUSEADDR: with it on both sockets, Linux would also bind a port that another run has reserved.
            reserved.bind(("", port))
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            return reserved
        reserved.close()
    raise OSError(f"none of the ports {', '.join(map(str, ports))} is free on {socket.gethostname()}")


def answer_ranks(listener: socket.socket, token: bytes, ranks: int, timeout_s: float) -> None:
    """Answers ranks 1 to `ranks` when they send the token, and releases them together when all have connected.

    No rank is released earlier: it would connect to the store on this same port, and be disconnected like a foreign
    client.

    Raises:
        TimeoutError: Some ranks did not connect in time; the message names them.
    """
    close_all(accept_ranks(listener, token, ranks, timeout_s).values())


def accept_ranks(listener: socket.socket, token: bytes, ranks: int, timeout_s: float) -> dict[int, socket.socket]:
    """The connections of ranks 1 to `ranks`, by rank, after all have sent the token. Other clients are disconnected.

    Raises:
        TimeoutError: Some ranks did not connect in time; the message names them.
    """
    deadline = time.monotonic() + timeout_s
    answered: dict[int, socket.socket] = {}
    try:
        while len(answered) < ranks:
            ready, _, _ = select.select([listener], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                missing = ", ".join(str(rank) for rank in range(1, ranks + 1) if rank not in answered)
                raise TimeoutError(f"ranks {missing} did not connect within {timeout_s:.0f} s")
            _answer(listener.accept()[0], token, ranks, answered)
    except BaseException:
        close_all(answered.values())
        raise
    for connection in answered.values():
        with contextlib.suppress(OSError):  # a rank that has died: the store reports that it is missing
            _send(connection, _GO)
    return answered


def _answer(connection: socket.socket, token: bytes, ranks: int, answered: dict[int, socket.socket]) -> None:
    """Answers one client; if it is a rank of this run, its connection is added."""
    with contextlib.suppress(OSError):
        connection.settimeout(_CLIENT_TIMEOUT_S)
        received_token, _, rank = _receive(connection).rpartition(b" rank ")
        if received_token == token and rank.isdigit() and 1 <= int(rank) <= ranks:
            _send(connection, token)
            if int(rank) in answered:  # it has not received the first answer
                answered[int(rank)].close()
            answered[int(rank)] = connection
            return
    connection.close()


def close_all(connections: Iterable[socket.socket]) -> None:
    """Closes sockets."""
    for connection in connections:
        connection.close()


def find_port(host: str, ports: tuple[int, ...], token: bytes, rank: int, timeout_s: float) -> int:
    """The port on which rank 0 of this run answers; returns when all ranks have connected.

    Raises:
        TimeoutError: No process answered to the token in time, or not all ranks connected; the message ends with the
            last problem.
    """
    with connect_to_first(host, ports, token, rank, timeout_s) as connection:
        port: int = connection.getpeername()[1]
        return port


def connect_to_first(host: str, ports: tuple[int, ...], token: bytes, rank: int, timeout_s: float) -> socket.socket:
    """The connection to rank 0 of this run, after all ranks have connected.

    Raises:
        TimeoutError: No process answered to the token in time, or not all ranks connected; the message ends with the
            last problem.
    """
    deadline = time.monotonic() + timeout_s
    problem = ""
    for position, port in cycle(enumerate(ports)):
        try:
            connection = socket.create_connection((host, port), timeout=_ANSWER_TIMEOUT_S)
            try:
                _send(connection, token + b" rank %d" % rank)
                if _receive(connection) == token:
                    connection.settimeout(max(0.1, deadline - time.monotonic()))
                    if _receive(connection) == _GO:
                        return connection
            except BaseException:
                connection.close()
                raise
            connection.close()
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
