"""The fields that may change without a new run id."""

from __future__ import annotations

from typing import Any

import pytest

from disttrain.config.command.command_config import CommandConfig
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


def test_ids_of_commands_are_frozen() -> None:
    """If an id changes, finished runs are no longer found."""
    values = {
        "lr": 1e-4,
        "name": "größe $HOME 'x'",
        "sizes": [1, 2.0],
        "amp": True,
        "none": None,
        "opt": {"b": 1, "a": 2},
    }
    command = CommandConfig("python train.py --data '/my data'", values)
    assert run_id("2x2", command) == "2x2-90f105b89ec1"
    assert run_id("1x1", CommandConfig("./train", {})) == "1x1-04a81afff132"


def test_the_order_of_values_is_no_difference() -> None:
    first, second = (CommandConfig("./train", values) for values in ({"a": 1, "b": 2}, {"b": 2, "a": 1}))
    assert run_id("1x1", first) == run_id("1x1", second)
    assert run_id("1x1", first) != run_id("1x2", first)


def test_how_a_command_is_started_changes_no_id() -> None:
    plain = CommandConfig("./train", {"a": True})
    changed = CommandConfig("./train", {"a": True}, "{key}={value}", ("a",), "torchrun", "/elsewhere")
    assert run_id("1x1", plain) == run_id("1x1", changed)


def test_values_of_a_command_keep_their_type() -> None:
    """They are other texts for the script."""
    values = [1, 1.0, True, "1", [1], None]
    assert len({run_id("1x1", CommandConfig("./train", {"a": value})) for value in values}) == len(values)
