"""Which rows of a sweep are comparable, and why the others are not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from jobs.results.comparability import with_reasons
from jobs.results.tables import results_report, to_csv, to_json
from tests.jobs.results.rows import make_result

H100: dict[str, Any] = {
    "state": "COMPLETED", "comparable": True, "shared_gpu": False, "folded": False, "device_name": "H100",
    "cuda_version": "12.8", "driver_version": "570.1", "versions": {"python": "3.11", "torch": "2.14"},
    "backend": "nccl", "transport": "IB", "cpus": 8, "threads": 1, "gpu_power_cap_w": 700.0,
    "gpu_max_sm_clock_mhz": 1980.0, "mixed_ranks": (), "mixed_starts": (), "leaf_switches": 1,
}  # fmt: skip


def reasons_of(*rows: dict[str, Any], ids: Sequence[str] = ()) -> list[tuple[str, ...] | None]:
    """The reasons of rows with these columns; by default all are on one allocation."""
    names = ids or [f"2x2-{number:012x}" for number in range(len(rows))]
    results = with_reasons([make_result(name, **row) for name, row in zip(names, rows, strict=True)])
    return [row.columns()["not_comparable"] for row in results]


# What is different in the last of three rows, and its reasons. The two others are like `H100`.
CASES: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({}, ()),
    ({"device_name": "A100"}, ("GPU differs: A100 instead of H100",)),
    ({"versions": {"torch": "2.11", "python": "3.11"}}, ("torch 2.11 instead of 2.14",)),
    ({"versions": {"torch": "2.11", "python": "3.13"}}, ("python 3.13 instead of 3.11", "torch 2.11 instead of 2.14")),
    ({"cuda_version": "12.4"}, ("CUDA 12.4 instead of 12.8",)),
    ({"driver_version": "535"}, ("GPU driver 535 instead of 570.1",)),
    ({"backend": "gloo", "transport": "sockets"},
     ("backend gloo instead of nccl", "gradients over sockets instead of IB")),
    ({"gpu_power_cap_w": 350.0}, ("GPU power cap 350 W instead of 700 W",)),
    ({"gpu_max_sm_clock_mhz": 1410.0}, ("highest GPU clock 1410 MHz instead of 1980 MHz",)),
    ({"cpus": 2, "threads": 2}, ("2 CPUs a rank instead of 8", "2 CPU threads a rank instead of 1")),
    ({"leaf_switches": 2}, ("nodes below 2 switches instead of 1",)),
    ({"recipe_version": 2}, ("recipe version 2 instead of 1",)),
    ({"recipe_version": 1}, ()),
    ({"comparable": False, "shared_gpu": True}, ("ranks shared a GPU",)),
    ({"comparable": False, "folded": True}, ("all nodes were one host",)),
    ({"comparable": False, "shared_gpu": None, "folded": None}, ("ranks shared a GPU, or all nodes were one host",)),
    ({"mixed_ranks": ("device_name", "cpus")}, ("its ranks differ in device_name, cpus",)),
    ({"mixed_starts": ("device_name",)}, ("its starts differ in device_name",)),
    # What is not known differs from nothing: a row of an earlier release has less.
    ({"versions": None, "driver_version": None, "cpus": None, "transport": None, "mixed_ranks": None}, ()),
    ({"versions": {"torch": "2.14", "numpy": "2.0"}}, ()),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "reasons"), CASES)
def test_reasons_of_the_row_that_differs(changes: dict[str, Any], reasons: tuple[str, ...]) -> None:
    for place in range(3):
        rows = [H100, H100]
        rows.insert(place, {**H100, **changes})
        expected: list[tuple[str, ...]] = [(), ()]
        expected.insert(place, reasons)
        assert reasons_of(*rows) == expected


def test_runs_without_a_summary_have_no_reasons() -> None:
    assert reasons_of(H100, {"state": "RUNNING", "steps": 3}, {"state": "FAILED"}) == [(), None, None]


def test_of_two_equally_common_values_the_first_is_usual() -> None:
    assert reasons_of(H100, {**H100, "device_name": "A100"}) == [(), ("GPU differs: A100 instead of H100",)]


def test_rows_that_are_not_comparable_decide_nothing() -> None:
    shared = {**H100, "comparable": False, "shared_gpu": True, "device_name": "A100"}
    both = ("ranks shared a GPU", "GPU differs: A100 instead of H100")
    assert reasons_of(shared, shared, H100) == [both, both, ()]
    assert reasons_of(shared, shared) == [("ranks shared a GPU",)] * 2
    older = {**H100, "comparable": False, "shared_gpu": True, "versions": {"torch": "2.11"}}
    both = ("ranks shared a GPU", "torch 2.11 instead of 2.14")
    assert reasons_of(older, older, H100) == [both, both, ()]


def test_dropped_rows_decide_nothing() -> None:
    older = {**H100, "versions": {"torch": "2.11"}}
    rows = [make_result(f"2x2-{name}", dropped=name != "c", **(H100 if name == "c" else older)) for name in "abc"]
    found = [row.figures["not_comparable"] for row in with_reasons(rows)]
    assert found == [("torch 2.11 instead of 2.14",)] * 2 + [()]


def test_the_version_that_starts_ranks_may_differ() -> None:
    rows = [{**H100, "versions": {"torch": "2.14", "submitit": version}} for version in ("1.5.4", "1.5.5")]
    assert reasons_of(*rows) == [(), ()]


def test_allocations_may_differ_in_what_follows_from_them() -> None:
    alone = {**H100, "backend": None, "transport": None, "leaf_switches": 1, "cpus": 32, "threads": 4}
    one_host = {**H100, "transport": "one host", "cpus": 16}
    assert reasons_of(alone, one_host, H100, ids=("1x1-a", "1x4-a", "2x2-a")) == [(), (), ()]
    assert reasons_of({**alone, "device_name": "A100"}, one_host, H100, ids=("1x1-a", "1x4-a", "2x2-a"))[0]


def test_devices_that_the_sweep_varies_may_differ() -> None:
    on_cpu = {**H100, "cuda_version": None, "device_name": "EPYC", "driver_version": None}
    rows = [
        make_result("1x1-a", varied={"device": "cuda"}, **H100),
        make_result("1x1-b", varied={"device": "cpu"}, **on_cpu),
        make_result("1x1-c", varied={"device": "cpu"}, **{**on_cpu, "device_name": "Xeon"}),
    ]
    found = [row.figures["not_comparable"] for row in with_reasons(rows)]
    assert found == [(), (), ("CPU differs: Xeon instead of EPYC",)]


def test_a_link_run_has_no_recipe() -> None:
    rows = [make_result(f"2x1-{name}", **{**H100, "recipe_version": 2}) for name in "ab"]
    rows.append(make_result("2x1-c", varied={"model": "link"}, **H100))
    assert [row.figures["not_comparable"] for row in with_reasons(rows)] == [(), (), ()]


@pytest.mark.parametrize("other", [{"model": "link"}, {"detailed_timing": True}, {"grad_compression": "bf16"}])
def test_an_exchange_that_the_config_chooses_may_differ(other: dict[str, Any]) -> None:
    """Ranks on the CPUs of one machine share memory, except in a link run, with detailed timing, or in bf16."""
    shared = {**H100, "backend": "gloo", "transport": "shared memory"}
    rows = [make_result(f"2x1-{name}", **shared) for name in "ab"]
    rows.append(make_result("2x1-c", varied=other, **{**shared, "transport": "one host"}))
    assert [row.figures["not_comparable"] for row in with_reasons(rows)] == [(), (), ()]


def test_outputs_have_the_reasons() -> None:
    rows = with_reasons([
        make_result("1x1-a", "1x1 seed=0", **H100),
        make_result("1x1-b", "1x1 seed=1", **{**H100, "versions": {"torch": "2.11"}}),
        make_result("1x1-c", "1x1 seed=2", **{**H100, "comparable": False, "shared_gpu": True}),
    ])  # fmt: skip
    assert [run["not_comparable"] for run in json.loads(to_json(rows, "s", "site"))["runs"]] == [
        [], ["torch 2.11 instead of 2.14"], ["ranks shared a GPU"]
    ]  # fmt: skip
    assert to_csv(rows).splitlines()[1].endswith(",none")
    assert to_csv(rows).splitlines()[2].endswith(',"[""torch 2.11 instead of 2.14""]"')
    texts = [part for part in results_report(rows, "s on site", 200) if isinstance(part, str)]
    assert "not comparable with the others: torch 2.11 instead of 2.14: 1x1-b (1x1 seed=1)" in texts
    assert not any("ranks shared a GPU: " in text for text in texts), "a remark below the table explains the *"
