"""Partitions and their nodes, from what sinfo and ``scontrol show partition`` print."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence

from jobs.site.key_values import parse_minutes, parse_names, parse_number, parse_record
from jobs.site.site_facts import GpuKind, NodeKind, Partition

# --exact: without it, nodes that differ are one row with the smallest values.
SINFO_COMMAND = ("sinfo", "--noheader", "--exact", "--format=%P|%a|%l|%D|%T|%c|%m|%G")
PARTITION_COMMAND = ("scontrol", "--oneliner", "show", "partition")

# The states, without their suffixes, of nodes that start no job before someone repairs them.
_UNUSABLE = frozenset({
    "down", "drain", "drained", "draining", "fail", "failing", "error", "unknown", "inval", "future", "blocked",
})  # fmt: skip
_NOT_RESPONDING = "*"


def parse_sinfo(text: str) -> tuple[Partition, ...]:
    """The partitions that SINFO_COMMAND prints, in its order: one row for each state and kind of nodes.

    Example:
        >>> rows = "gpu*|up|infinite|{}|16|10000|gpu:h100:4(S:0)"
        >>> (partition,) = parse_sinfo(rows.format("2|idle") + "\\n" + rows.format("1|down*"))
        >>> partition.name, partition.is_default, partition.max_time_min
        ('gpu', True, None)
        >>> partition.node_kinds
        (NodeKind(nodes=3, usable_nodes=2, cpus=16, memory_mb=10000, gpus=(GpuKind(type='h100', per_node=4),)),)
    """
    found: dict[str, Partition] = {}
    for line in text.splitlines():
        values = [value.strip() for value in line.split("|", 7)]
        if len(values) < 8:
            continue
        name, is_up, longest = values[0], values[1] == "up", values[2]
        plain = name.removesuffix("*")
        known = found.get(plain) or Partition(plain, name != plain, is_up, parse_minutes(longest))
        found[plain] = dataclasses.replace(known, node_kinds=_merged((*known.node_kinds, *_node_kinds(values[3:]))))
    return tuple(found.values())


def _node_kinds(values: Sequence[str]) -> tuple[NodeKind, ...]:
    """The nodes of one row; none of a partition without nodes."""
    nodes = parse_number(values[0]) or 0
    if nodes == 0:
        return ()
    usable = nodes if is_usable(values[1]) else 0
    return (NodeKind(nodes, usable, parse_number(values[2]) or 0, parse_number(values[3]) or 0, parse_gres(values[4])),)


def is_usable(state: str) -> bool:
    """Whether nodes in a state start jobs, now or when other jobs have ended.

    Example:
        >>> is_usable("mixed"), is_usable("idle~"), is_usable("drained"), is_usable("idle*")
        (True, True, False, False)
    """
    return _NOT_RESPONDING not in state and re.sub(r"\W", "", state.lower()) not in _UNUSABLE


def parse_gres(text: str) -> tuple[GpuKind, ...]:
    """The GPUs in the generic resources of a node. What is no GPU is left out, and shares of a GPU too.

    Example:
        >>> parse_gres("gpu:h100:4(S:0-1),mps:400"), parse_gres("gpu:2"), parse_gres("(null)")
        ((GpuKind(type='h100', per_node=4),), (GpuKind(type=None, per_node=2),), ())
    """
    kinds = []
    for item in re.sub(r"\([^)]*\)", "", text).split(","):
        name, *parts = [part for part in item.split(":") if part != "no_consume"]
        if name != "gpu":
            continue
        count = 1
        if parts and parts[-1].isdecimal():
            count = int(parts.pop())
        kinds.append(GpuKind(parts[0] if parts else None, count))
    return tuple(kind for kind in kinds if kind.per_node)


def _merged(kinds: Iterable[NodeKind]) -> tuple[NodeKind, ...]:
    """The kinds of nodes, each once: rows that differ in the state only are one kind."""
    found: dict[object, NodeKind] = {}
    for kind in kinds:
        key = (kind.cpus, kind.memory_mb, kind.gpus)
        before = found.get(key)
        if before is not None:
            kind = dataclasses.replace(
                kind, nodes=kind.nodes + before.nodes, usable_nodes=kind.usable_nodes + before.usable_nodes
            )
        found[key] = kind
    return tuple(found.values())


def with_limits(partitions: Iterable[Partition], text: str) -> tuple[Partition, ...]:
    """The partitions with what ``scontrol show partition`` says of each.

    Example:
        >>> line = "PartitionName=gpu AllowAccounts=ml,vision AllowQos=ALL MaxNodes=4 OverSubscribe=EXCLUSIVE"
        >>> (partition,) = with_limits([Partition("gpu")], line)
        >>> sorted(partition.allowed_accounts), partition.allowed_qos, partition.max_nodes, partition.whole_nodes
        (['ml', 'vision'], None, 4, True)
    """
    records = {record.get("PartitionName"): record for record in map(parse_record, text.splitlines())}
    return tuple(_with_record(partition, records.get(partition.name, {})) for partition in partitions)


def _with_record(partition: Partition, record: dict[str, str]) -> Partition:
    return dataclasses.replace(
        partition,
        min_nodes=parse_number(record.get("MinNodes", "")) or 0,
        max_nodes=parse_number(record.get("MaxNodes", "")),
        allowed_accounts=parse_names(record.get("AllowAccounts", "ALL")),
        denied_accounts=parse_names(record.get("DenyAccounts", "")) or frozenset(),
        allowed_qos=parse_names(record.get("AllowQos", "ALL")),
        denied_qos=parse_names(record.get("DenyQos", "")) or frozenset(),
        has_default_memory=any(
            parse_number(record.get(key, "")) is not None for key in ("DefMemPerCPU", "DefMemPerNode")
        )
        or "DefMemPerGPU" in record.get("JobDefaults", ""),
        whole_nodes=record.get("OverSubscribe", "").upper().startswith("EXCLUSIVE"),
        needs_reservation=record.get("ReqResv", "").upper() == "YES",
        preempt_mode=record.get("PreemptMode"),
    )
