"""Finding runs by what the user types."""

from __future__ import annotations

import pytest

from disttrain.errors import UserError
from jobs.storage.run_lookup import find_runs

IDS = ["1x1-aa1", "1x1-aa12", "1x1-ab1", "2x1-aa1", "2x1-b", "2x1-c", "2x1-d"]
PLANNED = [
    {"run_id": run_id, "allocation": run_id[:3], "point": {}, "train": {"model": "bert", "lr": lr}}
    for lr, run_id in enumerate(IDS)
]
FIRST_FIVE = ", ".join(f"{run_id} ({run_id[:3]} lr={lr})" for lr, run_id in enumerate(IDS[:5]))


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        ([], []),
        (["2x1-b"], ["2x1-b"]),
        (["1x1-aa1"], ["1x1-aa1"]),  # also the start of another id
        (["1x1-ab", "1x1-aa12"], ["1x1-ab1", "1x1-aa12"]),
        (["2x1-b", "2x1-b"], ["2x1-b"]),
        (["1x1 lr=2", "2x1 lr=3", "2x1-b"], ["1x1-ab1", "2x1-aa1", "2x1-b"]),
    ],
)
def test_finds_ids_and_prefixes(texts: list[str], found: list[str]) -> None:
    assert [run["run_id"] for run in find_runs(PLANNED, texts)] == found


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("nope", f"no run of this sweep is 'nope' (its runs: {FIRST_FIVE}, ...)"),
        ("", f"no run of this sweep is '' (its runs: {FIRST_FIVE}, ...)"),
        (
            "1x1-a",
            "'1x1-a' is the start of the id of 3 runs (write one of their ids in full: 1x1-aa1, 1x1-aa12, 1x1-ab1)",
        ),
    ],
)
def test_a_text_names_one_run(text: str, error: str) -> None:
    with pytest.raises(UserError) as caught:
        find_runs(PLANNED, ["2x1-b", text])
    assert str(caught.value) == error


def test_an_ambiguous_label_lists_the_ids() -> None:
    """Two values can have one text: 1 and "1"."""
    twins = [{**PLANNED[0], "point": {"name": 1}}, {**PLANNED[1], "point": {"name": "1"}}]
    for run, value in zip(twins, (1, "1"), strict=True):
        run["train"] = {"model": "bert", "name": value}
    with pytest.raises(UserError) as caught:
        find_runs(twins, ["1x1 name=1"])
    error = "'1x1 name=1' is the label of 2 runs (write one of their ids in full: 1x1-aa1, 1x1-aa12)"
    assert str(caught.value) == error
