"""Allocations: valid texts, errors and order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disttrain.errors import UserError
from jobs.planning.allocation import Allocation


@pytest.mark.parametrize(
    ("text", "nodes", "gpus_per_node", "world_size"),
    [
        ("1x1", 1, 1, 1),
        ("1x4", 1, 4, 4),
        ("2x2", 2, 2, 4),
        ("2_1", 2, 1, 2),
        ("16x8", 16, 8, 128),
        ("10_10", 10, 10, 100),
    ],
)
def test_parse(text: str, nodes: int, gpus_per_node: int, world_size: int) -> None:
    allocation = Allocation.parse(text)
    assert allocation == Allocation(nodes, gpus_per_node)
    assert allocation.world_size == world_size


WRONG_SIDES = ["", "x2", "2x", "2x2x2", "2", "0x1", "1x0", "-1x2", "1x-2", "02x2", "1.0x2", "\u0662x2", "1000000x1"]
WRONG_SEPARATORS = [" 2x2", "2x2 ", "2 x 2", "2x2\n", "2X2", "2*2", "2\u00d72"]


@pytest.mark.parametrize("value", [*WRONG_SIDES, *WRONG_SEPARATORS, 4, 2.2, True, None, [2, 2]])
def test_another_value_is_an_error(value: object) -> None:
    with pytest.raises(UserError) as caught:
        Allocation.parse(value, where="s.yaml:2: allocations[0]")
    hint = "write <nodes>x<GPUs per node>, both at least 1, for example 1x4 or 2x2"
    assert (caught.value.where, caught.value.hint) == ("s.yaml:2: allocations[0]", hint)
    assert caught.value.message == f"{value!r} is not an allocation"


@given(st.integers(1, 999_999), st.integers(1, 999_999), st.sampled_from("x_"))
def test_text_and_allocation_convert_both_ways(nodes: int, gpus_per_node: int, separator: str) -> None:
    allocation = Allocation.parse(f"{nodes}{separator}{gpus_per_node}")
    assert str(allocation) == f"{nodes}x{gpus_per_node}"
    assert Allocation.parse(str(allocation)) == allocation


def test_sorts_by_nodes_then_gpus() -> None:
    texts = ["10x1", "2x2", "1x4", "2x1", "1x1", "1x10"]
    assert [str(allocation) for allocation in sorted(map(Allocation.parse, texts))] == [
        "1x1",
        "1x4",
        "1x10",
        "2x1",
        "2x2",
        "10x1",
    ]
