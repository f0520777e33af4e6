"""What `sweep init` prints of a site: a few lines, and a table of its partitions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from jobs.results.text_table import TextColumn, TextTable
from jobs.site.profile_text import format_minutes
from jobs.site.site_facts import Partition, SiteFacts

_MOST_PARTITIONS = 5  # in the table: those with GPUs first
_MOST_NAMES = 6


def site_report(facts: SiteFacts) -> Iterator[TextTable | str]:
    """The site for a person.

    Args:
        facts: What Slurm says.
    """
    parts = [f"Slurm {facts.release or 'of an unknown release'} on {facts.cluster_name or 'a cluster without a name'}"]
    if facts.max_array_size is not None:
        parts.append(f"arrays of at most {max(1, facts.max_array_size - 1)} runs")
    if facts.accounting is False:
        parts.append("no accounting: sacct has no answer")
    if facts.job_requeue is False:
        parts.append("jobs are requeued only if they ask for it")
    yield ", ".join(parts)
    if facts.partitions:
        yield _partitions(facts.partitions)
    if facts.accounts:
        yield f"accounts: {_names(facts.accounts)}"
    for unknown in facts.unknown:
        yield f"not learned: {unknown.what} ({unknown.reason})"


def _partitions(partitions: Sequence[Partition]) -> TextTable:
    """The partitions, those with the most GPUs first."""
    ordered = sorted(partitions, key=lambda partition: -partition.count_gpus())
    shown, rest = ordered[:_MOST_PARTITIONS], ordered[_MOST_PARTITIONS:]
    rows = [_row(partition) for partition in shown]
    if rest:
        rows.append((f"and {len(rest)} more", "", "", "", "", ""))
    names, nodes, gpus, cpus, memory, times = zip(*rows, strict=True)
    columns = (
        TextColumn("partition", names),
        TextColumn("nodes", nodes, is_right=True),
        TextColumn("GPUs of a node", gpus, wraps=True),
        TextColumn("CPUs", cpus, is_right=True),
        TextColumn("memory", memory, is_right=True),
        TextColumn("time limit", times, is_right=True),
    )
    return TextTable(columns, [""] * len(rows))


def _row(partition: Partition) -> tuple[str, str, str, str, str, str]:
    name = partition.name
    if partition.is_default:
        name += " (default)"
    if not partition.is_up:
        name += " (not up)"
    usable = sum(kind.usable_nodes for kind in partition.node_kinds)
    nodes = str(partition.nodes)
    if usable < partition.nodes:
        nodes = f"{usable} of {partition.nodes}"
    gpus = {" + ".join(f"{gpu.per_node} {gpu.type or 'GPUs'}" for gpu in kind.gpus) for kind in partition.node_kinds}
    return (
        name,
        nodes,
        ", ".join(sorted(filter(None, gpus))),
        _range([kind.cpus for kind in partition.node_kinds]),
        _range([kind.memory_mb // 1024 for kind in partition.node_kinds], " GiB"),
        format_minutes(partition.max_time_min),
    )


def _range(values: Sequence[int], unit: str = "") -> str:
    """The smallest and the largest value.

    Example:
        >>> _range([64, 96]), _range([64, 64], " GiB"), _range([])
        ('64-96', '64 GiB', '')
    """
    if not values:
        return ""
    if min(values) == max(values):
        return f"{values[0]}{unit}"
    return f"{min(values)}-{max(values)}{unit}"


def _names(names: Sequence[str]) -> str:
    """The first names, and the number of the others."""
    shown = ", ".join(names[:_MOST_NAMES])
    if len(names) > _MOST_NAMES:
        shown += f" and {len(names) - _MOST_NAMES} more"
    return shown
