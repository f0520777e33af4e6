"""The summary of hand-made records."""

from __future__ import annotations

import pytest

from disttrain.records import EndRecord, EvalRecord, Record, StartRecord, StepRecord
from disttrain.summary import Sums, own_sums, summarise

START = StartRecord(
    time_s=0.0,
    rank=0,
    world_size=2,
    local_rank=0,
    node_rank=0,
    host="n1",
    pid=1,
    job_id="7",
    restart_count=0,
    first_step=1,
    device="cpu",
    device_name="a CPU",
    backend="gloo",
    shared_gpu=False,
    folded=True,
    threads=1,
    versions={},
    parameters=10,
    train_examples=20,
    eval_examples=4,
    notices=("a notice",),
)
END = EndRecord(time_s=9.0, steps=20, train_s=3.0)


def step(number: int, *, loss: float | None = 1.0, examples: int = 2) -> StepRecord:
    return StepRecord(
        step=number,
        epoch=0,
        loss=loss,
        lr=0.1,
        examples=examples,
        data_ms=1.0,
        forward_ms=2.0,
        backward_ms=3.0,
        optimizer_ms=4.0,
        step_ms=10.0 if number > 5 else 1000.0,
    )


def test_summary() -> None:
    records: list[Record] = [START, *(step(number) for number in range(1, 19))]
    records += [step(19, loss=4.0, examples=3), step(20, loss=None, examples=0)]
    records += [EvalRecord(step=20, loss=0.5, accuracy=0.75, examples=4, elapsed_s=1.0), END]
    own = own_sums(records, warmup_steps=5)
    assert own == Sums(tail_loss=12.0, tail_examples=3, measured_examples=13 * 2 + 3)
    both = Sums(tail_loss=13.0, tail_examples=4, measured_examples=60)
    summary = summarise(records, both, hosts=("n1", "n2"), num_nodes=2, warmup_steps=5)
    assert summary.measured_steps == 15
    assert summary.samples_per_s == pytest.approx(60 / 0.15)
    assert summary.samples_per_s_per_gpu == pytest.approx(30 / 0.15)
    assert (summary.data_ms, summary.forward_ms, summary.backward_ms, summary.optimizer_ms) == (1, 2, 3, 4)
    assert summary.train_loss == 13 / 4
    assert (summary.eval_loss, summary.eval_accuracy, summary.eval_examples) == (0.5, 0.75, 4)
    assert not summary.comparable
    assert summary.hosts == ("n1", "n2")
    assert summary.notices == ("a notice",)


def test_nothing_measured_is_none() -> None:
    records: list[Record] = [START, step(1), END]
    summary = summarise(records, own_sums(records, 1), hosts=("n1", "n2"), num_nodes=1, warmup_steps=1)
    assert summary.measured_steps == 0
    assert summary.samples_per_s is None
    assert summary.samples_per_s_per_gpu is None
    assert summary.step_ms is None
    assert summary.eval_accuracy is None
    assert summary.train_loss == 1.0
