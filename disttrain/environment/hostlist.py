"""Expands what Slurm abbreviates in its environment: hostlists and per-node counts."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator

from disttrain.errors import UserError

# Slurm's own cap on one range (MAX_RANGE), applied here to everything one name stands for: rack[0-65535]n[0-65535]
# would otherwise fill the memory before anyone sees the typo, and no cluster has more nodes than this.
MAX_HOSTS_PER_NAME = 65536

_NAME = re.compile(r"(?:[^\s,\[\]]|\[[^\[\]]*\])+")
_GROUP = re.compile(r"\[([^\]]*)\]")
# 18 digits hold every id that exists, and keep int() below its limit on the length of a text.
_RANGE = re.compile(r"([0-9]{1,18})(?:-([0-9]{1,18}))?")
_COUNT = re.compile(r"([0-9]{1,18})(?:\(x([0-9]{1,18})\))?")


def expand_hostlist(text: str, *, where: str | None = None) -> tuple[str, ...]:
    """Expand a Slurm hostlist, in its own order and with its duplicates, without scontrol.

    The first host of a step's list is node 0 and holds rank 0, so nothing is sorted. Names are separated by commas or
    blanks; a name holds any number of bracket groups, and text may follow them. Numbers keep the width of the range's
    low bound. A name without brackets, an IPv6 address included, stays as it is.

    Args:
        text: ``SLURM_STEP_NODELIST``, ``SLURM_JOB_NODELIST`` or sacct's NodeList.
        where: Where the text came from, for the error.

    Returns:
        The host names; none for an empty text.

    Raises:
        UserError: If a bracket is not paired, a range is no number, runs backwards, or stands for too many hosts.

    Example:
        >>> expand_hostlist("gpu[08-10],rack[0-1]n[2,1]-ib,login")
        ('gpu08', 'gpu09', 'gpu10', 'rack0n2-ib', 'rack0n1-ib', 'rack1n2-ib', 'rack1n1-ib', 'login')
    """
    try:
        return tuple(host for name in _split_names(text) for host in _expand_name(name))
    except ValueError as error:
        raise UserError(
            f"{text!r} is not a Slurm hostlist: {error}", where=where, hint="a hostlist looks like node[01-03,7],login1"
        ) from None


def expand_counts(text: str, *, where: str | None = None) -> tuple[int, ...]:
    """Expand Slurm's run-length list of counts, one count for each node in the nodelist's order.

    Args:
        text: ``SLURM_TASKS_PER_NODE`` or ``SLURM_JOB_CPUS_PER_NODE``.
        where: Where the text came from, for the error.

    Returns:
        One count for each node; none for an empty text.

    Raises:
        UserError: If an entry is neither a count nor ``count(xrepeats)``, or repeats it never or too often.

    Example:
        >>> expand_counts("2(x3),1")
        (2, 2, 2, 1)
    """
    counts: list[int] = []
    for item in text.strip().split(",") if text.strip() else []:
        match = _COUNT.fullmatch(item)
        repeats = int(match[2] or 1) if match else 0
        if not match or not 1 <= repeats <= MAX_HOSTS_PER_NAME:
            raise UserError(
                f"{text!r} is not a Slurm list of counts: cannot read {item!r}",
                where=where,
                hint="such a list looks like 2(x3),1",
            )
        counts.extend([int(match[1])] * repeats)
    return tuple(counts)


def _split_names(text: str) -> list[str]:
    """Split at the commas and blanks outside brackets.

    Args:
        text: A hostlist.

    Returns:
        The names, still abbreviated. Empty ones are skipped, as Slurm does.

    Raises:
        ValueError: If a bracket is not paired, or stands inside another pair.

    Example:
        >>> _split_names("n[1-2,4],m")
        ['n[1-2,4]', 'm']
    """
    if re.search(r"[\[\]]", _NAME.sub("", text)):
        raise ValueError("its brackets do not pair")
    return _NAME.findall(text)


def _expand_name(name: str) -> Iterator[str]:
    """Expand every bracket group of one name.

    Args:
        name: One name with paired brackets.

    Returns:
        Its hosts in the order of ``scontrol show hostnames``: the last group varies fastest, then the first, the second
        and so on, so that of three groups it is the middle one that varies slowest.

    Raises:
        ValueError: If a group is malformed or the groups multiply to more than the cap.

    Example:
        >>> list(_expand_name("n[1-2]-ib[0-1]"))
        ['n1-ib0', 'n1-ib1', 'n2-ib0', 'n2-ib1']
    """
    texts = _GROUP.split(name)  # text, group, text, group, ..., text
    groups = [_expand_group(group) for group in texts[1::2]]
    if math.prod(map(len, groups)) > MAX_HOSTS_PER_NAME:
        raise ValueError(f"{name!r} stands for more than {MAX_HOSTS_PER_NAME} hosts")
    for *others, last in itertools.product(*reversed(groups[:-1]), groups[-1] if groups else [""]):
        numbers = [*reversed(others), last]
        yield "".join(itertools.chain.from_iterable(itertools.zip_longest(texts[::2], numbers, fillvalue="")))


def _expand_group(group: str) -> list[str]:
    """Expand the inside of one pair of brackets.

    Args:
        group: Numbers and ranges, separated by commas.

    Returns:
        The numbers as text, padded with zeros to the width of their range's low bound.

    Raises:
        ValueError: If an entry is no number or range, runs backwards, or the group exceeds the cap.

    Example:
        >>> _expand_group("08-10,3")
        ['08', '09', '10', '3']
    """
    numbers: list[str] = []
    for item in group.split(","):
        match = _RANGE.fullmatch(item)
        if not match:
            raise ValueError(f"{item!r} in [{group}] is neither a number nor a range")
        low, high = int(match[1]), int(match[2] or match[1])
        if high < low:
            raise ValueError(f"the range {item!r} runs backwards")
        # Counted before anything is built: the range may be a typo of a hundred million.
        if len(numbers) + high - low + 1 > MAX_HOSTS_PER_NAME:
            raise ValueError(f"[{group}] stands for more than {MAX_HOSTS_PER_NAME} hosts")
        numbers.extend(f"{number:0{len(match[1])}d}" for number in range(low, high + 1))
    return numbers
