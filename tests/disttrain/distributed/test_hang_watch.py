"""A step that does not end is ended, and the reason names the rank that did not come: on real gloo ranks."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from disttrain.config.train_config import TrainConfig
from disttrain.distributed.hang_watch import HangWatch, _Moment
from disttrain.records.lifecycle.stacks import flight_name, hang_name, stacks_name
from disttrain.records.record_files import FAILURE_GLOB, failure_name, read_failure
from tests.disttrain.ranks import ALONE, hang_in, suspend_in

if TYPE_CHECKING:
    from tests.disttrain.conftest import Finished, RunRanks

HOST = socket.gethostname()
LIMIT_S = 1.0
STEP = 15  # the first 10 are not watched


@pytest.fixture
def config(bert_config: TrainConfig) -> TrainConfig:
    return dataclasses.replace(bert_config, collective_timeout_s=LIMIT_S, eval_every=18, save_model=False)


def reasons(finished: Finished) -> set[str]:
    """What the ranks say that gave up. A rank may instead say that it has lost one of them."""
    failures = [read_failure(path) for path in finished.output_dir.glob(FAILURE_GLOB)]
    return {failure.message for failure in failures if failure and failure.error == "CollectiveTimeout"}


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_stopped_rank_is_named(stopped: int, config: TrainConfig, run_ranks: RunRanks) -> None:
    other = 1 - stopped
    finished = run_ranks(config, 2, target=functools.partial(hang_in, "stop", STEP, stopped, 12.0))
    assert finished.exit_codes[other] == 1
    assert finished.exit_codes[stopped] == -9
    assert reasons(finished) == {f"rank {stopped} on {HOST} gave no sign of life since step {STEP - 1}"}
    assert not (finished.output_dir / failure_name(stopped)).exists()
    assert "in _add_gradients" in (finished.output_dir / stacks_name(other)).read_text()


@pytest.mark.parametrize(("detailed_timing", "collective"), [(False, "barrier N"), (True, "all-reduce N (bucket 0)")])
def test_a_sleeping_rank_is_named(
    detailed_timing: bool, collective: str, config: TrainConfig, run_ranks: RunRanks
) -> None:
    config = dataclasses.replace(config, detailed_timing=detailed_timing)
    began_s = time.monotonic()
    finished = run_ranks(config, 2, target=functools.partial(hang_in, "data", STEP, 1, 50.0))
    assert time.monotonic() - began_s < 40
    assert finished.exit_codes == (1, 1)
    position = json.loads((finished.output_dir / hang_name(1)).read_text())
    assert (position["phase"], position["step"], position["frame"]) == ("step", STEP, "ranks.read_slowly")
    recorded = json.loads((finished.output_dir / flight_name(0)).read_text())
    number = str(recorded["entries"][-1]["collective_seq_id"])
    assert position["collective"] == int(number) - 1
    late = f"rank 1 on {HOST} did not enter {collective.replace('N', number)} within 1 s; it was in ranks.read_slowly"
    assert reasons(finished) == {late}


def test_an_evaluation_may_take_longer(config: TrainConfig, run_ranks: RunRanks) -> None:
    finished = run_ranks(config, 2, target=functools.partial(hang_in, "evaluate", 0, 1, 4 * LIMIT_S))
    assert finished.exit_codes == (0, 0)
    assert not list(finished.output_dir.glob("*-rank*.txt")), "empty files of stacks are removed"


def test_a_rank_between_steps_answers(config: TrainConfig, run_ranks: RunRanks) -> None:
    """After the evaluation of step 18, rank 0 is late; rank 1 waits in step 19."""
    finished = run_ranks(config, 2, target=functools.partial(hang_in, "best", 0, 0, 10.0))
    assert reasons(finished) == {
        f"rank 0 on {HOST} did not come to the next step: still in an evaluation, in ranks.read_slowly"
    }


def test_the_first_steps_may_take_longer(config: TrainConfig, run_ranks: RunRanks) -> None:
    finished = run_ranks(config, 2, target=functools.partial(hang_in, "data", 3, 1, 4 * LIMIT_S))
    assert finished.exit_codes == (0, 0)


def test_a_suspended_job_does_not_wait(config: TrainConfig, run_ranks: RunRanks) -> None:
    """As with scontrol suspend, all ranks are stopped for longer than the limit, and continue."""
    finished = run_ranks(config, 2, target=functools.partial(suspend_in, STEP, 4 * LIMIT_S))
    assert finished.exit_codes == (0, 0)


def test_default_limit_follows_the_median_step(tmp_path: Path) -> None:
    watch = HangWatch(ALONE, tmp_path, None, first_step=1)
    assert watch._limit_s() is None
    # Each look finds two more steps of 3 s; then 40 s pass between two steps, in an evaluation.
    moments = [_Moment(1 + 2 * look, 6.0 * look, "step", 0, 0) for look in range(5)]
    for before, at in itertools.pairwise(moments):
        watch._sample(before, at)
    assert watch._limit_s() == 100.0, "the median is 3 s"
    late = _Moment(10, 64.0, "step", 0, visits=1)
    watch._sample(moments[-1], late)
    assert list(watch._step_s) == [3.0] * 4
    for _ in range(5):
        watch._sample(late, _Moment(11, 84.0, "step", 0, visits=1))
    assert watch._limit_s() == 400.0, "the median is 20 s"


def test_a_run_of_one_rank_has_no_thread(tmp_path: Path) -> None:
    with HangWatch(ALONE, tmp_path, 0.01, first_step=1) as watch:
        watch.step(50, 0)
        time.sleep(0.1)
    assert not list(tmp_path.iterdir())
