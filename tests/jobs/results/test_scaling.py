"""Weak and strong scaling, and the price of crossing nodes, against calculations by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from jobs.results.result import Result
from jobs.results.scaling import with_scaling
from tests.jobs.results.rows import make_result

RATIOS = ("weak_efficiency", "strong_efficiency", "crossing_ratio")


def run(
    allocation: str, speed: float | None, batch: int = 16, *, seed: int = 0, config: Any = None, **figures: Any
) -> Result:
    """A finished run of a model."""
    nodes, gpus = map(int, allocation.split("x"))
    measured: dict[str, Any] = {"samples_per_s": speed, "comparable": True, "device_name": "H100", **figures}
    varied = {"per_gpu_batch": batch, "seed": seed, **(config or {})}
    row = make_result(f"{allocation}-b{batch}s{seed}", allocation, varied=varied, state="COMPLETED", **measured)
    return dataclasses.replace(row, requested=dataclasses.replace(row.requested, world_size=nodes * gpus))


def script(allocation: str, speed: float, **arguments: Any) -> Result:
    """A finished run of a script."""
    row = run(allocation, speed)
    values = {"command": "python train.py", **arguments}
    return dataclasses.replace(row, varied=arguments, config=values, is_command=True)


def columns(*rows: Result) -> dict[str, Any]:
    """The columns of the last row."""
    return with_scaling(rows)[-1].columns()


def test_weak() -> None:
    scaled = columns(run("1x1", 100.0), run("1x4", 360.0))
    assert scaled["weak_efficiency"] == pytest.approx(360 / (4 * 100))
    assert scaled["weak_baseline"] == "1x1-b16s0"


def test_strong() -> None:
    """Four ranks with 16 examples share the batch of one rank with 64."""
    scaled = columns(run("1x1", 100.0), run("1x1", 120.0, 64), run("1x4", 360.0))
    assert scaled["strong_efficiency"] == pytest.approx(360 / (4 * 120))
    assert (scaled["strong_baseline"], scaled["weak_baseline"]) == ("1x1-b64s0", "1x1-b16s0")


def test_crossing_nodes() -> None:
    scaled = columns(run("1x1", 100.0), run("1x4", 360.0), run("2x2", 288.0))
    assert scaled["crossing_ratio"] == pytest.approx(0.8)
    assert scaled["crossing_baseline"] == "1x4-b16s0"
    assert scaled["weak_efficiency"] == pytest.approx(0.72)


def test_gradient_accumulation_is_part_of_the_batch() -> None:
    rows = run("1x1", 100.0, 32), run("1x2", 190.0, 16, config={"grad_accum_steps": 2})
    scaled = with_scaling([dataclasses.replace(row, varied={"per_gpu_batch": 0}) for row in rows])[-1].columns()
    assert scaled["weak_efficiency"] == pytest.approx(0.95)


def test_global_batch() -> None:
    one, four = (run(allocation, speed) for allocation, speed in (("1x1", 100.0), ("1x4", 200.0)))
    rows = [dataclasses.replace(row, config={"model": "bert", "global_batch": 64}, varied={}) for row in (one, four)]
    scaled = columns(*rows)
    assert scaled["strong_efficiency"] == pytest.approx(0.5)
    assert scaled["weak_efficiency"] is None


def test_equal_seeds_are_compared() -> None:
    scaled = columns(run("1x1", 100.0), run("1x1", 80.0, seed=1), run("1x4", 320.0, seed=1))
    assert (scaled["weak_efficiency"], scaled["weak_baseline"]) == (1.0, "1x1-b16s1")


@pytest.mark.parametrize(
    ("baseline", "reason"),
    [
        (run("1x1", 100.0, 8), "weak: the sweep has not measured a 1x1 run with the same batch of one rank"),
        (run("1x1", 100.0, seed=1), "weak: the sweep has not measured"),
        (run("1x1", 100.0, config={"precision": "fp32"}), "weak: the sweep has not measured"),
        (run("1x1", None), "weak: the sweep has not measured"),
        (
            run("1x1", 100.0, device_name="A100", cuda_version="12"),
            "weak: not comparable with 1x1-b16s0: GPU differs: H100 instead of A100",
        ),
        (
            run("1x1", 100.0, versions={"torch": "2.8.0"}),
            "weak: not comparable with 1x1-b16s0: torch 2.9.0 instead of 2.8.0",
        ),
        (run("1x1", 100.0, shared_gpu=True, comparable=False), "weak: not comparable with 1x1-b16s0: ranks shared a"),
    ],
)
def test_a_reason_without_a_ratio(baseline: Result, reason: str) -> None:
    scaled = columns(baseline, run("1x4", 360.0, cuda_version="12", versions={"torch": "2.9.0"}))
    assert [scaled[name] for name in RATIOS] == [None, None, None]
    assert scaled["scaling_note"].startswith(reason)


def test_another_transport_is_what_is_measured() -> None:
    scaled = columns(run("1x4", 100.0, transport="shared memory"), run("2x2", 50.0, transport="sockets"))
    assert scaled["crossing_ratio"] == 0.5


def test_what_gets_no_ratio() -> None:
    dropped, failed = run("1x4", 300.0), run("1x4", 300.0)
    dropped = dataclasses.replace(dropped, requested=dataclasses.replace(dropped.requested, dropped=True))
    failed = dataclasses.replace(failed, scheduled=dataclasses.replace(failed.scheduled, state="FAILED"))
    for row in (dropped, failed, run("1x1", 90.0, 32)):
        scaled = columns(run("1x1", 100.0), row)
        assert {scaled[name] for name in (*RATIOS, "scaling_note")} == {None}


def test_scripts() -> None:
    one, four = script("1x1", 100.0, batch_size=16), script("1x4", 200.0, batch_size=16)
    assert columns(one, four)["weak_efficiency"] == pytest.approx(0.5)
    one, four = script("1x1", 100.0, global_batch_size=16), script("1x4", 200.0, global_batch_size=16)
    assert columns(one, four)["strong_efficiency"] == pytest.approx(0.5)
    assert columns(one, four)["weak_efficiency"] is None


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"lr": 1}, "no argument of the script has 'batch' in its name"),
        ({"batch": 1, "eval_batch": 2}, "several arguments may be the batch: batch, eval_batch"),
        ({"batch": "auto"}, "batch is not a number"),
    ],
)
def test_a_script_whose_batch_is_unknown(arguments: dict[str, Any], reason: str) -> None:
    scaled = columns(script("1x1", 100.0, **arguments), script("1x4", 200.0, **arguments))
    assert scaled["scaling_note"] == f"weak: {reason}; strong: {reason}"
