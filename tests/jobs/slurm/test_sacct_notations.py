"""Every notation in which sacct writes GPUs, memory, ids of arrays, states and attempts, each against its meaning."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.slurm.attempts import attempts_by_job
from jobs.slurm.sacct_table import SEPARATOR, parse_sacct
from jobs.slurm.states import State

STARTED = {"Submit": "1000", "Start": "1060", "End": "4660", "ElapsedRaw": "3600", "State": "COMPLETED"}


def table(*rows: dict[str, str]) -> str:
    names = list(dict.fromkeys(("JobID", *(name for row in rows for name in row))))
    return "".join(SEPARATOR.join(row.get(name, "") for name in names) + "\n" for row in ({n: n for n in names}, *rows))


@pytest.mark.parametrize(
    ("alloc_tres", "gpus"),
    [
        ("billing=4,cpu=4,gres/gpu=4,node=2", 4),
        ("cpu=4,gres/gpu:a100=4,gres/gpu=4", 4),
        ("cpu=4,gres/gpu=4,gres/gpu:a100=4", 4),
        ("cpu=4,gres/gpu:a100=4", 4),
        ("gres/gpu:a100=2,gres/gpu:h100=1", 3),
        ("gres/gpu:a100_1g.5gb=7", 7),
        ("gres/gpumem=80G,gres/gpuutil=97,gres/gpu=1", 1),
        ("gres/gpumem=80G,gres/gpuutil=97", None),
        ("cpu=4,mem=0,node=1", None),
        ("", None),
    ],
)
def test_a_gpu_counts_once(alloc_tres: str, gpus: int | None) -> None:
    (row,) = parse_sacct(table({"JobID": "9", "AllocTRES": alloc_tres, **STARTED}))
    assert (row.alloc_gpus, row.gpu_hours) == (gpus, gpus)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("512", 512), ("12260K", 12260 * 2**10), ("3M", 3 * 2**20), ("1.50G", 3 * 2**29), ("2T", 2**41),
        ("1.25P", 5 * 2**48), ("1E", 2**60), ("7?", None), ("?", None), ("0", None), ("", None), ("16Gn", None),
    ],
)  # fmt: skip
def test_units_of_the_largest_memory(text: str, size_bytes: int | None) -> None:
    step = {"JobID": "9.0", "MaxRSS": text, "State": "COMPLETED"}
    (row,) = parse_sacct(table({"JobID": "9", **STARTED}, step))
    assert row.max_rss_bytes == size_bytes


def test_the_largest_step_counts() -> None:
    sizes = {"batch": "5M", "extern": "", "0": "1G", "1": "900M", "interactive": "0"}
    steps = [{"JobID": f"9_4.{name}", "MaxRSS": size} for name, size in sizes.items()]
    (row,) = parse_sacct(table({"JobID": "9_4", **STARTED}, *steps))
    assert (row.job_id, row.max_rss_bytes) == ("9_4", 2**30)


@pytest.mark.parametrize(
    ("job_id", "tasks"),
    [
        ("7", ["7"]),
        ("7_3", ["7_3"]),
        ("7+1", ["7+1"]),
        ("7_[0-2]", ["7_0", "7_1", "7_2"]),
        ("7_[0-2%1]", ["7_0", "7_1", "7_2"]),
        ("7_[0-20:10]", ["7_0", "7_10", "7_20"]),
        ("7_[1,4-5,9%2]", ["7_1", "7_4", "7_5", "7_9"]),
        ("7_[1,4-5,9...]", ["7_1", "7_4", "7_5"]),
        ("7_[8", ["7_8"]),
    ],
)
def test_ids_of_arrays(job_id: str, tasks: list[str]) -> None:
    rows = parse_sacct(table({"JobID": job_id, "State": "PENDING", "Submit": "1000"}))
    assert [row.job_id for row in rows] == tasks


@given(st.sets(st.integers(0, 999), min_size=1), st.none() | st.integers(1, 50))
def test_any_list_of_tasks(tasks: set[int], limit: int | None) -> None:
    suffix = f"%{limit}" if limit else ""
    job_id = f"7_[{','.join(map(str, sorted(tasks)))}{suffix}]"
    rows = parse_sacct(table({"JobID": job_id, "State": "PENDING", "Submit": "1000"}))
    assert [row.job_id for row in rows] == [f"7_{task}" for task in sorted(tasks)]


@pytest.mark.parametrize(
    ("text", "state", "shown"),
    [
        ("COMPLETED", State.COMPLETED, "COMPLETED"),
        ("CANCELLED by 1000", State.CANCELLED, "CANCELLED"),
        ("HIBERNATING", State.UNKNOWN, "HIBERNATING"),
        ("OUT_OF_ME+", State.UNKNOWN, "OUT_OF_ME+"),
        ("", State.UNKNOWN, "UNKNOWN"),
    ],
)
def test_an_unknown_word_stays_as_it_is(text: str, state: State, shown: str) -> None:
    (row,) = parse_sacct(table({"JobID": "9", **STARTED, "State": text}))
    assert (row.state, row.state_text) == (state, shown)


def test_every_requeue_is_an_attempt() -> None:
    """The raw ids of an array change places: task 2 has the array's own number, and they identify nothing."""
    rows = [
        {"JobID": f"2_{task}", "JobIDRaw": raw, **STARTED, "Submit": submit, "AllocTRES": "gres/gpu=1"}
        for task, raw in enumerate(("3", "4", "2"))
        for submit in ("1000", "2000", "3000")
    ]
    attempts = attempts_by_job(parse_sacct(table(*rows)))
    assert {job_id: [row.submit_s for row in listed] for job_id, listed in attempts.items()} == {
        f"2_{task}": [1000, 2000, 3000] for task in range(3)
    }
    assert sum(row.gpu_hours or 0 for listed in attempts.values() for row in listed) == 9.0
