"""The facts about a site: what Slurm says of itself, its partitions and the user's accounts."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from jobs.planning.allocation import Allocation


@dataclass(frozen=True)
class GpuKind:
    """The GPUs of one type on a node.

    Attributes:
        type: Slurm's name of the type, as in ``--gpus-per-node=h100:4``; None if the site has not named it.
        per_node: Their number on the node.
    """

    type: str | None
    per_node: int


@dataclass(frozen=True)
class NodeKind:
    """Nodes of a partition that are alike.

    Attributes:
        nodes: Their number.
        usable_nodes: How many of them are neither down nor drained.
        cpus: The CPUs of each, as Slurm counts them.
        memory_mb: The memory of each.
        gpus: The GPUs of each.
    """

    nodes: int
    usable_nodes: int
    cpus: int
    memory_mb: int
    gpus: tuple[GpuKind, ...] = ()

    def gpus_per_node(self, gpu_type: str | None = None) -> int:
        """The number of GPUs of a type on each node; of any type by default."""
        return sum(kind.per_node for kind in self.gpus if gpu_type in (None, kind.type))


@dataclass(frozen=True)
class Partition:
    """One partition.

    Attributes:
        name: Its name.
        is_default: Whether a job without ``--partition`` goes there.
        is_up: Whether its jobs can start.
        max_time_min: The largest time limit of a job; None if it has none.
        node_kinds: Its nodes.
        min_nodes: The fewest nodes of a job.
        max_nodes: The most nodes of a job; None if it has no limit.
        allowed_accounts, allowed_qos: The only ones that may use it; None for all.
        denied_accounts, denied_qos: Those that may not use it.
        has_default_memory: Whether a job that requests no memory gets a part of a node's, and not all.
        whole_nodes: Whether each job gets complete nodes (OverSubscribe=EXCLUSIVE).
        needs_reservation: Whether each job needs a reservation.
        preempt_mode: What happens to its jobs at a preemption, as Slurm writes it; None if it is not known.
    """

    name: str
    is_default: bool = False
    is_up: bool = True
    max_time_min: int | None = None
    node_kinds: tuple[NodeKind, ...] = ()
    min_nodes: int = 0
    max_nodes: int | None = None
    allowed_accounts: frozenset[str] | None = None
    denied_accounts: frozenset[str] = frozenset()
    allowed_qos: frozenset[str] | None = None
    denied_qos: frozenset[str] = frozenset()
    has_default_memory: bool = False
    whole_nodes: bool = False
    needs_reservation: bool = False
    preempt_mode: str | None = None

    @property
    def nodes(self) -> int:
        """The number of its nodes."""
        return sum(kind.nodes for kind in self.node_kinds)

    @property
    def gpu_types(self) -> tuple[str | None, ...]:
        """The types of its GPUs, the most frequent first; empty without GPUs."""
        count: dict[str | None, int] = {}
        for kind in self.node_kinds:
            for gpu in kind.gpus:
                count[gpu.type] = count.get(gpu.type, 0) + kind.nodes * gpu.per_node
        return tuple(sorted(count, key=lambda gpu_type: -count[gpu_type]))

    def count_gpus(self, gpu_type: str | None = None) -> int:
        """The number of its GPUs of a type; of any type by default."""
        return sum(kind.nodes * kind.gpus_per_node(gpu_type) for kind in self.node_kinds)

    def kinds_for(self, gpus_per_node: int, gpu_type: str | None = None) -> tuple[NodeKind, ...]:
        """The kinds of nodes that have this many GPUs of a type; of any type by default."""
        return tuple(kind for kind in self.node_kinds if kind.gpus_per_node(gpu_type) >= gpus_per_node)

    def can_give(self, allocation: Allocation, gpu_type: str | None = None) -> bool:
        """Whether enough of its nodes have the GPUs of an allocation, however busy or broken they are at present."""
        if allocation.nodes < self.min_nodes or (self.max_nodes is not None and allocation.nodes > self.max_nodes):
            return False
        kinds = self.kinds_for(allocation.gpus_per_node, gpu_type)
        return sum(kind.nodes for kind in kinds) >= allocation.nodes

    def accepts_account(self, account: str) -> bool:
        """Whether jobs of an account may use it."""
        allowed = self.allowed_accounts is None or account in self.allowed_accounts
        return allowed and account not in self.denied_accounts

    def accepts_qos(self, qos: str) -> bool:
        """Whether jobs of a QOS may use it."""
        return (self.allowed_qos is None or qos in self.allowed_qos) and qos not in self.denied_qos


@dataclass(frozen=True)
class Association:
    """The right of the user to run jobs under an account.

    Attributes:
        account: The account.
        is_default: Whether a job without ``--account`` uses it.
        partition: The only partition for which it holds; None for all.
        qos: The QOS that it may use.
        default_qos: The QOS of a job without ``--qos``; None if Slurm has no default.
        max_time_min: Its own limit of a job's time; None without one.
        max_submit: How many jobs of it may wait and run; None without a limit.
    """

    account: str
    is_default: bool = False
    partition: str | None = None
    qos: tuple[str, ...] = ()
    default_qos: str | None = None
    max_time_min: int | None = None
    max_submit: int | None = None


@dataclass(frozen=True)
class Qos:
    """A quality of service.

    Attributes:
        name: Its name.
        max_time_min: Its limit of a job's time; None without one.
        max_submit: How many jobs each user may have in it; None without a limit.
        max_tres_of_user: What the running jobs of a user may use in total, by resource: ``{"gres/gpu": 8}``.
        overrules_partition: Whether its jobs may be longer than their partition allows.
    """

    name: str
    max_time_min: int | None = None
    max_submit: int | None = None
    max_tres_of_user: tuple[tuple[str, int], ...] = ()
    overrules_partition: bool = False


@dataclass(frozen=True)
class Balance:
    """What is left of a resource in an account: its GrpTRESMins.

    Attributes:
        account: The account.
        user: The user whose own limit it is; None for that of the account.
        resource: The resource: ``gres/gpu``.
        limit_min: The minutes of it that may be used.
        used_min: The minutes of it that are used.
    """

    account: str
    user: str | None
    resource: str
    limit_min: int
    used_min: int

    @property
    def left_min(self) -> int:
        """The minutes that are left; never below 0."""
        return max(0, self.limit_min - self.used_min)


@dataclass(frozen=True)
class Unknown:
    """Something that could not be learned.

    Attributes:
        what: What it is.
        command: The command that was run.
        reason: Why it has not answered, in one line.
    """

    what: str
    command: str
    reason: str


@dataclass(frozen=True)
class SiteFacts:
    """What Slurm says of the site, and what it does not say. None where it does not say it.

    Attributes:
        release: The release of Slurm: ``22.05.8``.
        cluster_name: The name of the cluster.
        partitions: The partitions that the user may see.
        max_array_size: MaxArraySize.
        accounting: Whether Slurm stores what became of jobs, so that sacct has an answer.
        enforced: What the accounting enforces, in lower case: associations, limits, qos, safe.
        job_requeue: Whether jobs may be requeued.
        counts_memory: Whether jobs share the memory of a node by what they request.
        shares_gpus_by_tres: Whether ``--gpus-per-node`` works; before select/cons_tres, only ``--gres`` does.
        counts_gpus: Whether sacct has the GPUs of each job.
        associations: The accounts of the user.
        qos: All QOS.
        balances: What is left in the accounts of the user and in their parents, where a limit is set.
        parents: The parent of each account.
        unknown: What could not be learned.
    """

    release: str | None = None
    cluster_name: str | None = None
    partitions: tuple[Partition, ...] = ()
    max_array_size: int | None = None
    accounting: bool | None = None
    enforced: frozenset[str] = frozenset()
    job_requeue: bool | None = None
    counts_memory: bool | None = None
    shares_gpus_by_tres: bool | None = None
    counts_gpus: bool | None = None
    associations: tuple[Association, ...] = ()
    qos: tuple[Qos, ...] = ()
    balances: tuple[Balance, ...] = ()
    parents: tuple[tuple[str, str], ...] = ()
    unknown: tuple[Unknown, ...] = ()

    def partition(self, name: str) -> Partition | None:
        """The partition of this name; None if Slurm does not show it to the user."""
        return next((partition for partition in self.partitions if partition.name == name), None)

    @property
    def default_partition(self) -> Partition | None:
        """The partition of a job that names none."""
        return next((partition for partition in self.partitions if partition.is_default), None)

    def partition_or_default(self, name: str | None) -> Partition | None:
        """The partition of this name; without a name, that of a job that names none."""
        return self.partition(name) if name else self.default_partition

    @property
    def default_account(self) -> str | None:
        """The account of a job that names none."""
        return next((entry.account for entry in self.associations if entry.is_default), None)

    @property
    def is_reachable(self) -> bool:
        """Whether the controller has answered. A site may forbid `scontrol show config` alone."""
        return self.release is not None or bool(self.partitions)

    @property
    def accounts(self) -> tuple[str, ...]:
        """The accounts of the user, the default one first."""
        return distinct(entry.account for entry in sorted(self.associations, key=lambda entry: not entry.is_default))

    @property
    def needs_association(self) -> bool:
        """Whether Slurm refuses a job whose account the user does not have. Limits and QOS imply it."""
        return not self.enforced.isdisjoint({"associations", "limits", "qos", "safe", "wckeys", "all"})

    @property
    def enforces_limits(self) -> bool:
        """Whether Slurm holds back jobs that are over a limit of their account or QOS."""
        return not self.enforced.isdisjoint({"limits", "safe", "all"})

    def with_parents(self, account: str) -> tuple[str, ...]:
        """An account and those above it, whose limits hold for its jobs too.

        Example:
            >>> SiteFacts(parents=(("ml", "physics"), ("physics", "root"))).with_parents("ml")
            ('ml', 'physics', 'root')
        """
        parents, found = dict(self.parents), [account]
        while (parent := parents.get(found[-1])) is not None and parent not in found:
            found.append(parent)
        return tuple(found)

    def associations_for(self, account: str | None, partitions: Collection[str]) -> tuple[Association, ...]:
        """The rights of the user under an account that hold in one of some partitions; of the default one if None."""
        return tuple(
            entry
            for entry in self.associations
            if (entry.account == account or (account is None and entry.is_default))
            and (entry.partition is None or entry.partition in partitions)
        )


def distinct(names: Iterable[str]) -> tuple[str, ...]:
    """The names, each once, in their order."""
    return tuple(dict.fromkeys(names))
