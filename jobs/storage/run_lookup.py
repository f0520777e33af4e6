"""Finds runs of a sweep by what the user types: a label, a run id, or a unique prefix of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from disttrain.errors import UserError
from jobs.planning.labels import Variation, run_name

_MOST_IDS = 5  # the maximum number of run ids that a message lists


def find_runs(planned: Sequence[Mapping[str, Any]], texts: Sequence[str]) -> list[Mapping[str, Any]]:
    """The runs that these texts name, each once, in the order of the texts.

    Args:
        planned: The runs of plan.json.
        texts: A label, a run id, or a unique prefix of one, for each run.

    Raises:
        UserError: A text names no run, or several.

    Example:
        >>> runs = [{"run_id": f"{name}-7201b99ee663", "allocation": name, "point": {}, "train": {"model": "bert"}}
        ...         for name in ("1x1", "2x1")]
        >>> [run["run_id"] for run in find_runs(runs, ["2x1", "1x1-72"])]
        ['2x1-7201b99ee663', '1x1-7201b99ee663']
    """
    labels = {run["run_id"]: label for run, label in zip(planned, map(Variation(planned).label, planned), strict=True)}
    by_id = {run["run_id"]: run for run in planned}
    found = {run_id: by_id[run_id] for run_id in (_find_id(labels, text) for text in texts)}
    return list(found.values())


def _find_id(labels: Mapping[str, str], text: str) -> str:
    """The id of the run that a text names.

    Args:
        labels: The label of each run, by run id.
        text: What the user typed.
    """
    if text in labels:
        return text
    matching, kind = [run_id for run_id, label in labels.items() if label == text], "the label"
    if not matching:
        matching = [run_id for run_id in labels if text and run_id.startswith(text)]
        kind = "the start of the id"
    if not matching:
        names = [run_name(run_id, label) for run_id, label in labels.items()]
        raise UserError(f"no run of this sweep is {text!r}", hint=f"its runs: {list_names(names)}")
    if len(matching) > 1:
        hint = f"write one of their ids in full: {list_names(matching)}"
        raise UserError(f"{text!r} is {kind} of {len(matching)} runs", hint=hint)
    return matching[0]


def list_names(texts: Sequence[str]) -> str:
    """The first texts as one text; an ellipsis stands for the others.

    Example:
        >>> list_names(["a", "b"]), list_names(list("abcdefg"))
        ('a, b', 'a, b, c, d, e, ...')
    """
    listed = ", ".join(texts[:_MOST_IDS])
    if len(texts) > _MOST_IDS:
        listed += ", ..."
    return listed
