"""Which rank did not come, by where each rank was."""

from __future__ import annotations

from typing import Any

import pytest

from disttrain.analysis.hang_cause import find_cause
from disttrain.records.lifecycle.hang_types import HangPosition

HOSTS = ["n1", "n1", "n2", "n2"]
ENTERED = ("barrier 1202", "all-reduce 1203 (bucket 0)", "all-reduce 1204 (bucket 1)")


def at(rank: int, **changes: Any) -> HangPosition:
    """A rank that waits in all-reduce 1204 of step 120."""
    values: dict[str, Any] = {
        "phase": "step", "step": 120, "ended_step": 119, "collective": 1204, "entered": ENTERED, "frame": "loop.run",
    }  # fmt: skip
    return HangPosition(rank=rank, host=HOSTS[rank], time_s=1.0, **(values | changes))


def all_but(late: int, **changes: Any) -> list[HangPosition]:
    return [at(rank, **(changes if rank == late else {})) for rank in range(4)]


UNRECORDED: dict[str, Any] = {"collective": None, "entered": ()}
DECODES: dict[str, Any] = {"collective": 1203, "entered": ENTERED[:-1], "frame": "images.decode"}
LATE = "rank 3 on n2 did not enter all-reduce 1204 (bucket 1) within 100 s"


@pytest.mark.parametrize(
    ("positions", "failed", "cause"),
    [
        (all_but(3, **DECODES), {}, f"{LATE}; it was in images.decode"),
        (all_but(3, **DECODES | {"frame": None}), {}, LATE),
        # The host runs ahead of a GPU: the others have entered more since then.
        (
            [at(rank, collective=1206, entered=(*ENTERED, "barrier 1205", "barrier 1206")) for rank in range(3)]
            + [at(3, **DECODES)],
            {},
            f"{LATE}; it was in images.decode",
        ),
        (
            [at(rank, collective=9000, entered=("all-reduce 9000",)) for rank in range(3)] + [at(3, **DECODES)],
            {},
            "rank 3 on n2 did not enter collective 1204 within 100 s; it was in images.decode",
        ),
        (
            [at(0), at(1), at(2, **DECODES), at(3, **DECODES | {"frame": "loop.run"})],
            {},
            "rank 2 on n2, rank 3 on n2 did not enter all-reduce 1204 (bucket 1) within 100 s",
        ),
        ([at(0), at(1), at(2)], {}, "rank 3 on n2 gave no sign of life since step 119"),
        ([at(0, ended_step=0)], {}, "rank 1 on n1, rank 2 on n2, rank 3 on n2 gave no sign of life"),
        ([at(0), at(1), at(2)], {3: "ValueError: no"}, "rank 3 on n2 failed: ValueError: no"),
        (
            all_but(0, phase="an evaluation", frame="best_model.note"),
            {},
            "rank 0 on n1 did not come to the next step: still in an evaluation, in best_model.note",
        ),
        # This torch records no collectives.
        (
            [at(0, **UNRECORDED), at(1, **UNRECORDED), at(2, step=119, **UNRECORDED), at(3, **UNRECORDED)],
            {},
            "rank 2 on n2 did not end step 119 within 100 s; it was in loop.run",
        ),
        (
            [at(rank, **UNRECORDED | {"frame": f"a.f{rank}"}) for rank in range(4)],
            {},
            "step 120 did not end within 100 s: rank 0 in a.f0, rank 1 in a.f1, rank 2 in a.f2",
        ),
        (
            all_but(9),
            {},
            "every rank waits in all-reduce 1204 (bucket 1) of step 120 for 100 s: check the network",
        ),
    ],
)
def test_the_late_rank_is_named(positions: list[HangPosition], failed: dict[int, str], cause: str) -> None:
    assert find_cause(positions, HOSTS, failed, 100.0) == cause
