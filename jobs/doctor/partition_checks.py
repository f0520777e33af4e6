"""The checks of a partition: that it exists, accepts the jobs, has the nodes, and allows the time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from jobs.doctor.finding import Finding, fail, note, ok, warn
from jobs.planning.allocation import Allocation
from jobs.planning.cluster_profile import ClusterProfile
from jobs.site.site_facts import Partition, SiteFacts

_CHECK = "partition"


def check_partition(site: SiteFacts, profile: ClusterProfile, allocations: Sequence[Allocation]) -> Iterator[Finding]:
    """The checks of the partition of a profile; of several partitions, Slurm chooses, so each is checked for its name.

    Args:
        site: The facts about the site.
        profile: What the jobs request.
        allocations: The allocations that request it.
    """
    if not site.partitions:
        return  # `unknown` has the reason
    names = profile.partition.split(",") if profile.partition else []
    missing = [name for name in names if site.partition(name) is None]
    if missing:
        known = ", ".join(partition.name for partition in site.partitions)
        yield fail(_CHECK, f"there is no partition {missing[0]!r}", f"set partition to one of: {known}")
        return
    if not names and site.default_partition is None:
        known = ", ".join(partition.name for partition in site.partitions)
        yield fail(_CHECK, "the site has no default partition", f"set partition to one of: {known}")
        return
    partitions = [site.partition(name) for name in names] or [site.default_partition]
    if len(partitions) > 1:
        yield ok(_CHECK, f"{profile.partition}: Slurm chooses one of them")
        return
    (partition,) = partitions
    assert partition is not None
    problems = [*_check_access(site, partition, profile), *_check_nodes(site, partition, profile, allocations)]
    problems += _check_time(site, partition, profile)
    yield from problems
    if not problems:
        yield ok(_CHECK, _described(partition, profile))


def _described(partition: Partition, profile: ClusterProfile) -> str:
    """A partition in one line."""
    text = f"{partition.name}: {partition.nodes} nodes"
    gpus = partition.count_gpus(profile.gpu_type)
    if gpus:
        text += f", {gpus} GPUs"
        types = [name for name in partition.gpu_types if name]
        if types:
            text += f" ({', '.join(types)})"
    return f"{text}, time limit {profile.time} of {_time_text(partition.max_time_min)}"


def _check_access(site: SiteFacts, partition: Partition, profile: ClusterProfile) -> Iterator[Finding]:
    if not partition.is_up:
        yield fail(_CHECK, f"{partition.name} is not up", "choose another partition, or wait until it is up")
    account = profile.account or next((entry.account for entry in site.associations if entry.is_default), None)
    if account is not None and not partition.accepts_account(account):
        usable = [name for name in site.accounts if partition.accepts_account(name)]
        fix = f"set account to one of: {', '.join(usable)}" if usable else "choose another partition"
        yield fail(_CHECK, f"{partition.name} does not accept the account {account!r}", fix)
    if profile.qos is not None and not partition.accepts_qos(profile.qos):
        yield fail(_CHECK, f"{partition.name} does not accept the QOS {profile.qos!r}", "change qos or partition")
    if partition.needs_reservation and "reservation" not in profile.sbatch:
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
    limits = [(f"the partition {partition.name}", partition.max_time_min)]
    limits += [(f"the QOS {entry.name}", entry.max_time_min) for entry in site.qos if entry.name == profile.qos]
    for entry in site.associations:
        if entry.account == profile.account or (profile.account is None and entry.is_default):
            limits.append((f"the account {entry.account}", entry.max_time_min))
    for name, limit_min in limits:
        if limit_min is not None and profile.time_min > limit_min:
            text = f"the time limit {profile.time} is over that of {name}, {_time_text(limit_min)}"
            fix = f'set time: "{_time_text(limit_min)}", and checkpoint_every so that runs resume'
            yield fail("time", f"{text}: the jobs would wait and never start", fix)


def _time_text(minutes: int | None) -> str:
    """A time limit as sbatch reads it.

    Example:
        >>> _time_text(90), _time_text(2880), _time_text(None)
        ('01:30:00', '2-00:00:00', 'unlimited')
    """
    if minutes is None:
        return "unlimited"
    days, rest = divmod(minutes, 1440)
    text = f"{rest // 60:02}:{rest % 60:02}:00"
    if days:
        text = f"{days}-{text}"
    return text


def check_array_size(site: SiteFacts, profile: ClusterProfile) -> Iterator[Finding]:
    """The arrays are not larger than the site accepts."""
    if site.max_array_size is not None and profile.max_array_size >= site.max_array_size:
        text = f"max_array_size {profile.max_array_size} is over the site's: sweep sends smaller arrays"
        yield note("arrays", text, f"set max_array_size: {max(1, site.max_array_size - 1)}")
