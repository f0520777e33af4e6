"""Every draw of a run has its own random stream."""

from __future__ import annotations

from itertools import product
from typing import get_args

from disttrain.config.recipe import Purpose, stream_seed


def test_no_two_streams_are_equal() -> None:
    """With seed + rank, rank 1 of seed 0 and rank 0 of seed 1 had the same dropout."""
    streams = [
        stream_seed(seed, purpose, number) for seed, purpose, number in product(range(20), get_args(Purpose), range(20))
    ]
    assert len(set(streams)) == len(streams)
    assert all(0 <= stream < 2**63 for stream in streams)
    assert len({stream_seed(1, "order", 12), stream_seed(11, "order", 2), stream_seed(1, "order", 1, 2)}) == 3


def test_a_stream_stays_the_same() -> None:
    """Another stream needs another RECIPE_VERSION."""
    assert stream_seed(0, "order", 0) == 9_018_975_208_740_135_628
