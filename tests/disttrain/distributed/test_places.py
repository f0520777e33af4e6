"""The places of ranks: shared GPUs, equal host names, the start line and its notices."""

from __future__ import annotations

import pytest

from disttrain.distributed.places import Place, gpu_keys, placement_notices, read_boot_id, start_line

H100 = "NVIDIA H100 80GB HBM3"


def place(host: str, boot: str, gpu: str = "", gpu_uuid: str = "", name: str = H100) -> Place:
    return Place(host, boot, name, gpu, gpu_uuid)


@pytest.mark.parametrize(
    ("places", "shared"),
    [
        ([place("a", "1", "0:3b:0", "u1"), place("a", "1", "0:5e:0", "u2")], False),
        ([place("a", "1", "0:3b:0", "u1"), place("a", "1", "0:3b:0", "u1")], True),
        # Two machines with one host name, and GPUs in the same slot.
        ([place("node", "1", "0:3b:0", "u1"), place("node", "2", "0:3b:0", "u2")], False),
        # MIG slices of one board: NCCL refuses them.
        ([place("a", "1", "0:3b:0", "m1"), place("a", "1", "0:3b:0", "m2")], True),
        # Two containers on one machine.
        ([place("c1", "1", "0:3b:0", "u1"), place("c2", "1", "0:3b:0", "u1")], True),
        # A system without boot ids.
        ([place("a", "", "0:3b:0"), place("b", "", "0:3b:0")], False),
        ([place("a", "", "0:3b:0"), place("a", "", "0:3b:0")], True),
    ],
)
def test_shared_gpus_are_found(places: list[Place], shared: bool) -> None:
    keys = gpu_keys(places)
    assert all(keys)
    assert (len(set(keys)) < len(keys)) is shared


def test_a_rank_without_gpu_shares_none() -> None:
    assert gpu_keys([place("a", "1"), place("a", "1")]) == ["", ""]


def test_a_chain_of_equal_gpus_is_one() -> None:
    """The first and the last rank have nothing in common except the one between them."""
    places = [place("c1", "1", "0:3b:0", "m1"), place("c1", "1", "0:3b:0", "m2"), place("c2", "1", "0:3b:0", "m2")]
    assert len(set(gpu_keys(places))) == 1


@pytest.mark.parametrize(
    ("places", "backend", "line"),
    [
        ([place("a", "1")], None, f"1 rank on 1 host, {H100}"),
        ([place("a", "1")] * 2 + [place("b", "2")] * 2, "nccl", f"4 ranks on 2 hosts, nccl, {H100}"),
        ([place("a", "1"), place("a", "2")], "nccl", f"2 ranks on 2 hosts, nccl, {H100}"),
        (
            [place("a", "1"), place("a", "1"), place("a", "1", name="Xeon")],
            "gloo",
            f"3 ranks on 1 host, gloo, 2 x {H100}, 1 x Xeon",
        ),
    ],
)
def test_the_start_line(places: list[Place], backend: str | None, line: str) -> None:
    assert start_line(places, backend) == line


def test_every_fall_back_has_a_notice() -> None:
    whole = [place("a", "1", "0:3b:0", "u1"), place("b", "2", "0:3b:0", "u2")]
    assert placement_notices(whole) == ()
    assert placement_notices([place("a", "1"), place("a", "1")]) == ()
    assert placement_notices([*whole, place("b", "2")]) == (
        "rank 2 has no GPU, and the others have: gloo replaces NCCL, times are not comparable",
    )
    assert placement_notices([place("a", "1"), place("a", "2"), place("a", "2")]) == (
        "2 machines have the host name 'a': records and messages do not tell them apart",
    )


def test_the_boot_id_is_read() -> None:
    assert read_boot_id() == read_boot_id()
