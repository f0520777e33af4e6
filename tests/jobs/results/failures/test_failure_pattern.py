"""What failed runs have in common."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.results.failures.failure_pattern import failure_patterns
from jobs.results.result import Result
from tests.jobs.results.rows import make_result


def rows(*runs: tuple[str, str | None, dict[str, Any]], allocation: str = "1x1") -> list[Result]:
    """A row for each state, node list and varied values."""
    return [
        make_result(f"{allocation}-{index:012x}", state=state, node_list=nodes, varied=varied)
        for index, (state, nodes, varied) in enumerate(runs)
    ]


def on(node: str | None, failed: int, good: int, state: str = "FAILED") -> list[tuple[str, str | None, dict[str, Any]]]:
    varied: dict[str, Any] = {}
    return [(state, node, varied)] * failed + [("COMPLETED", node, varied)] * good


def of(batch: int, failed: int, good: int, **others: Any) -> list[tuple[str, str | None, dict[str, Any]]]:
    varied = {"per_gpu_batch": batch, **others}
    return [("FAILED", None, varied)] * failed + [("COMPLETED", None, varied)] * good


def test_failures_gather_on_a_node() -> None:
    assert failure_patterns(rows(*on("node17", 4, 1), *on("node18", 1, 5))) == [
        "4 of 5 failed runs used node17: sweep retry --exclude node17 leaves it out"
    ]
    all_there = failure_patterns(rows(*on("n1", 3, 2, "TIMEOUT"), *on("n2", 0, 1)))
    assert all_there == ["all 3 failed runs used n1: sweep retry --exclude n1 leaves it out"]


@pytest.mark.parametrize(
    "runs",
    [
        pytest.param([*on("n1", 2, 0), *on("n2", 0, 5)], id="two failures are too few"),
        pytest.param([*on("n1", 3, 3), *on("n2", 0, 5)], id="half of its runs succeeded"),
        pytest.param([*on("n1", 3, 0), *on("n2", 3, 0)], id="they fail on every node"),
        pytest.param([*on("n1", 3, 0), *on("n2", 7, 20)], id="less than a third of the failures"),
        pytest.param([*on("n1", 3, 0), *on("n2", 2, 1)], id="most of the others failed too"),
        pytest.param(on("n1", 3, 2), id="no other node was used"),
        pytest.param([*on("n1", 5, 0, "CANCELLED"), *on("n2", 0, 5)], id="cancelled runs did not fail"),
        pytest.param([*on("n[1-", 3, 0), *on("n2", 0, 5)], id="a damaged hostlist"),
        pytest.param([*on(None, 3, 0), *on(None, 0, 5)], id="the local executor has no nodes"),
        pytest.param([], id="no run"),
    ],
)
def test_no_pattern(runs: list[tuple[str, str | None, dict[str, Any]]]) -> None:
    assert failure_patterns(rows(*runs)) == []


def test_a_good_node_is_not_accused() -> None:
    """n2 has three failures too, and all of them used n1."""
    runs = rows(*on("n[1-2]", 3, 0), *on("n1", 2, 0), *on("n2", 0, 2), *on("n[3-4]", 0, 8))
    assert failure_patterns(runs) == ["all 5 failed runs used n1: sweep retry --exclude n1 leaves it out"]


def test_two_bad_nodes() -> None:
    runs = rows(*on("n1", 4, 0), *on("n2", 3, 0), *on("n3", 0, 20))
    assert failure_patterns(runs) == [
        "4 of 7 failed runs used n1: sweep retry --exclude n1 leaves it out",
        "3 of 7 failed runs used n2: sweep retry --exclude n2 leaves it out",
    ]


def test_nodes_of_the_same_runs_are_named_together() -> None:
    runs = rows(*on("n[1-2]", 3, 0), *on("n3", 0, 5))
    assert failure_patterns(runs) == ["all 3 failed runs used n1,n2: sweep retry --exclude n1,n2 leaves them out"]


def test_failures_gather_at_a_value() -> None:
    assert failure_patterns(rows(*of(512, 3, 0), *of(64, 0, 3))) == ["all 3 failed runs have per_gpu_batch=512"]
    assert failure_patterns(rows(*of(512, 3, 1), *of(64, 1, 8))) == ["3 of 4 failed runs have per_gpu_batch=512"]
    together = rows(*of(512, 3, 0, lr=0.1), *of(64, 0, 3, lr=0.01))
    assert failure_patterns(together) == ["all 3 failed runs have per_gpu_batch=512, lr=0.1"]


def test_failures_gather_at_an_allocation() -> None:
    several = rows(*on(None, 3, 0), allocation="2x1") + rows(*on(None, 0, 3))
    assert failure_patterns(several) == ["all 3 failed runs have allocation=2x1"]


def test_dropped_runs_say_nothing() -> None:
    failed = [make_result(f"1x1-{index:012x}", state="FAILED", node_list="n1", dropped=True) for index in range(3)]
    assert failure_patterns([*failed, *rows(*on("n2", 0, 5))]) == []
