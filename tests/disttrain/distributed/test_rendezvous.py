"""Ranks find their own rank 0, whoever else holds the ports that they try."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from disttrain.distributed.rendezvous import answer_ranks, bind_first, find_port
from disttrain.environment.rank_env import port_candidates

TOKEN = b"job 7"


@pytest.fixture
def ports() -> tuple[int, ...]:
    """Three ports that are free now."""
    candidates = port_candidates("test")
    return candidates[:3]


@pytest.fixture
def silent_stranger(ports: tuple[int, ...]) -> Iterator[socket.socket]:
    """Somebody else's server on the first port: it takes connections, and never answers."""
    with closing(bind_first(ports[:1])) as stranger:
        yield stranger


def test_a_taken_port_is_passed_over(ports: tuple[int, ...], silent_stranger: socket.socket) -> None:
    with closing(bind_first(ports)) as listener:
        assert listener.getsockname()[1] == ports[1]


def test_no_port_left(ports: tuple[int, ...], silent_stranger: socket.socket) -> None:
    with pytest.raises(OSError, match="is free"):
        bind_first(ports[:1])


def test_ranks_reach_rank_0_past_a_stranger(ports: tuple[int, ...], silent_stranger: socket.socket) -> None:
    with closing(bind_first(ports)) as listener:
        answering = threading.Thread(target=answer_ranks, args=(listener, TOKEN, 2, 30.0))
        answering.start()
        with ThreadPoolExecutor() as pool:
            found = list(pool.map(lambda rank: find_port("127.0.0.1", ports, TOKEN, rank, 30.0), (1, 2)))
        answering.join(30)
        assert found == [ports[1], ports[1]]
        assert not answering.is_alive()


def test_two_jobs_that_try_the_same_ports_never_meet(ports: tuple[int, ...]) -> None:
    """The worst case: two jobs on one host with the same order of ports; each rank finds its own rank 0."""
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


def test_a_missing_rank_is_named(ports: tuple[int, ...]) -> None:
    with (
        closing(bind_first(ports)) as listener,
        pytest.raises(TimeoutError, match=r"ranks 1, 2 did not come within 0 s"),
    ):
        answer_ranks(listener, TOKEN, 2, 0.2)


def test_rank_0_that_never_comes(ports: tuple[int, ...]) -> None:
    with pytest.raises(TimeoutError, match=r"rank 0 did not answer on 127.0.0.1 within 0 s"):
        find_port("127.0.0.1", ports, TOKEN, 1, 0.3)
