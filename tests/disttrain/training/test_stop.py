"""A run that is asked to stop: all ranks stop after the same step, save it, and the next attempt continues exactly."""

from __future__ import annotations

import dataclasses
import functools
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from disttrain.config.train_config import TrainConfig
from disttrain.environment.rank_env import RankEnv
from disttrain.environment.stop_signals import StopSignals
from disttrain.measure.phase_timer import PhaseTimer
from disttrain.records.record_files import FAILURE_GLOB, metrics_name, read_records
from disttrain.records.record_types import CheckpointRecord, StepRecord
from disttrain.run import run
from disttrain.training.stop_agreement import CHECK_EVERY_S, StopAgreement
from tests.disttrain.ranks import ALONE, STEPS, from_files, saved_often, stop_in

WARNED, TERMINATED = signal.SIGUSR2, signal.SIGTERM


def losses(folder: Path, ranks: int) -> list[list[float | None]]:
    return [
        [record.loss for record in read_records(folder / metrics_name(rank)) if isinstance(record, StepRecord)]
        for rank in range(ranks)
    ]


@pytest.mark.parametrize("every", [None, 3])
@pytest.mark.parametrize(("ranks", "number"), [(1, WARNED), (1, TERMINATED), (4, WARNED), (4, TERMINATED)])
def test_all_ranks_stop_and_the_next_attempt_continues(
    every: int | None, ranks: int, number: signal.Signals, bert_config: TrainConfig, run_ranks: Callable[..., Any]
) -> None:
    config = dataclasses.replace(saved_often(bert_config), checkpoint_every=every)
    # The last rank alone gets the signal. The other ranks learn of it at their next check.
    target = functools.partial(stop_in, 6, ranks - 1, number)
    uninterrupted = run_ranks(config, ranks, target=functools.partial(stop_in, STEPS + 1, 0, number))
    assert uninterrupted.exit_codes == (0,) * ranks
    stopped = run_ranks(config, ranks, target=target)
    assert stopped.exit_codes == (0,) * ranks
    texts = {(stopped.output_dir / f"stopped-{rank}").read_text() for rank in range(ranks)}
    assert len(texts) == 1
    step, terminated, problem = texts.pop().split()
    assert (int(step) in range(6, STEPS), terminated, problem) == (True, str(number == TERMINATED), "None")
    assert not (stopped.output_dir / "summary.json").exists()
    assert not list(stopped.output_dir.glob(FAILURE_GLOB))
    saved = [r.step for r in read_records(stopped.output_dir / metrics_name(0)) if isinstance(r, CheckpointRecord)]
    assert saved == [*(range(3, int(step), 3) if every else ()), int(step)]
    resumed = run_ranks(config, ranks, stopped.output_dir, target=functools.partial(stop_in, STEPS + 1, 0, number))
    assert resumed.exit_codes == (0,) * ranks
    assert f"resumes after step {step}, from attempt 1" in resumed.summary["notices"]
    assert losses(resumed.output_dir, ranks) == losses(uninterrupted.output_dir, ranks)


@pytest.mark.parametrize("number", [WARNED, TERMINATED])
def test_data_workers_go_on_until_the_step_is_saved(
    number: signal.Signals, vit_config: TrainConfig, run_ranks: Callable[..., Any]
) -> None:
    config = dataclasses.replace(saved_often(vit_config), num_workers=1)
    stopped = run_ranks(config, 2, target=functools.partial(from_files, functools.partial(stop_in, 6, 1, number)))
    assert stopped.exit_codes == (0, 0)
    assert not list(stopped.output_dir.glob(FAILURE_GLOB))
    resumed = run_ranks(config, 2, stopped.output_dir, target=functools.partial(from_files, run))
    assert resumed.exit_codes == (0, 0)
    assert any("resumes after step" in notice for notice in resumed.summary["notices"])


class Clock:
    """A clock that the test sets."""

    now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s


class TwoRanks:
    """Stands for a group of two ranks, of which the other one sends nothing."""

    backend, device, is_main = "gloo", torch.device("cpu"), True

    def __init__(self) -> None:
        self.sums = 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        self.sums += 1
        return values


@pytest.fixture
def handlers() -> Any:
    before = signal.getsignal(signal.SIGUSR2)
    yield
    signal.signal(signal.SIGUSR2, before)


@pytest.mark.parametrize(("step_s", "most"), [(0.012, 13), (0.5, 104), (10.0, 1000)])
def test_number_of_checks(step_s: float, most: int, handlers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One all-reduce in CHECK_EVERY_S, or one each step if steps are longer; a few more at the beginning."""
    clock, group = Clock(), TwoRanks()
    monkeypatch.setattr("disttrain.training.stop_agreement.time", clock)
    agreement = StopAgreement(StopSignals(), group, 0)  # type: ignore[arg-type]
    for step in range(1, 1001):
        clock.now_s += step_s
        if agreement.is_due(step):
            assert agreement.cause(step) is None
    assert 1000 * step_s / CHECK_EVERY_S <= group.sums + 1 or step_s > CHECK_EVERY_S
    assert group.sums <= most


def test_a_single_rank_needs_no_check(handlers: None) -> None:
    signals = StopSignals()
    agreement = StopAgreement(signals, ALONE, 0)
    assert not agreement.is_due(1)
    assert agreement.cause(1) is None
    signal.raise_signal(signal.SIGUSR2)
    assert agreement.is_due(2)
    assert agreement.cause(2) == "warning"


def test_a_step_without_a_check_leaves_the_timer_alone(
    handlers: None, bert_config: TrainConfig, tmp_path: Path
) -> None:
    """A restart marks the time once more, on a GPU with an event, and discards what was measured since the step."""
    config = dataclasses.replace(bert_config, max_steps=4, eval_every=4)
    calls: list[int] = []
    for signals in (None, StopSignals()):
        with patch.object(PhaseTimer, "restart", autospec=True, side_effect=PhaseTimer.restart) as restarts:
            run(config, RankEnv(), tmp_path / str(len(calls)), signals)
        calls.append(restarts.call_count)
    assert calls[0] == calls[1]
