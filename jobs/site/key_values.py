"""The small values in what Slurm prints: key=value records, times, counts and resources."""

from __future__ import annotations

import re

from disttrain.errors import UserError
from jobs.planning.cluster_profile import parse_time_s

_KEY_VALUE = re.compile(r"(?:^|\s)([A-Za-z][A-Za-z0-9_/.:]*)=(\S*)")


def parse_record(line: str) -> dict[str, str]:
    """The values of a line that ``scontrol --oneliner show`` prints; the last value of a key that is repeated.

    Example:
        >>> parse_record("PartitionName=gpu AllowQos=ALL QoS=N/A TRES=cpu=32,node=2")
        {'PartitionName': 'gpu', 'AllowQos': 'ALL', 'QoS': 'N/A', 'TRES': 'cpu=32,node=2'}
    """
    return dict(_KEY_VALUE.findall(line))


def parse_config(text: str) -> dict[str, str]:
    """The values that ``scontrol show config`` prints, by name; a value that is not set is left out.

    Example:
        >>> parse_config("Configuration data\\nMaxArraySize            = 1001\\nGresTypes  = (null)\\nJobRequeue = 1")
        {'MaxArraySize': '1001', 'JobRequeue': '1'}
    """
    found = {}
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals and value.strip() not in ("", "(null)"):
            found[name.strip()] = value.strip()
    return found


def parse_minutes(text: str) -> int | None:
    """The minutes of a time limit, rounded up; None for no limit, or a word that is no time.

    Example:
        >>> parse_minutes("1-00:00:00"), parse_minutes("30:00"), parse_minutes("UNLIMITED"), parse_minutes("n/a")
        (1440, 30, None, None)
    """
    try:
        return -(-parse_time_s(text) // 60)
    except UserError:
        return None


def parse_number(text: str) -> int | None:
    """A whole number, as sinfo or sacctmgr prints it; None for an empty text or a word. + means that others are larger.

    Example:
        >>> parse_number("16"), parse_number("64+"), parse_number(""), parse_number("UNLIMITED")
        (16, 64, None, None)
    """
    digits = text.strip().removesuffix("+")
    if not (digits.isascii() and digits.isdecimal()):
        return None
    return int(digits)


def parse_names(text: str) -> frozenset[str] | None:
    """A list of names; None for ALL.

    Example:
        >>> sorted(parse_names("a,b")), parse_names("ALL"), parse_names("(null)")
        (['a', 'b'], None, frozenset())
    """
    if text.upper() == "ALL":
        return None
    return frozenset(name for name in text.split(",") if name and name != "(null)")


def parse_tres(text: str) -> tuple[tuple[str, int], ...]:
    """The resources of a limit; those without a number are left out.

    Example:
        >>> parse_tres("cpu=64,gres/gpu=8,mem=10G")
        (('cpu', 64), ('gres/gpu', 8))
    """
    found = []
    for item in text.split(","):
        name, _, value = item.partition("=")
        number = parse_number(value)
        if number is not None:
            found.append((name, number))
    return tuple(found)
