"""Progress lines of rank 0, the order of ranks in `main_first`, and the first rank on each GPU."""

from __future__ import annotations

import os
import threading
import time

import pytest
import torch
import torch.distributed

from disttrain.distributed import group as dist
from disttrain.distributed.group import Group, is_first
from disttrain.distributed.places import Place
from disttrain.environment.rank_env import RankEnv


@pytest.mark.parametrize(("rank", "later_lines"), [(0, "cutting 4 of 10 trees\ncutting 8 of 10 trees\n"), (1, "")])
def test_rank_0_prints_progress(
    rank: int, later_lines: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dist, "SAY_EVERY_S", 0.0)
    group = Group(RankEnv(rank=rank, world_size=2), torch.device("cpu"), None, ("n1",), False)
    parts = [list(range(10))[part] for part in group.parts(10, 4, "cutting {} of {} trees")]
    assert parts == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    first_line = "cutting 0 of 10 trees\n" if rank == 0 else ""
    assert capsys.readouterr().out == first_line + later_lines


def test_quick_work_prints_no_progress(capsys: pytest.CaptureFixture[str]) -> None:
    group = Group(RankEnv(), torch.device("cpu"), None, ("n1",), False)
    assert list(group.parts(10, 20, "cutting {} of {} trees")) == [slice(0, 10)]
    assert list(group.parts(0, 20, "cutting {} of {} trees")) == []
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("names", [("n1", "n2"), ("node", "node")])
def test_main_first_orders_hosts_and_ranks(names: tuple[str, str]) -> None:
    """The first rank of a host enters after rank 0 and before the others of its host, also where names are equal."""
    store = torch.distributed.HashStore()
    hosts = (names[0],) * 2 + (names[1],) * 3
    machines = tuple(f"{host} boot-{int(rank > 1)}" for rank, host in enumerate(hosts))
    events: list[tuple[str, int]] = []

    def rank(number: int) -> None:
        local = number if number < 2 else number - 2
        env = RankEnv(rank=number, world_size=5, local_rank=local, local_world_size=3, node_rank=number // 2)
        group = Group(env, torch.device("cpu"), "gloo", hosts, False, store, machines=machines)
        for _ in range(2):
            with group.main_first():
                events.append(("begins", number))
                time.sleep(0.02)
                events.append(("ends", number))

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    for turn in (0, 1):
        positions: dict[tuple[str, int], list[int]] = {}
        for position, event in enumerate(events):
            positions.setdefault(event, []).append(position)
        when = {event: event_positions[turn] for event, event_positions in positions.items()}
        assert when["ends", 0] < min(when["begins", 1], when["begins", 2])
        assert when["ends", 2] < min(when["begins", 3], when["begins", 4])


def test_finds_the_first_rank_on_each_gpu() -> None:
    gpus = ["n1 0:3b:0", "n1 0:3b:0", "n2 0:3b:0", ""]
    assert [is_first(gpus, rank) for rank in range(4)] == [True, False, True, True]


def test_a_shared_gpu_is_reported() -> None:
    env = RankEnv(rank=0, world_size=2)
    groups = [Group(env, torch.device("cpu"), "gloo", ("node1", "node1"), shared) for shared in (True, False)]
    assert [notice.split(",")[0] for notice in groups[0].notices] == ["ranks share a GPU"]
    assert groups[1].notices == ()


def test_only_rank_0_gathers(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other rank holds the values of all ranks."""
    targets: list[tuple[list[torch.Tensor] | None, int]] = []

    def gather(values: torch.Tensor, received: list[torch.Tensor] | None = None, dst: int = -1) -> None:
        targets.append((received, dst))
        for place in received or ():
            place.copy_(values)

    monkeypatch.setattr(torch.distributed, "gather", gather)
    monkeypatch.delattr(torch.distributed, "all_gather")
    groups = [
        Group(RankEnv(rank=rank, world_size=2), torch.device("cpu"), "gloo", ("n1", "n1"), False) for rank in (0, 1)
    ]
    assert [[value.tolist() for value in group.gather(torch.ones(2))] for group in groups] == [[[1.0, 1.0]] * 2, []]
    assert [(received is None, dst) for received, dst in targets] == [(False, 0), (True, 0)]


def test_only_rank_0_gathers_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    def gather(value: str, received: list[str] | None, dst: int) -> None:
        assert dst == 0
        if received is not None:
            received[:] = [value, "other"]

    monkeypatch.setattr(torch.distributed, "gather_object", gather)
    groups = [
        Group(RankEnv(rank=rank, world_size=2), torch.device("cpu"), "gloo", ("n1", "n1"), False) for rank in (0, 1)
    ]
    assert [group.gather_objects_on_main("own") for group in groups] == [["own", "other"], ["own"]]
    assert Group(RankEnv(), torch.device("cpu"), None, ("n1",), False).gather_objects_on_main("own") == ["own"]


@pytest.mark.parametrize(
    ("places", "asked"),
    [
        ([("n1", "1"), ("n1", "1")], []),
        ([("n1", "1"), ("n2", "2")], ["n2"]),
        ([("node", "1"), ("node", "2")], ["10.0.0.1"]),  # the name leads back to this machine
    ],
)
def test_gloo_uses_the_interface_to_another_machine(
    places: list[tuple[str, str]], asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []
    monkeypatch.setattr(dist, "interface_towards", lambda name: names.append(name) or "eth7")  # type: ignore[func-returns-value]
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")  # so that the value before the test comes back
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    env = RankEnv(rank=0, world_size=2, master_addr="10.0.0.1")
    dist._set_gloo_interface([Place(host, boot, "CPU") for host, boot in places], env)
    assert names == asked
    assert os.environ.get("GLOO_SOCKET_IFNAME") == ("eth7" if asked else None)
