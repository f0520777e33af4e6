"""CPU numbers as the kernel writes them."""

from __future__ import annotations

import pytest

from disttrain.records.start_types import cpu_list


@pytest.mark.parametrize(
    ("cpus", "text"),
    [
        ({7}, "7"),
        ({3, 2}, "2-3"),
        ({0, 2, 4}, "0,2,4"),  # one thread of each core
        ({0, 1, 2, 3, 64, 65, 66, 67}, "0-3,64-67"),
    ],
)
def test_neighbours_are_a_range(cpus: set[int], text: str) -> None:
    assert cpu_list(cpus) == text
