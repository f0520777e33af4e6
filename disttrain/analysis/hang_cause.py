"""Which rank did not come to the collective in which the others wait, from where each rank was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from disttrain.records.lifecycle.hang_types import IN_STEP, HangPosition

_MOST_NAMED = 3  # the most ranks that a reason names


def find_cause(
    positions: Sequence[HangPosition],
    hosts: Sequence[str],
    failed: Mapping[int, str],
    waited_s: float,
) -> str:
    """Why a training step did not end, in one line. What is not known is left out.

    Args:
        positions: Where each rank was that could say it; one rank or more.
        hosts: The host of each rank, by rank.
        failed: The error of each rank that has failed by itself.
        waited_s: How long the ranks have waited.
    """
    waiting = [position for position in positions if position.phase == IN_STEP]
    if failed:
        return f"{_ranks(sorted(failed), hosts)} failed: {failed[min(failed)]}"
    silent = sorted(set(range(len(hosts))) - {position.rank for position in positions})
    if silent:
        return f"{_ranks(silent, hosts)} gave no sign of life{_since(waiting)}"
    outside = [position for position in positions if position.phase != IN_STEP]
    if outside:
        ranks = _ranks([position.rank for position in outside], hosts)
        return f"{ranks} did not come to the next step: still in {outside[0].phase}{_at(outside, ', in ')}"
    return _late_in_step(waiting, hosts, waited_s)


def _late_in_step(positions: Sequence[HangPosition], hosts: Sequence[str], waited_s: float) -> str:
    """The cause if every rank was in a step: the ranks that have entered the fewest collectives did not come."""
    numbers = [position.collective for position in positions if position.collective is not None]
    if len(numbers) == len(positions) and min(numbers) < max(numbers):
        late = [position for position in positions if position.collective == min(numbers)]
        collective = _collective(min(numbers) + 1, positions)
        ranks = _ranks([position.rank for position in late], hosts)
        return f"{ranks} did not enter {collective} within {waited_s:.0f} s{_at(late, '; it was in ')}"
    steps = [position.step or 0 for position in positions]
    if min(steps) < max(steps):
        late = [position for position in positions if position.step == min(steps)]
        ranks = _ranks([position.rank for position in late], hosts)
        return f"{ranks} did not end step {min(steps)} within {waited_s:.0f} s{_at(late, '; it was in ')}"
    if len(numbers) == len(positions):
        collective = _collective(numbers[0], positions)
        return f"every rank waits in {collective} of step {steps[0]} for {waited_s:.0f} s: check the network"
    places = [f"rank {position.rank} in {position.frame}" for position in positions[:_MOST_NAMED] if position.frame]
    return ": ".join([f"step {steps[0]} did not end within {waited_s:.0f} s", *filter(None, [", ".join(places)])])


def _collective(number: int, positions: Sequence[HangPosition]) -> str:
    """The collective with its kind, by a rank that has entered it."""
    for position in positions:
        back = (position.collective or 0) - number
        if 0 <= back < len(position.entered):
            return position.entered[-1 - back]
    return f"collective {number}"


def _since(waiting: Sequence[HangPosition]) -> str:
    ended = [position.ended_step for position in waiting if position.ended_step]
    return f" since step {max(ended)}" if ended else ""


def _at(positions: Sequence[HangPosition], before: str) -> str:
    """Where these ranks were, if it was the same place."""
    frames = {position.frame for position in positions}
    frame = next(iter(frames))
    if len(frames) > 1 or frame is None:
        return ""
    return f"{before}{frame}"


def _ranks(ranks: Sequence[int], hosts: Sequence[str]) -> str:
    """Some ranks with their hosts.

    Example:
        >>> _ranks([3], ["n1", "n1", "n2", "n2"]), _ranks([0, 1, 2, 3], ["n1", "n1", "n2", "n2"])
        ('rank 3 on n2', 'rank 0 on n1, rank 1 on n1, rank 2 on n2 and 1 more')
    """
    named = ", ".join(f"rank {rank} on {hosts[rank]}" for rank in ranks[:_MOST_NAMED])
    if len(ranks) > _MOST_NAMED:
        named += f" and {len(ranks) - _MOST_NAMED} more"
    return named
