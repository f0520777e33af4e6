"""Finding runs by what the user types."""

from __future__ import annotations

import pytest

from disttrain.errors import UserError
from jobs.storage.run_lookup import find_runs

IDS = ["1x1-aa1", "1x1-aa12", "1x1-ab1", "2x1-aa1", "2x1-b", "2x1-c", "2x1-d"]
PLANNED = [{"run_id": run_id} for run_id in IDS]


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        ([], []),
        (["2x1-b"], ["2x1-b"]),
        (["1x1-aa1"], ["1x1-aa1"]),  # also the start of another id
        (["1x1-ab", "1x1-aa12"], ["1x1-ab1", "1x1-aa12"]),
        (["2x1-b", "2x1-b"], ["2x1-b"]),
    ],
)
def test_finds_ids_and_prefixes(texts: list[str], found: list[str]) -> None:
    assert [run["run_id"] for run in find_runs(PLANNED, texts)] == found


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (
            "nope",
            "no run of this sweep is 'nope' (its runs: 1x1-aa1, 1x1-aa12, 1x1-ab1, 2x1-aa1, 2x1-b, ...)",
        ),
        ("", "no run of this sweep is '' (its runs: 1x1-aa1, 1x1-aa12, 1x1-ab1, 2x1-aa1, 2x1-b, ...)"),
        ("1x1-a", "'1x1-a' is the start of 3 run ids (write one of them in full: 1x1-aa1, 1x1-aa12, 1x1-ab1)"),
    ],
)
def test_a_text_names_one_run(text: str, error: str) -> None:
    with pytest.raises(UserError) as caught:
        find_runs(PLANNED, ["2x1-b", text])
    assert str(caught.value) == error
