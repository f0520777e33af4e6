"""The memory benchmark measures real ranks, and its table has the figures of each rank."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.contenders import REPOSITORY
from tests.benchmarks.start.memory import Peak, Start, _cold_and_warm, grid


def test_the_table_has_a_row_for_each_state() -> None:
    peaks = (Peak(300.0, 500.0), Peak(200.0, 400.0))
    starts = [Start("now", 1000, "cold", peaks), Start("now", 1000, "cold", peaks)]
    starts.append(Start("now", 1000, "warm", peaks))
    made = grid(starts)
    assert made.rows[0] == (
        "1,000", "cold", "now", "2", "300 [300 to 300]", "500 [500 to 500]", "200 [200 to 200]", "400 [400 to 400]",
    )  # fmt: skip
    assert made.rows[1][1:4] == ("warm", "now", "1")


@pytest.mark.process
def test_a_start_is_measured(tmp_path: Path) -> None:
    cold, warm = _cold_and_warm("now", REPOSITORY, 1000, tmp_path / "work")
    assert (cold.cache, warm.cache) == ("cold", "warm")
    for start in (cold, warm):
        assert len(start.peaks) == 2
        assert all(100 < peak.own_mb < peak.total_mb < 3000 for peak in start.peaks)
