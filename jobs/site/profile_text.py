"""The profile that `sweep init` writes: a line for each key, with a comment that says why it has its value."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from jobs.planning.cluster_profile import parse_time_s
from jobs.site.choices import Choices
from jobs.site.site_facts import Partition, SiteFacts

DEFAULT_TIME = "01:00:00"
_COMMENT_COLUMN = 30
_MOST_CPUS_PER_GPU = 16  # more threads make a rank no faster, and a job with fewer CPUs starts sooner
_CPUS_OF_A_RANK = 4  # without GPUs


@dataclass(frozen=True)
class ProfileLine:
    """One line of the profile.

    Attributes:
        key: The key.
        value: Its value.
        comment: What it means, and why it has this value.
        is_set: Whether the key holds; otherwise the line is a comment that shows how to write it.
    """

    key: str
    value: Any
    comment: str
    is_set: bool = True

    def __str__(self) -> str:
        written = yaml_pair(self.key, self.value)
        if not self.is_set:
            written = f"# {written}"
        return f"{written.ljust(_COMMENT_COLUMN - 2)}  # {self.comment}"


def yaml_pair(key: str, value: Any) -> str:
    """A key with its value as YAML, in one line.

    Example:
        >>> yaml_pair("time", "01:00:00"), yaml_pair("sbatch", {"mail-type": "END"})
        ("time: '01:00:00'", 'sbatch: {mail-type: END}')
    """
    written = yaml.safe_dump([value], default_flow_style=True, width=10_000, allow_unicode=True)
    return f"{key}: {written.strip()[1:-1]}"


def profile_text(facts: SiteFacts, choices: Choices, *, time: str | None, python: str | None, today: str) -> str:
    """The text of a profile.

    Args:
        facts: What Slurm says of the site.
        choices: The answers of the user.
        time: The time limit of a run; None for an hour, or that of the partition if it is shorter.
        python: The interpreter on the compute nodes; None for the one that runs `sweep`.
        today: The date, as text.
    """
    site = facts.cluster_name or "this site"
    release = f", Slurm {facts.release}" if facts.release else ""
    header = (
        f"# Written by `sweep init` on {today}: what Slurm says of {site}{release}. docs/cluster.md has every key.\n"
    )
    partition = facts.partition_or_default(choices.partition)
    lines = [
        *_place(facts, choices, partition),
        _time(time, partition),
        *_gpus(facts, choices, partition),
        _memory(facts, choices, partition),
        *_python(python),
        *_jobs(facts, partition),
    ]
    return header + "".join(f"{line}\n" for line in lines)


def _place(facts: SiteFacts, choices: Choices, partition: Partition | None) -> Iterator[ProfileLine]:
    """Where the jobs run, and who pays for them."""
    yield _chosen("partition", choices.partition, "gpu", _describe(partition), "the default partition of the site")
    others = [name for name in facts.accounts if name != choices.account]
    about = "the account that the jobs are charged to"
    if others:
        about += f"; you also have {', '.join(others)}"
    yield _chosen("account", choices.account, "my_project", about, "the account; without it, your default one")
    yield _chosen("qos", choices.qos, "normal", "the QOS of the jobs", "the QOS; without it, your default one")
    yield ProfileLine("constraint", "feature", "only nodes with this feature (sinfo --format '%N %f')", is_set=False)


def _chosen(key: str, value: str | None, example: str, about: str, about_default: str) -> ProfileLine:
    if value is None:
        return ProfileLine(key, example, about_default, is_set=False)
    return ProfileLine(key, value, about)


def _describe(partition: Partition | None) -> str:
    """The nodes and limits of a partition, in one line.

    Example:
        >>> _describe(Partition("gpu", max_time_min=2880))
        '0 nodes, jobs of at most 2-00:00:00'
    """
    if partition is None:
        return "the partition of the jobs"
    parts = [f"{partition.nodes} nodes", f"jobs of at most {format_minutes(partition.max_time_min)}"]
    if partition.max_time_min is None:
        parts[1] = "no time limit"
    if partition.whole_nodes:
        parts.append("each job gets complete nodes")
    if partition.needs_reservation:
        parts.append("each job needs a reservation (sbatch: {reservation: NAME})")
    return ", ".join(parts)


def format_minutes(minutes: int | None) -> str:
    """A time limit as Slurm writes it.

    Example:
        >>> format_minutes(2880), format_minutes(90), format_minutes(None)
        ('2-00:00:00', '01:30:00', 'UNLIMITED')
    """
    if minutes is None:
        return "UNLIMITED"
    days, rest = divmod(minutes, 1440)
    text = f"{rest // 60:02}:{rest % 60:02}:00"
    return f"{days}-{text}" if days else text


def _time(time: str | None, partition: Partition | None) -> ProfileLine:
    longest = partition.max_time_min if partition else None
    if time is None:
        time = DEFAULT_TIME
        if longest is not None and longest * 60 < parse_time_s(time):
            time = format_minutes(longest)
    limit = "" if longest is None else f"; the partition allows {format_minutes(longest)}"
    return ProfileLine("time", time, f"time limit of one run{limit}")


def _gpus(facts: SiteFacts, choices: Choices, partition: Partition | None) -> Iterator[ProfileLine]:
    """How GPUs are requested, and the CPU cores of each."""
    kinds = partition.kinds_for(1, choices.gpu_type) if partition else ()
    if partition is not None and not kinds:
        yield ProfileLine("gpu_request", "none", "the partition has no GPUs: 1x4 is one node with 4 ranks on CPUs")
        fewest = min((kind.cpus for kind in partition.node_kinds), default=_CPUS_OF_A_RANK)
        yield ProfileLine("cpus_per_gpu", max(1, min(_CPUS_OF_A_RANK, fewest)), "CPU cores of each rank")
        return
    request, about = "gpus-per-node", "how GPUs are requested: as --gpus-per-node=N; other values: gres, none"
    if facts.shares_gpus_by_tres is False:
        request, about = "gres", "how GPUs are requested: as --gres=gpu:N; other values: gpus-per-node, none"
    yield ProfileLine("gpu_request", request, about)
    per_node = ", ".join(str(kind.gpus_per_node(choices.gpu_type)) for kind in kinds)
    about = f"type of the GPUs; a node has {per_node}" if kinds else "type of the GPUs"
    yield _chosen("gpu_type", choices.gpu_type, "a100", about, "type of the GPUs, if the site names it")
    share = min((kind.cpus // kind.gpus_per_node(choices.gpu_type) for kind in kinds), default=_CPUS_OF_A_RANK)
    about = "CPU cores of each rank"
    if kinds:
        about += f"; the share of one GPU is {share}"
    yield ProfileLine("cpus_per_gpu", max(1, min(share, _MOST_CPUS_PER_GPU)), about)


def _memory(facts: SiteFacts, choices: Choices, partition: Partition | None) -> ProfileLine:
    """The memory of a rank. Where Slurm counts memory and the partition has no default, a job gets all of a node."""
    kinds = partition.kinds_for(1, choices.gpu_type) if partition else ()
    share_gb = min((kind.memory_mb * 0.9 / 1024 / kind.gpus_per_node(choices.gpu_type) for kind in kinds), default=0)
    if share_gb < 1:
        return ProfileLine("memory_gb_per_gpu", 32, "memory of each rank; without it, the site's default", is_set=False)
    gives_all = partition is not None and not (partition.has_default_memory or partition.whole_nodes)
    needed = gives_all and bool(facts.counts_memory)
    about = "memory of each rank; without it, the site's default"
    if needed:
        about = "memory of each rank: the share of one GPU; without it, a job gets all of a node"
    return ProfileLine("memory_gb_per_gpu", int(share_gb), about, is_set=needed)


def _python(python: str | None) -> Iterator[ProfileLine]:
    """The interpreter of the ranks, and the lines before it."""
    about = "Python on the compute nodes; without it, the one that runs sweep"
    yield ProfileLine("python", python or "/shared/envs/train/bin/python", about, is_set=python is not None)
    yield ProfileLine("setup", ["module load cuda"], "shell lines that run before the training", is_set=False)
    about = "network interface of NCCL and gloo; sweep doctor measures the link"
    yield ProfileLine("network_interface", "ib0", about, is_set=False)


def _jobs(facts: SiteFacts, partition: Partition | None) -> Iterator[ProfileLine]:
    """How many jobs run, and what happens when one must end early."""
    size = facts.max_array_size
    about = "runs of one job array, at most MaxArraySize - 1"
    if size is not None:
        about += f" ({size} - 1)"
    most = max(1, size - 1) if size is not None else 1000
    yield ProfileLine("max_array_size", most, about)
    yield ProfileLine("max_running", 8, "runs of one job array at the same time", is_set=False)
    yield ProfileLine("requeue", "slurm", _about_requeue(facts, partition))
    yield ProfileLine("warning_s", 120, "seconds before its time limit at which a run saves")
    about = "one line of JSON at the first failure and at the end; or a shell command"
    yield ProfileLine("notify", "https://ntfy.sh/$NTFY_TOPIC", about, is_set=False)
    about = "any other option of sbatch; this one sends mail"
    yield ProfileLine("sbatch", {"mail-type": "END"}, about, is_set=False)


def _about_requeue(facts: SiteFacts, partition: Partition | None) -> str:
    about = "a run resumes by itself after its time limit or a preemption; or chain, off"
    if facts.job_requeue is False:
        about = "jobs ask for it, because JobRequeue is 0 here; if Slurm refuses it: chain or off"
    if partition is not None and (partition.preempt_mode or "OFF").upper() not in ("OFF", "(NULL)"):
        about += f"; jobs of this partition may be preempted ({partition.preempt_mode})"
    return about
