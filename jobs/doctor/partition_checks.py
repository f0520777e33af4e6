"""The checks of a partition: that it exists, accepts the jobs, has the nodes, and allows the time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from jobs.doctor.finding import Finding, fail, note, ok, warn, would_fail
from jobs.planning.allocation import Allocation
from jobs.planning.cluster_profile import ClusterProfile
from jobs.site.profile_text import format_minutes
from jobs.site.site_facts import Partition, SiteFacts

_CHECK = "partition"


def check_partition(
    site: SiteFacts, profile: ClusterProfile, allocations: Sequence[Allocation], *, is_accepted: bool = False
) -> Iterator[Finding]:
    """The checks of the partition of a profile; of several partitions, Slurm chooses one that fits.

    Args:
        site: The facts about the site.
        profile: What the jobs request.
        allocations: The allocations that request it.
        is_accepted: Whether sbatch accepts all of them: then a partition may be hidden, or a variable names what it
            needs.
    """
    if not site.partitions:
        return  # `unknown` has the reason
    names = profile.partition.split(",") if profile.partition else []
    missing = [name for name in names if site.partition(name) is None]
    if missing and is_accepted:
        yield note(_CHECK, f"sinfo does not show the partition {missing[0]!r}, but sbatch accepts it")
        return
    if missing:
        known = ", ".join(partition.name for partition in site.partitions)
        yield fail(_CHECK, f"there is no partition {missing[0]!r}", f"set partition to one of: {known}")
        return
    if not names and site.default_partition is None:
        known = ", ".join(partition.name for partition in site.partitions)
        yield fail(_CHECK, "the site has no default partition", f"set partition to one of: {known}")
        return
    chosen = [site.partition(name) for name in names] or [site.default_partition]
    problems = [_problems(site, entry, profile, allocations, is_accepted) for entry in chosen if entry is not None]
    if len(problems) > 1 and not all(map(would_fail, problems)):
        yield ok(_CHECK, f"{profile.partition}: Slurm chooses one of them")
    elif problems[0]:
        yield from problems[0]
    elif chosen[0] is not None:
        yield ok(_CHECK, _described(chosen[0], profile))


def _problems(
    site: SiteFacts,
    partition: Partition,
    profile: ClusterProfile,
    allocations: Sequence[Allocation],
    is_accepted: bool,
) -> list[Finding]:
    """What is wrong with one partition."""
    return [
        *_check_access(site, partition, profile, is_accepted),
        *_check_nodes(site, partition, profile, allocations),
        *_check_time(site, partition, profile),
    ]


def _described(partition: Partition, profile: ClusterProfile) -> str:
    """A partition in one line."""
    text = f"{partition.name}: {partition.nodes} nodes"
    gpus = partition.count_gpus(profile.gpu_type)
    if gpus:
        text += f", {gpus} GPUs"
        types = [name for name in partition.gpu_types if name]
        if types:
            text += f" ({', '.join(types)})"
    return f"{text}, time limit {profile.time} of {format_minutes(partition.max_time_min)}"


def _check_access(
    site: SiteFacts, partition: Partition, profile: ClusterProfile, is_accepted: bool
) -> Iterator[Finding]:
    if not partition.is_up:
        yield fail(_CHECK, f"{partition.name} is not up", "choose another partition, or wait until it is up")
    account = profile.account or site.default_account
    if account is not None and not partition.accepts_account(account):
        usable = [name for name in site.accounts if partition.accepts_account(name)]
        fix = f"set account to one of: {', '.join(usable)}" if usable else "choose another partition"
        yield fail(_CHECK, f"{partition.name} does not accept the account {account!r}", fix)
    if profile.qos is not None and not partition.accepts_qos(profile.qos):
        yield fail(_CHECK, f"{partition.name} does not accept the QOS {profile.qos!r}", "change qos or partition")
    if not partition.needs_reservation or "reservation" in profile.sbatch:
        return
    if is_accepted:
        yield note(_CHECK, f"{partition.name} needs a reservation; a variable of the shell seems to name it")
    else:
        yield fail(_CHECK, f"{partition.name} needs a reservation", "add sbatch: {reservation: NAME} to the profile")


def _check_nodes(
    site: SiteFacts, partition: Partition, profile: ClusterProfile, allocations: Sequence[Allocation]
) -> Iterator[Finding]:
    """Its nodes have the GPUs, cores and memory of each allocation."""
    if profile.gpu_request == "none":
        return
    if partition.count_gpus() == 0:
        fix = "choose a partition with GPUs, or set gpu_request: none"
        yield fail(_CHECK, f"Slurm counts no GPUs in {partition.name}", fix)
        return
    if profile.gpu_type is not None and profile.gpu_type not in partition.gpu_types:
        types = ", ".join(name or "(no type)" for name in partition.gpu_types)
        yield fail(_CHECK, f"{partition.name} has no GPUs of type {profile.gpu_type!r}", f"set gpu_type to: {types}")
        return
    if site.shares_gpus_by_tres is False and profile.gpu_request == "gpus-per-node":
        yield fail(_CHECK, "this site has no --gpus-per-node (SelectType)", "set gpu_request: gres")
    for allocation in allocations:
        if not partition.can_give(allocation, profile.gpu_type):
            largest = max(kind.gpus_per_node(profile.gpu_type) for kind in partition.node_kinds)
            text = f"{partition.name} cannot give {allocation}: {partition.nodes} nodes with at most {largest} GPUs"
            yield fail(_CHECK, text, "choose smaller allocations, or another partition")
            continue
        kinds = partition.kinds_for(allocation.gpus_per_node, profile.gpu_type)
        cpus, cores = profile.cpus_per_gpu * allocation.gpus_per_node, max(kind.cpus for kind in kinds)
        if cpus > cores:
            fix = f"set cpus_per_gpu: {max(1, cores // allocation.gpus_per_node)}"
            yield fail(_CHECK, f"{allocation} requests {cpus} CPUs of each node, which has {cores}", fix)
        yield from _check_memory(site, profile, allocation, max(kind.memory_mb for kind in kinds))
        if sum(kind.usable_nodes for kind in kinds) < allocation.nodes:
            text = f"{allocation} waits for the repair of nodes: too few are neither down nor drained"
            yield warn(_CHECK, text, "sinfo -R says why; choose another partition")


def _check_memory(
    site: SiteFacts, profile: ClusterProfile, allocation: Allocation, memory_mb: int
) -> Iterator[Finding]:
    """A node has the memory that an allocation requests."""
    if not site.counts_memory or profile.memory_gb_per_gpu is None:
        return
    requested_gb = profile.memory_gb_per_gpu * allocation.gpus_per_node
    if requested_gb * 1024 > memory_mb:
        fix = f"set memory_gb_per_gpu: {memory_mb // 1024 // allocation.gpus_per_node}"
        yield fail(
            _CHECK, f"{allocation} requests {requested_gb:g} GB of each node, which has {memory_mb / 1024:.4g}", fix
        )


def _check_time(site: SiteFacts, partition: Partition, profile: ClusterProfile) -> Iterator[Finding]:
    """The time limit is not over that of the partition, the QOS or the account."""
    qos = [entry for entry in site.qos if entry.name == profile.qos]
    limits = [(f"the QOS {entry.name}", entry.max_time_min) for entry in qos]
    if not any(entry.overrules_partition for entry in qos):
        limits.insert(0, (f"the partition {partition.name}", partition.max_time_min))
    for own in site.associations_for(profile.account, (partition.name,)):
        limits.append((f"the account {own.account}", own.max_time_min))
    for name, limit_min in limits:
        if limit_min is not None and profile.time_min > limit_min:
            text = f"the time limit {profile.time} is over that of {name}, {format_minutes(limit_min)}"
            fix = f'set time: "{format_minutes(limit_min)}", and checkpoint_every so that runs resume'
            yield fail("time", f"{text}: the jobs would wait and never start", fix)


def check_array_size(site: SiteFacts, profile: ClusterProfile) -> Iterator[Finding]:
    """The arrays are not larger than the site accepts."""
    if site.max_array_size is not None and profile.max_array_size >= site.max_array_size:
        text = f"max_array_size {profile.max_array_size} is over the site's: sweep sends smaller arrays"
        yield note("arrays", text, f"set max_array_size: {max(1, site.max_array_size - 1)}")
