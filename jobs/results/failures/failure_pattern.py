"""What failed runs have in common and others have not: a node, or a value of a field that varies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from disttrain.environment.hostlist import expand_hostlist
from disttrain.errors import UserError
from jobs.results.result import Result
from jobs.slurm.states import State

_FEWEST = 3  # failed runs; fewer are no pattern
# Of thousands of failures, some are on the same node by chance.
_LEAST_SHARE = 1 / 3
# Ends that a node or a value may cause: nobody asked for them.
_FAILURES = frozenset({State.FAILED, State.TIMEOUT, State.OUT_OF_MEMORY, State.NODE_FAIL, State.BOOT_FAIL})


@dataclass(frozen=True)
class _Trait:
    """What some runs have. Names that exactly the same runs have cannot be told apart, and are one trait."""

    names: tuple[str, ...]
    run_ids: frozenset[str]


def failure_patterns(results: Sequence[Result]) -> list[str]:
    """A line for each node, and each value, at which the failures of a sweep gather.

    They gather if at least 3 runs and a third of all failed runs failed there, more than half of the runs there failed,
    and more than half of the others succeeded.

    Args:
        results: The rows. Dropped runs, and those that were cancelled or have not ended, say nothing.
    """
    ended = [row for row in results if not row.dropped and (row.state.is_success or row.state in _FAILURES)]
    failed = frozenset(row.run_id for row in ended if row.state in _FAILURES)
    lines: list[str] = []
    if len(failed) < _FEWEST:
        return lines
    for trait in _gathering(ended, failed, _nodes):
        nodes = ",".join(trait.names)
        pronoun = "them" if len(trait.names) > 1 else "it"
        count = _count(trait, failed)
        lines.append(f"{count} failed runs used {nodes}: sweep retry --exclude {nodes} leaves {pronoun} out")
    for trait in _gathering(ended, failed, _values):
        lines.append(f"{_count(trait, failed)} failed runs have {', '.join(trait.names)}")
    return lines


def _gathering(
    ended: Sequence[Result], failed: frozenset[str], names_of: Callable[[Result], Iterable[str]]
) -> Iterator[_Trait]:
    """The traits at which failures gather, the clearest first. Each must stand without the runs of those before it.

    Otherwise a good node would be accused because its runs also used a bad one.
    """
    left = frozenset(row.run_id for row in ended)
    traits = _traits(ended, names_of)
    while True:
        found = [trait for trait in traits if _gathers(trait.run_ids & left, failed & left, left)]
        if not found:
            return
        clearest = max(found, key=lambda trait: (len(trait.run_ids & failed & left), -len(trait.run_ids & left)))
        yield clearest
        left -= clearest.run_ids


def _traits(ended: Sequence[Result], names_of: Callable[[Result], Iterable[str]]) -> list[_Trait]:
    run_ids: dict[str, set[str]] = {}
    for row in ended:
        for name in names_of(row):
            run_ids.setdefault(name, set()).add(row.run_id)
    names: dict[frozenset[str], list[str]] = {}
    for name, ids in run_ids.items():
        names.setdefault(frozenset(ids), []).append(name)
    return [_Trait(tuple(members), ids) for ids, members in names.items()]


def _gathers(run_ids: frozenset[str], failed: frozenset[str], ended: frozenset[str]) -> bool:
    """Whether the failures gather in some of the runs that have ended."""
    here, others = len(run_ids), len(ended) - len(run_ids)
    failed_here = len(run_ids & failed)
    failed_others = len(failed) - failed_here
    if failed_here < max(_FEWEST, _LEAST_SHARE * len(failed)):
        return False
    return 2 * failed_here > here and 2 * failed_others < others


def _nodes(row: Result) -> Sequence[str]:
    try:
        return expand_hostlist(row.scheduled.node_list or "")
    except UserError:  # a damaged row of the accounting
        return ()


def _values(row: Result) -> Iterator[str]:
    yield f"allocation={row.requested.allocation}"
    for field, text in row.varied_texts.items():
        if text:  # a link run has few of the fields
            yield f"{field}={text}"


def _count(trait: _Trait, failed: frozenset[str]) -> str:
    """How many of the failed runs have it.

    Example:
        >>> _count(_Trait(("n1",), frozenset("abcd")), frozenset("abc"))
        'all 3'
    """
    number = len(trait.run_ids & failed)
    if number == len(failed):
        return f"all {number}"
    return f"{number} of {len(failed)}"
