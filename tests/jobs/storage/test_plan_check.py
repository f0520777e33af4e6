"""What every command needs in plan.json."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.storage.plan_check import check_plan

RUN = {"run_id": "2x1-a", "allocation": "2x1", "world_size": 2, "point": {}, "asked": {}, "train": {"model": "bert"}}


@pytest.mark.parametrize("changes", [{}, {"run_id": "a"}, {"world_size": 10**6}, {"dropped": True}, {"asked": None}])
def test_a_plan_that_can_be_used(changes: dict[str, Any]) -> None:
    check_plan({"runs": [RUN, {**RUN, **changes}]})
    check_plan({"runs": []})


@pytest.mark.parametrize("run_id", ["../other", "a/../../../home", "a/b", "a\n", "", "..", ".", "a b"])
def test_a_run_id_is_a_plain_folder_name(run_id: str) -> None:
    """sweep forget removes the folder of this name, with all that it has."""
    with pytest.raises(ValueError, match=r"^runs\[1\]: run_id is "):
        check_plan({"runs": [RUN, {**RUN, "run_id": run_id}]})


@pytest.mark.parametrize("world_size", [0, -1, 10**6 + 1])
def test_a_run_has_ranks(world_size: int) -> None:
    with pytest.raises(ValueError, match=rf"^runs\[0\]: world_size is {world_size}$"):
        check_plan({"runs": [{**RUN, "world_size": world_size}]})


def test_a_run_has_a_model() -> None:
    with pytest.raises(ValueError, match=r"^runs\[0\]: train\.model is None$"):
        check_plan({"runs": [{**RUN, "train": {}}]})


@pytest.mark.parametrize("allocation", ["\n", "", "2", "2x", "2x1\n", "axb"])
def test_an_allocation_is_two_numbers(allocation: str) -> None:
    """It is part of labels and messages, which are one line."""
    with pytest.raises(ValueError, match=r"^runs\[0\]: allocation is "):
        check_plan({"runs": [{**RUN, "allocation": allocation}]})


COMMAND: dict[str, Any] = {
    **{name: value for name, value in RUN.items() if name != "train"},
    "train": {"command": "./train", "model": 3},
    "script": {"flags": "--{key} {value}", "switches": ["a"], "launcher": "ranks", "working_dir": "/w"},
}


def test_a_run_of_a_command() -> None:
    check_plan({"runs": [RUN, COMMAND]})
    with pytest.raises(ValueError, match=r"^runs\[0\]: train\.command is 3$"):
        check_plan({"runs": [{**COMMAND, "train": {"command": 3}}]})


@pytest.mark.parametrize("changes", [{"flags": None}, {"switches": "a"}, {"switches": [1]}, {"working_dir": 3}])
def test_a_command_has_what_starts_it(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"^runs\[0\]: .*{next(iter(changes))}"):
        check_plan({"runs": [{**COMMAND, "script": {**COMMAND["script"], **changes}}]})
    damaged: list[Any] = [{}, None, "x"]
    for script in damaged:
        with pytest.raises(ValueError, match=r"^runs\[0\]: "):
            check_plan({"runs": [{**COMMAND, "script": script}]})
