"""Expands the abbreviated lists in Slurm's environment: hostlists and per-node counts."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator

from disttrain.errors import UserError, shorten

# Slurm's own cap on one range (MAX_RANGE), applied here to a complete list: rack[0-65535]n[0-65535] would otherwise
# fill the memory before the user sees the typo, and no cluster has more nodes than this.
MAX_HOSTS = 65536

_NAME = re.compile(r"(?:[^\s,\[\]]|\[[^\[\]]*\])+")
_GROUP = re.compile(r"\[([^\]]*)\]")
# 18 digits are enough for every id, and stay below int()'s limit on the length of a text.
_RANGE = re.compile(r"([0-9]{1,18})(?:-([0-9]{1,18}))?")
_COUNT = re.compile(r"([0-9]{1,18})(?:\(x([0-9]{1,18})\))?")


def expand_hostlist(text: str, *, where: str | None = None) -> tuple[str, ...]:
    """Expands a Slurm hostlist without scontrol, in its own order and with its duplicates.

    The first host of a step's list is node 0 and runs rank 0, so nothing is sorted. Names are separated by commas or
    blanks. A name contains any number of bracket groups, and text may follow them. Numbers are padded to the width of
    their range's low bound. A name without brackets, for example an IPv6 address, stays unchanged.

    Args:
        text: The value of ``SLURM_STEP_NODELIST``, ``SLURM_JOB_NODELIST`` or sacct's NodeList.
        where: The source of the text, for the error.

    Returns:
        The host names; empty for an empty text.

    Raises:
        UserError: A bracket is not paired, or a range is not a number, is descending, or has too many hosts.

    Example:
        >>> expand_hostlist("gpu[08-10],rack[0-1]n[2,1]-ib,login")
        ('gpu08', 'gpu09', 'gpu10', 'rack0n2-ib', 'rack0n1-ib', 'rack1n2-ib', 'rack1n1-ib', 'login')
    """
    try:
        hosts: list[str] = []
        for name in _split_names(text):
            hosts += _expand_name(name)
            if len(hosts) > MAX_HOSTS:
                raise ValueError(f"it has more than {MAX_HOSTS} hosts")
        return tuple(hosts)
    except ValueError as error:
        raise UserError(
            f"{shorten(repr(text))} is not a Slurm hostlist: {error}",
            where=where,
            hint="a hostlist looks like node[01-03,7],login1",
        ) from None


def expand_counts(text: str, *, where: str | None = None) -> tuple[int, ...]:
    """Expands Slurm's run-length list of counts.

    Args:
        text: The value of ``SLURM_TASKS_PER_NODE`` or ``SLURM_JOB_CPUS_PER_NODE``.
        where: The source of the text, for the error.

    Returns:
        One count for each node, in the nodelist's order; empty for an empty text.

    Raises:
        UserError: An entry is neither a count nor ``count(xrepeats)``, or its repeats are 0 or too many.

    Example:
        >>> expand_counts("2(x3),1")
        (2, 2, 2, 1)
    """
    if not text.strip():
        return ()
    counts: list[int] = []
    for item in text.strip().split(","):
        match = _COUNT.fullmatch(item)
        repeats = int(match[2] or 1) if match else 0
        if match is None or not 1 <= repeats <= MAX_HOSTS - len(counts):
            raise UserError(
                f"{shorten(repr(text))} is not a Slurm list of counts: cannot read {shorten(repr(item))}",
                where=where,
                hint="a list of counts looks like 2(x3),1",
            )
        counts.extend([int(match[1])] * repeats)
    return tuple(counts)


def _split_names(text: str) -> list[str]:
    """Splits a hostlist at the commas and blanks outside brackets.

    Args:
        text: A hostlist.

    Returns:
        The names, still abbreviated. Empty names are skipped, as Slurm does.

    Raises:
        ValueError: A bracket is not paired, or is inside another pair.

    Example:
        >>> _split_names("n[1-2,4],m")
        ['n[1-2,4]', 'm']
    """
    if re.search(r"[\[\]]", _NAME.sub("", text)):
        raise ValueError("its brackets are not paired")
    return _NAME.findall(text)


def _expand_name(name: str) -> Iterator[str]:
    """Expands every bracket group of one name.

    Args:
        name: One name with paired brackets.

    Returns:
        The hosts in the order of ``scontrol show hostnames``: the last group varies fastest, then the first, then the
        second and so on. With three groups the middle one thus varies slowest.

    Raises:
        ValueError: A group is malformed, or the groups multiply to more hosts than the cap.

    Example:
        >>> list(_expand_name("n[1-2]-ib[0-1]"))
        ['n1-ib0', 'n1-ib1', 'n2-ib0', 'n2-ib1']
    """
    texts = _GROUP.split(name)  # text, group, text, group, ..., text
    groups = [_expand_group(group) for group in texts[1::2]]
    if math.prod(map(len, groups)) > MAX_HOSTS:
        raise ValueError(f"{shorten(repr(name))} has more than {MAX_HOSTS} hosts")
    if not groups:
        yield name
        return
    for *others, last in itertools.product(*reversed(groups[:-1]), groups[-1]):
        numbers = [*reversed(others), last]
        yield "".join(itertools.chain.from_iterable(itertools.zip_longest(texts[::2], numbers, fillvalue="")))


def _expand_group(group: str) -> list[str]:
    """Expands the text inside one pair of brackets.

    Args:
        group: Numbers and ranges, separated by commas.

    Returns:
        The numbers as text, padded with zeros to the width of the range's low bound.

    Raises:
        ValueError: An entry is neither a number nor a range, a range is descending, or the group exceeds the cap.

    Example:
        >>> _expand_group("08-10,3")
        ['08', '09', '10', '3']
    """
    numbers: list[str] = []
    for item in group.split(","):
        match = _RANGE.fullmatch(item)
        if not match:
            raise ValueError(f"{shorten(repr(item))} in [{shorten(group)}] is neither a number nor a range")
        low, high = int(match[1]), int(match[2] or match[1])
        if high < low:
            raise ValueError(f"the range {item!r} is descending")
        # Counted before anything is built: a typo may make a range of a hundred million.
        if len(numbers) + high - low + 1 > MAX_HOSTS:
            raise ValueError(f"[{shorten(group)}] has more than {MAX_HOSTS} hosts")
        numbers.extend(f"{number:0{len(match[1])}d}" for number in range(low, high + 1))
    return numbers
