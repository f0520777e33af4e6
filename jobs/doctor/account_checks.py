"""The checks of an account: that the user has it, its QOS, and the hours that are left in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from jobs.doctor.finding import Finding, Level, fail, note, ok, warn
from jobs.doctor.wanted import Wanted
from jobs.planning.allocation import Allocation
from jobs.planning.cluster_profile import ClusterProfile
from jobs.site.site_facts import Association, Balance, SiteFacts

_CHECK = "account"


def check_account(
    site: SiteFacts, profile: ClusterProfile, allocations: Sequence[Allocation] = (), run_count: int = 0
) -> Iterator[Finding]:
    """The user may run jobs under the account and the QOS of a profile, as large and as many as these.

    Args:
        site: The facts about the site.
        profile: What the jobs request.
        allocations: The allocations that request it.
        run_count: The number of their runs.
    """
    if site.accounting is False or any(unknown.what == "accounts" for unknown in site.unknown):
        return
    account = profile.account or site.default_account
    fix = f"set account to one of: {', '.join(site.accounts)}"
    if not site.accounts:
        if site.needs_association:
            yield fail(_CHECK, "you have no account on this cluster", "ask your site for one")
        return
    if account is None:
        yield fail(_CHECK, "you have no default account", fix)
        return
    if account not in site.accounts:
        text = f"you have no association with the account {account!r}"
        if site.needs_association:
            yield fail(_CHECK, text, fix)
        else:
            yield warn(_CHECK, f"{text}; this site does not enforce it", fix)
        return
    own = site.associations_for(account, partition_names(site, profile))
    allowed = {name for entry in own for name in entry.qos}
    if profile.qos is not None and allowed and profile.qos not in allowed:
        text = f"the account {account!r} may not use the QOS {profile.qos!r}"
        yield fail(_CHECK, text, f"set qos to one of: {', '.join(sorted(allowed))}")
        return
    yield ok(_CHECK, f"{account}" if profile.account else f"{account}, your default")
    if site.enforces_limits:
        yield from _check_limits(site, profile, own, allocations, run_count)


def partition_names(site: SiteFacts, profile: ClusterProfile) -> tuple[str, ...]:
    """The partitions in which the jobs may run; empty if the site has no default."""
    if profile.partition:
        return tuple(profile.partition.split(","))
    return (site.default_partition.name,) if site.default_partition else ()


def _check_limits(
    site: SiteFacts,
    profile: ClusterProfile,
    own: Sequence[Association],
    allocations: Sequence[Allocation],
    run_count: int,
) -> Iterator[Finding]:
    """No job has more GPUs than its QOS gives a user, and no limit holds some of the jobs back."""
    name = profile.qos or next((entry.default_qos for entry in own if entry.default_qos), None)
    qos = next((entry for entry in site.qos if entry.name == name), None)
    most = dict(qos.max_tres_of_user).get("gres/gpu") if qos else None
    for allocation in allocations:
        if most is not None and profile.gpu_request != "none" and allocation.world_size > most:
            text = f"{allocation} has {allocation.world_size} GPUs; the QOS {name} gives a user {most}: it never starts"
            yield fail(_CHECK, text, "choose smaller allocations, or another qos")
    limits = [(f"the account {entry.account}", entry.max_submit) for entry in own]
    if qos is not None:
        limits.append((f"the QOS {qos.name}", qos.max_submit))
    for whose, jobs in limits:
        if jobs is not None and run_count > jobs:
            text = f"{run_count} runs are more than the {jobs} jobs that {whose} accepts at the same time"
            yield note(_CHECK, text, "submit again for the rest, or use sweep submit --wait")


def check_balance(
    site: SiteFacts, profile: ClusterProfile, allocations: Sequence[Allocation], wanted: Wanted
) -> Iterator[Finding]:
    """The minutes that are left in the account are enough for a run, and for all runs of the sweep at their limits.

    Args:
        site: The facts about the site.
        profile: What the jobs request.
        allocations: The allocations that request it.
        wanted: What is checked for, with the number of runs.
    """
    account = profile.account or site.default_account
    if account is None:
        return
    fix = "ask your site for more hours, or set a shorter time"
    if others := [name for name in site.accounts if name != account]:
        fix += f", or set account to one of: {', '.join(others)}"
    for balance in site.balances:
        used_units = [_units(balance.resource, allocation, profile) for allocation in allocations]
        if balance.account not in site.with_parents(account) or not any(unit != 0 for unit in used_units):
            continue
        units = [unit or 0 for unit in used_units]
        largest_min = max(units) * profile.time_min
        counts = [dict(wanted.run_counts).get(allocation, 0) for allocation in allocations]
        total_min = sum(count * unit * profile.time_min for count, unit in zip(counts, units, strict=True))
        level, text = _judge(balance, largest_min, total_min)
        if level > Level.OK and not site.enforces_limits:
            yield note("hours", f"{text}; this site does not enforce it")
        else:
            yield Finding(level, "hours", text, fix if level > Level.OK else None)


def _judge(balance: Balance, largest_min: float, total_min: float) -> tuple[Level, str]:
    """How bad it is that this is left, and what is left."""
    whose = balance.account if balance.user is None else f"{balance.account}, user {balance.user}"
    text = f"{whose}: {_hours(balance.used_min)} of {_hours(balance.limit_min)} hours of {balance.resource} are used"
    if balance.left_min == 0:
        return Level.FAIL, f"{text} up, so no job starts"
    if balance.left_min < largest_min:
        return Level.FAIL, f"{text}; one run may need {_hours(largest_min)}, so it may not start"
    if balance.left_min < total_min:
        return Level.WARN, f"{text}; all runs may need {_hours(total_min)} at their time limits"
    return Level.OK, text


def _units(resource: str, allocation: Allocation, profile: ClusterProfile) -> int | None:
    """How many of a resource a run of an allocation uses; None of one that each run uses, but no request says.

    Example:
        >>> profile = ClusterProfile.model_validate({"cpus_per_gpu": 8})
        >>> [_units(name, Allocation(2, 2), profile) for name in ("gres/gpu", "cpu", "gres/gpumem", "billing")]
        [4, 32, 0, None]
    """
    if resource in ("billing", "mem"):
        return None
    gpus = 0 if profile.gpu_request == "none" else allocation.world_size
    known = {
        "gres/gpu": gpus,
        f"gres/gpu:{profile.gpu_type}": gpus,
        "cpu": allocation.world_size * profile.cpus_per_gpu,
        "node": allocation.nodes,
    }
    return known.get(resource, 0)


def _hours(minutes: float) -> str:
    """Minutes as hours.

    Example:
        >>> _hours(90), _hours(6000)
        ('1.5', '100')
    """
    return f"{minutes / 60:.4g}"
