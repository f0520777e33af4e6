"""The fields that may change without a new run id."""

from __future__ import annotations

from typing import Any

import pytest

from disttrain.config.run_id import run_id
from disttrain.config.train_config import TrainConfig
from disttrain.config.validation import validate


@pytest.mark.parametrize(
    "changes",
    [{"checkpoint_every": "1%"}, {"save_model": False}, {"telemetry_every_s": 0.0}, {"start_check_s": 0.0}],
)
def test_saving_and_measuring_change_no_id(changes: dict[str, Any]) -> None:
    """A user who submits again with checkpoints must not lose the runs that are done."""
    assert run_id("1x1", TrainConfig(model="bert", **changes)) == run_id("1x1", TrainConfig(model="bert"))


def test_an_integer_and_its_decimal_have_one_id() -> None:
    same = [run_id("1x1", validate({"model": "bert", "lr": lr})) for lr in (1, 1.0)]
    assert same[0] == same[1]


def test_the_order_of_an_architecture_is_no_difference() -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2}
    orders = (sizes, dict(reversed(sizes.items())))
    first, second = (run_id("1x1", TrainConfig(model="bert", architecture=order)) for order in orders)
    assert first == second
