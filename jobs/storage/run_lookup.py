"""Finds runs of a sweep by what the user types: a run id, or a unique prefix of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from disttrain.errors import UserError

_MOST_IDS = 5  # the maximum number of run ids that a message lists


def find_runs(planned: Sequence[Mapping[str, Any]], texts: Sequence[str]) -> list[Mapping[str, Any]]:
    """The runs that these texts name, each once, in the order of the texts.

    Args:
        planned: The runs of plan.json.
        texts: A run id, or a unique prefix of one, for each run.

    Raises:
        UserError: A text names no run, or several.

    Example:
        >>> find_runs([{"run_id": "1x1-7201b99ee663"}, {"run_id": "2x1-df5660443970"}], ["1x1"])
        [{'run_id': '1x1-7201b99ee663'}]
    """
    found = [_find_run(planned, text) for text in texts]
    return list({run["run_id"]: run for run in found}.values())


def _find_run(planned: Sequence[Mapping[str, Any]], text: str) -> Mapping[str, Any]:
    by_id = {run["run_id"]: run for run in planned}
    if text in by_id:
        return by_id[text]
    matching = [run_id for run_id in by_id if text and run_id.startswith(text)]
    if not matching:
        raise UserError(f"no run of this sweep is {text!r}", hint=f"its runs: {list_ids(list(by_id))}")
    if len(matching) > 1:
        hint = f"write one of them in full: {list_ids(matching)}"
        raise UserError(f"{text!r} is the start of {len(matching)} run ids", hint=hint)
    return by_id[matching[0]]


def list_ids(texts: Sequence[str]) -> str:
    """The first texts as one text; an ellipsis stands for the others.

    Example:
        >>> list_ids(["a", "b"]), list_ids(list("abcdefg"))
        ('a, b', 'a, b, c, d, e, ...')
    """
    listed = ", ".join(texts[:_MOST_IDS])
    if len(texts) > _MOST_IDS:
        listed += ", ..."
    return listed
