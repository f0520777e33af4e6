"""The checks of an account: that the user has it, its QOS, and the hours that are left in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from jobs.doctor.finding import Finding, fail, ok, warn
from jobs.doctor.wanted import Wanted
from jobs.planning.allocation import Allocation
from jobs.planning.cluster_profile import ClusterProfile
from jobs.site.site_facts import SiteFacts

_CHECK = "account"


def check_account(site: SiteFacts, profile: ClusterProfile) -> Iterator[Finding]:
    """The user may run jobs under the account and the QOS of a profile.

    Args:
        site: The facts about the site.
        profile: What the jobs request.
    """
    if site.accounting is False or any(unknown.what == "accounts" for unknown in site.unknown):
        return
    account = _account(site, profile)
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
    own = [entry for entry in site.associations if entry.account == account]
    allowed = {name for entry in own for name in entry.qos}
    if profile.qos is not None and allowed and profile.qos not in allowed:
        text = f"the account {account!r} may not use the QOS {profile.qos!r}"
        yield fail(_CHECK, text, f"set qos to one of: {', '.join(sorted(allowed))}")
        return
    yield ok(_CHECK, f"{account}" if profile.account else f"{account}, your default")


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
    account = _account(site, profile)
    counts = dict(wanted.run_counts)
    for balance in site.balances:
        units = [_units(balance.resource, allocation, profile) for allocation in allocations]
        if balance.account != account or not any(units):
            continue
        largest_min = max(units) * profile.time_min
        total_min = sum(
            counts.get(allocation, 0) * unit * profile.time_min
            for allocation, unit in zip(allocations, units, strict=True)
        )
        fix = f"ask for more, shorten time, or use another account: {', '.join(site.accounts)}"
        used = f"{_hours(balance.used_min)} of {_hours(balance.limit_min)} hours of {balance.resource}"
        whose = f"{account}" if balance.user is None else f"{account}, user {balance.user}"
        if balance.left_min == 0:
            yield fail("hours", f"{whose}: {used} are used up, so no job starts", fix)
        elif balance.left_min < largest_min:
            text = f"{whose}: {used} are used; one run may need {_hours(largest_min)}, so it may not start"
            yield fail("hours", text, fix)
        elif balance.left_min < total_min:
            text = f"{whose}: {used} are used; all runs may need {_hours(total_min)} at their time limits"
            yield warn("hours", text, fix)
        else:
            yield ok("hours", f"{whose}: {used} are used")


def _account(site: SiteFacts, profile: ClusterProfile) -> str | None:
    """The account of the jobs; None if the profile names none and the user has no default."""
    if profile.account is not None:
        return profile.account
    return next((entry.account for entry in site.associations if entry.is_default), None)


def _units(resource: str, allocation: Allocation, profile: ClusterProfile) -> int:
    """How many of a resource a run of an allocation uses; 0 of one that no request says.

    Example:
        >>> profile = ClusterProfile.model_validate({"cpus_per_gpu": 8})
        >>> [_units(name, Allocation(2, 2), profile) for name in ("gres/gpu", "cpu", "node", "billing")]
        [4, 32, 2, 0]
    """
    if resource.startswith("gres/gpu"):
        return 0 if profile.gpu_request == "none" else allocation.world_size
    return {"cpu": allocation.world_size * profile.cpus_per_gpu, "node": allocation.nodes}.get(resource, 0)


def _hours(minutes: float) -> str:
    """Minutes as hours.

    Example:
        >>> _hours(90), _hours(6000)
        ('1.5', '100')
    """
    return f"{minutes / 60:.4g}"
