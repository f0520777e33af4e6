"""The checks without a job: what Slurm, the environment and the disk say about the requests of a sweep."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from jobs.doctor.account_checks import check_account, check_balance
from jobs.doctor.disk_checks import DiskFacts, check_disk
from jobs.doctor.finding import Finding, fail, note, ok, warn
from jobs.doctor.partition_checks import check_array_size, check_partition
from jobs.doctor.wanted import Wanted
from jobs.planning.allocation import Allocation
from jobs.planning.cluster import Cluster
from jobs.planning.cluster_profile import ClusterProfile
from jobs.site.site_facts import SiteFacts
from jobs.slurm.submit import SUBMIT_LIMIT, UNCLEAR

_EXPECTED = re.compile(r"Job \d+ to start at (\S+) using (\d+) processors on nodes (\S+) in partition (\S+)")
_OLDEST = (20, 11)
# srun of these releases does not take --cpus-per-task over from sbatch.
_WITHOUT_CPUS = ((22, 5), (23, 2))


@dataclass(frozen=True)
class Answer:
    """What ``sbatch --test-only`` says of a request.

    Attributes:
        accepted: Whether Slurm would accept it.
        text: When and where it would start, or why it is refused.
    """

    accepted: bool
    text: str


@dataclass(frozen=True)
class EnvironmentFacts:
    """The variables of the shell that concern jobs.

    Attributes:
        leaked: The variables of a job, a step or a launcher around this shell, or that contradict a request.
        passed_on: The variables of srun that are no part of a request: srun reads them in the job.
        overruled: The SBATCH_ variables that the profile or sweep overrules.
        other_cluster: The error if variables name another cluster; None if not.
    """

    leaked: tuple[str, ...] = ()
    passed_on: Mapping[str, str] = field(default_factory=dict)
    overruled: tuple[str, ...] = ()
    other_cluster: str | None = None


@dataclass(frozen=True)
class LoginFacts:
    """What is known on the login node."""

    site: SiteFacts
    environment: EnvironmentFacts
    disk: DiskFacts
    answers: Mapping[Allocation, Answer] = field(default_factory=dict)


def check_login(facts: LoginFacts, cluster: Cluster, wanted: Wanted) -> Iterator[Finding]:
    """All checks without a job on a Slurm cluster.

    Args:
        facts: What is known.
        cluster: The cluster with the changes of the sweep.
        wanted: What is checked for.
    """
    yield check_slurm(facts.site)
    yield from check_accounting(facts.site)
    profiles = {allocation: cluster.profile_for(allocation) for allocation in wanted.allocations}
    for profile in distinct_profiles(profiles):
        allocations = tuple(allocation for allocation in wanted.allocations if profiles[allocation] == profile)
        is_accepted = all(name in facts.answers and facts.answers[name].accepted for name in allocations)
        yield from check_partition(facts.site, profile, allocations, is_accepted=is_accepted)
        yield from check_array_size(facts.site, profile)
        run_count = sum(count for allocation, count in wanted.run_counts if allocation in allocations)
        yield from check_account(facts.site, profile, allocations, run_count)
        yield from check_balance(facts.site, profile, allocations, wanted)
    yield from check_requests(facts)
    yield from check_environment(facts.environment)
    yield from check_disk(facts.disk)
    for unknown in facts.site.unknown if facts.site.is_reachable else ():
        yield note(
            "slurm", f"{unknown.what}: not known, {unknown.reason}", f"ask your site what {unknown.command} says"
        )


def distinct_profiles(profiles: Mapping[Allocation, ClusterProfile | None]) -> list[ClusterProfile]:
    """The profiles, each once, in their order."""
    found: list[ClusterProfile] = []
    for profile in profiles.values():
        if profile is not None and profile not in found:
            found.append(profile)
    return found


def check_slurm(site: SiteFacts) -> Finding:
    """Slurm answers, and its release is known to work."""
    if site.release is None and site.is_reachable:
        return note("slurm", "scontrol show config has no answer: the release and limits of the site are not known")
    if site.release is None:
        reason = "".join(f": {unknown.reason}" for unknown in site.unknown[:1])
        fix = "repeat it; scontrol ping says whether Slurm is down"
        return fail("slurm", f"the controller does not answer{reason}", fix)
    name = site.cluster_name or "without a name"
    text = f"Slurm {site.release}, cluster {name}"
    release = parse_release(site.release)
    if release is not None and release < _OLDEST:
        return warn("slurm", f"{text}: older than the releases that sweep is tested with", "run one small sweep first")
    if release is not None and _WITHOUT_CPUS[0] <= release <= _WITHOUT_CPUS[1]:
        text += "; srun of this release ignores --cpus-per-task, so sweep gives it -c"
    return ok("slurm", text)


def parse_release(text: str) -> tuple[int, int] | None:
    """The two numbers that name a release of Slurm; None if the text has none.

    Example:
        >>> parse_release("22.05.8"), parse_release("24.11.0-1~rc1"), parse_release("unknown")
        ((22, 5), (24, 11), None)
    """
    match = re.match(r"(\d+)\.(\d+)", text)
    if match is None:
        return None
    return int(match[1]), int(match[2])


def check_accounting(site: SiteFacts) -> Iterator[Finding]:
    """sacct has an answer for jobs that have ended."""
    if site.accounting is False:
        yield warn(
            "accounting",
            "Slurm stores no accounting, so a job that squeue no longer lists has no final state from Slurm",
            "use sweep wait or sweep submit --wait, which see the ends of the jobs",
        )
    elif site.accounting:
        yield ok("accounting", "sacct has the ends of jobs")
    if site.accounting and site.counts_gpus is False:
        text = "sacct does not count GPUs (AccountingStorageTRES): the results count those that a run requests"
        yield note("accounting", text)


def parse_test_only(status: int, output: str) -> Answer:
    """What ``sbatch --test-only`` has printed, from its exit status and its output.

    Example:
        >>> parse_test_only(0, "sbatch: Job 12 to start at 2026-11-30 using 4 processors on nodes n1 in partition g")
        Answer(accepted=True, text='would start at 2026-11-30 on n1')
        >>> parse_test_only(1, "allocation failure: Invalid qos specification")
        Answer(accepted=False, text='Invalid qos specification')
    """
    if match := _EXPECTED.search(output):
        return Answer(True, f"would start at {match[1]} on {match[3]}")
    lines = [re.sub(r"^(?:sbatch: |error: |allocation failure: )+", "", line) for line in output.splitlines()]
    text = "; ".join(line for line in lines if line) or "no reason given"
    if status == 0:
        return Answer(True, f"is accepted ({text})")
    return Answer(False, text)


def check_requests(facts: LoginFacts) -> Iterator[Finding]:
    """Slurm would accept the request of each allocation."""
    for allocation, answer in facts.answers.items():
        if answer.accepted:
            yield ok(f"request {allocation}", f"sbatch accepts it: it {answer.text}")
        else:
            yield fail(f"request {allocation}", f"sbatch refuses it: {answer.text}", _fix_request(answer.text))


def _fix_request(reason: str) -> str:
    """The key of the profile to change after a refusal of sbatch."""
    if UNCLEAR.search(reason) or "no answer" in reason:
        return "repeat it: Slurm gave no clear answer"
    if SUBMIT_LIMIT.search(reason):
        return "wait until fewer of your jobs are in the queue"
    keys = {
        "accounting/qos policy": "qos, account or time", "account": "account", "partition": "partition", "qos": "qos",
        "time": "time", "constraint": "constraint", "feature": "constraint",
        "node": "gpu_type, cpus_per_gpu and memory_gb_per_gpu", "gres": "gpu_type",
        "reservation": "sbatch: {reservation: NAME}",
    }  # fmt: skip
    for word, key in keys.items():
        if word in reason.lower():
            return f"change {key} in the profile; sweep plan FILE --scripts shows the request"
    return "change the profile; sweep plan FILE --scripts shows the request"


def check_environment(environment: EnvironmentFacts) -> Iterator[Finding]:
    """The shell has no variables that change jobs by mistake."""
    if environment.other_cluster is not None:
        yield fail("variables", environment.other_cluster, "submit from a login node of that cluster, or unset it")
    if environment.leaked:
        yield warn(
            "variables",
            f"the shell has variables of another job or launcher: {_listed(environment.leaked)};"
            " sweep hides them from its jobs, your own sbatch and srun do not",
            f"unset {' '.join(environment.leaked[:5])}, or use a new login shell",
        )
    if environment.passed_on:
        settings = ", ".join(f"{name}={value}" for name, value in environment.passed_on.items())
        yield warn(
            "variables",
            f"srun reads {settings} in each job",
            f"unset {' '.join(environment.passed_on)} if you did not set it on purpose",
        )
    if environment.overruled:
        text = f"the profile or the sweep overrules {_listed(environment.overruled)}"
        yield note("variables", text, "unset them to avoid doubt")
    if not (environment.leaked or environment.passed_on or environment.other_cluster):
        yield ok("variables", "no variable of another job is set")


def _listed(names: tuple[str, ...]) -> str:
    """The first names of a list, and how many more there are.

    Example:
        >>> _listed(("A", "B")), _listed(tuple("ABCDEFGH"))
        ('A, B', 'A, B, C, D, E and 3 more')
    """
    text = ", ".join(names[:5])
    if len(names) > 5:
        text += f" and {len(names) - 5} more"
    return text
