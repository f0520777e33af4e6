"""Ranks find their own rank 0, even if other processes use the ports that they try."""

from __future__ import annotations

import contextlib
import socket
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from disttrain.environment.port_agreement import answer_ranks, bind_first, find_port, reserve_first
from disttrain.environment.rank_env import port_candidates

TOKEN = b"job 7"


@pytest.fixture
def ports() -> tuple[int, ...]:
    """Three ports that are free now. Those of the test before have dead connections, and are skipped."""
    free = []
    for port in port_candidates(str(uuid.uuid4())):
        with contextlib.suppress(OSError), closing(bind_first((port,))):
            free.append(port)
    return free[0], free[1], free[2]


@pytest.fixture
def silent_server(ports: tuple[int, ...]) -> Iterator[socket.socket]:
    """A foreign server on the first port, which accepts connections and never answers."""
    with closing(bind_first(ports[:1])) as server:
        yield server


def test_skips_a_port_in_use(ports: tuple[int, ...], silent_server: socket.socket) -> None:
    with closing(bind_first(ports)) as listener:
        assert listener.getsockname()[1] == ports[1]


def test_all_ports_in_use(ports: tuple[int, ...], silent_server: socket.socket) -> None:
    with pytest.raises(OSError, match="is free"):
        bind_first(ports[:1])


def test_ranks_find_rank_0_past_foreign_server(ports: tuple[int, ...], silent_server: socket.socket) -> None:
    with closing(bind_first(ports)) as listener:
        answering = threading.Thread(target=answer_ranks, args=(listener, TOKEN, 2, 30.0))
        answering.start()
        with ThreadPoolExecutor() as pool:
            used_ports = list(pool.map(lambda rank: find_port("127.0.0.1", ports, TOKEN, rank, 30.0), (1, 2)))
        answering.join(30)
        assert used_ports == [ports[1], ports[1]]
        assert not answering.is_alive()


def test_two_jobs_on_the_same_ports(ports: tuple[int, ...]) -> None:
    """The worst case: two jobs on one host try the same ports in the same order. Each rank finds its own rank 0."""
    with closing(bind_first(ports)) as first, closing(bind_first(ports)) as second:
        threads = [
            threading.Thread(target=answer_ranks, args=(listener, token, 1, 30.0))
            for listener, token in ((first, b"job 7"), (second, b"job 8"))
        ]
        for thread in threads:
            thread.start()
        assert find_port("127.0.0.1", ports, b"job 8", 1, 30.0) == ports[1]
        assert find_port("127.0.0.1", ports, b"job 7", 1, 30.0) == ports[0]
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()


def test_names_missing_ranks(ports: tuple[int, ...]) -> None:
    with (
        closing(bind_first(ports)) as listener,
        pytest.raises(TimeoutError, match=r"ranks 1, 2 did not connect within 0 s"),
    ):
        answer_ranks(listener, TOKEN, 2, 0.2)


def test_rank_0_never_answers(ports: tuple[int, ...]) -> None:
    with pytest.raises(TimeoutError, match=r"rank 0 did not answer on 127.0.0.1 within 0 s"):
        find_port("127.0.0.1", ports, TOKEN, 1, 0.3)


def test_a_reserved_port_is_skipped(ports: tuple[int, ...]) -> None:
    with closing(reserve_first(ports)) as first, closing(reserve_first(ports)) as second:
        assert [first.getsockname()[1], second.getsockname()[1]] == [ports[0], ports[1]]
        with closing(bind_first(ports)) as listener:
            assert listener.getsockname()[1] == ports[2]


def test_a_library_listens_on_the_reserved_port(ports: tuple[int, ...]) -> None:
    """As torch's store does: its socket has SO_REUSEADDR."""
    with closing(reserve_first(ports)), closing(socket.socket()) as library:
        library.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        library.bind(("", ports[0]))
        library.listen()
        with closing(socket.create_connection(("127.0.0.1", ports[0]))):
            library.accept()[0].close()
