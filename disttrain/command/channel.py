"""The connections between the processes that supervise the ranks of a command: every rank has one to rank 0."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from disttrain.environment.port_agreement import accept_ranks, bind_first, close_all, connect_to_first, token_of
from disttrain.environment.rank_env import RankEnv

Message = Mapping[str, Any]

_HEAD = struct.Struct("!I")
_LONGEST = 2**26  # bytes; a report with 200 metrics has 40 kB
# Within a message. The processes only wait for each other, but a file system may hold one up.
_TIMEOUT_S = 600.0
# Rank 0 names the ranks that are missing, so it gives up first. Ranks start at different times.
_LATER_S = 60.0
# A host that disappears is noticed after 60 + 6 x 10 s, and not after two hours.
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 6))


class LostPeer(ConnectionError):
    """The connection to another rank has closed before its report: it has failed.

    Args:
        rank: The other rank.
    """

    def __init__(self, rank: int) -> None:
        super().__init__(f"connection closed by rank {rank} before its script had ended")
        self.rank = rank


@dataclass(frozen=True)
class Channel:
    """The connections of one rank, by the rank at their other end: rank 0 has all, the others have one to rank 0.

    At the end of a `with` block they are closed.
    """

    peers: Mapping[int, socket.socket]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        close_all(self.peers.values())

    def send(self, message: Message) -> None:
        """Sends a message to every peer. A peer that has ended gets none."""
        for connection in self.peers.values():
            with contextlib.suppress(OSError):
                payload = json.dumps(message).encode()
                connection.sendall(_HEAD.pack(len(payload)) + payload)

    def receive(self, rank: int) -> Message:
        """The next message of a peer; waits for it.

        Raises:
            LostPeer: The connection has closed, or what was sent is no message.
        """
        connection = self.peers[rank]
        try:
            (size,) = _HEAD.unpack(_receive_all(connection, _HEAD.size))
            if size > _LONGEST:
                raise LostPeer(rank)
            message = json.loads(_receive_all(connection, size))
        except (OSError, struct.error, ValueError):
            raise LostPeer(rank) from None
        if not isinstance(message, dict):
            raise LostPeer(rank)
        return message


def open_channel(env: RankEnv, timeout_s: float) -> Channel:
    """Connects the ranks of a run.

    Raises:
        TimeoutError: Some ranks did not connect in time.
    """
    peers: dict[int, socket.socket] = {}
    if env.world_size > 1 and env.rank == 0:
        with bind_first(env.port_candidates()) as listener:
            peers = accept_ranks(listener, token_of(env), env.world_size - 1, timeout_s)
    elif env.world_size > 1:
        peers = {
            0: connect_to_first(env.master_addr, env.port_candidates(), token_of(env), env.rank, timeout_s + _LATER_S)
        }
    for connection in peers.values():
        connection.settimeout(_TIMEOUT_S)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE:
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
    return Channel(peers)


def _receive_all(connection: socket.socket, size: int) -> bytes:
    """Exactly this number of bytes.

    Raises:
        ValueError: The connection has closed before.
    """
    parts: list[bytes] = []
    while size > 0:
        part = connection.recv(min(size, 2**16))
        if not part:
            raise ValueError("the connection has closed")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
