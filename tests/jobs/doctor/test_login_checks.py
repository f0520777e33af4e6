"""What the doctor concludes on the login node, without a job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from jobs.doctor.account_checks import check_account, check_balance
from jobs.doctor.ask_login import environment_facts
from jobs.doctor.disk_checks import DiskFacts, check_disk
from jobs.doctor.finding import Finding, Level
from jobs.doctor.login_checks import (
    Answer,
    EnvironmentFacts,
    LoginFacts,
    check_accounting,
    check_environment,
    check_login,
    check_requests,
    check_slurm,
    parse_test_only,
)
from jobs.doctor.partition_checks import check_array_size, check_partition
from jobs.doctor.wanted import Wanted
from jobs.planning.allocation import Allocation
from jobs.planning.cluster import Cluster
from jobs.planning.cluster_profile import ClusterProfile
from jobs.site.site_facts import Association, Balance, GpuKind, NodeKind, Partition, Qos, SiteFacts, Unknown

SINGLE, TWO = Allocation(1, 1), Allocation(2, 2)
NODES = (NodeKind(2, 2, 16, 10_000, (GpuKind("h100", 4),)),)
GPU = Partition("gpu", is_default=True, node_kinds=NODES, max_time_min=120)
CPU = Partition("cpu", node_kinds=(NodeKind(4, 4, 16, 10_000),))
SITE = SiteFacts(
    release="22.05.8",
    cluster_name="site",
    partitions=(GPU, CPU),
    max_array_size=1001,
    accounting=True,
    enforced=frozenset({"associations", "limits"}),
    associations=(Association("ml", is_default=True, qos=("normal",)), Association("vision")),
    qos=(Qos("normal", max_time_min=60),),
)


def profile(**values: Any) -> ClusterProfile:
    return ClusterProfile.model_validate(values)


def change(**values: Any) -> SiteFacts:
    return SiteFacts(**{**vars(SITE), **values})


def partition(site: SiteFacts = SITE, **values: Any) -> list[Finding]:
    return list(check_partition(site, profile(**values), (SINGLE, TWO)))


def test_healthy_site_has_no_fix() -> None:
    facts = LoginFacts(SITE, EnvironmentFacts(), DiskFacts("/runs", 10**12), {SINGLE: Answer(True, "would start now")})
    findings = list(check_login(facts, Cluster("site", "slurm", profile()), Wanted((SINGLE, TWO))))
    assert {finding.level for finding in findings} == {Level.OK}
    assert [finding.check for finding in findings] == [
        "slurm", "accounting", "partition", "account", "request 1x1", "variables", "locks", "disk",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("values", "text", "fix"),
    [
        ({"partition": "gpux"}, "there is no partition 'gpux'", "set partition to one of: gpu, cpu"),
        ({"partition": "cpu"}, "Slurm counts no GPUs in cpu", "choose a partition with GPUs, or set gpu_request: none"),
        ({"gpu_type": "a100"}, "gpu has no GPUs of type 'a100'", "set gpu_type to: h100"),
        ({"cpus_per_gpu": 9}, "2x2 requests 18 CPUs of each node, which has 16", "set cpus_per_gpu: 8"),
    ],
)
def test_partition_that_cannot_run_it(values: Mapping[str, Any], text: str, fix: str) -> None:
    (finding,) = partition(**values)
    assert (finding.level, finding.text, finding.fix) == (Level.FAIL, text, fix)


def test_partition_without_enough_nodes() -> None:
    (finding,) = check_partition(SITE, profile(), (Allocation(4, 1),))
    assert finding.text == "gpu cannot give 4x1: 2 nodes with at most 4 GPUs"
    drained = Partition("gpu", is_default=True, node_kinds=(NodeKind(2, 1, 16, 10_000, (GpuKind("h100", 4),)),))
    (finding,) = partition(change(partitions=(drained,)))
    assert (finding.level, finding.check) == (Level.WARN, "partition")


def test_memory_of_a_node() -> None:
    (finding,) = partition(change(counts_memory=True), memory_gb_per_gpu=6.0)
    assert finding.text == "2x2 requests 12 GB of each node, which has 9.766"
    assert finding.fix == "set memory_gb_per_gpu: 4"
    assert partition(memory_gb_per_gpu=6.0)[0].level is Level.OK


def test_site_without_gpus_per_node() -> None:
    (finding,) = partition(change(shares_gpus_by_tres=False))
    assert finding.fix == "set gpu_request: gres"
    assert partition(change(shares_gpus_by_tres=False), gpu_request="gres")[0].level is Level.OK


def test_nodes_are_not_checked_without_gpus() -> None:
    (finding,) = partition(partition="cpu", gpu_request="none")
    assert finding.level is Level.OK


def test_partition_that_refuses_the_user() -> None:
    closed = Partition(
        "gpu", is_default=True, is_up=False, node_kinds=NODES, allowed_accounts=frozenset({"vision"}),
        denied_qos=frozenset({"low"}), needs_reservation=True,
    )  # fmt: skip
    findings = partition(change(partitions=(closed,)), qos="low")
    assert [finding.text for finding in findings] == [
        "gpu is not up",
        "gpu does not accept the account 'ml'",
        "gpu does not accept the QOS 'low'",
        "gpu needs a reservation",
    ]
    assert findings[1].fix == "set account to one of: vision"


@pytest.mark.parametrize(
    ("values", "name"), [({"time": "3:00:00"}, "partition gpu"), ({"qos": "normal", "time": "90"}, "QOS normal")]
)
def test_too_long_a_time(values: Mapping[str, Any], name: str) -> None:
    (finding,) = partition(**values)
    assert (finding.level, finding.check) == (Level.FAIL, "time")
    assert f"is over that of the {name}" in finding.text
    assert partition(time="2:00:00")[0].level is Level.OK


def test_no_default_partition() -> None:
    (finding,) = partition(change(partitions=(CPU,)))
    assert (finding.text, finding.fix) == ("the site has no default partition", "set partition to one of: cpu")


def test_account() -> None:
    (finding,) = check_account(SITE, profile(account="other"))
    assert (finding.level, finding.text) == (Level.FAIL, "you have no association with the account 'other'")
    assert finding.fix == "set account to one of: ml, vision"
    (finding,) = check_account(change(enforced=frozenset()), profile(account="other"))
    assert finding.level is Level.WARN
    (finding,) = check_account(SITE, profile(account="ml", qos="high"))
    assert finding.text == "the account 'ml' may not use the QOS 'high'"
    (finding,) = check_account(change(associations=()), profile())
    assert finding.text == "you have no account on this cluster"
    unknown = (Unknown("accounts", "sacctmgr show user", "denied"),)
    assert not list(check_account(change(associations=(), unknown=unknown), profile()))


@pytest.mark.parametrize(
    ("used_min", "level"), [(600, Level.FAIL), (350, Level.FAIL), (300, Level.WARN), (0, Level.OK)]
)
def test_hours_in_the_account(used_min: int, level: Level) -> None:
    balance = Balance("ml", None, "gres/gpu", 600, used_min)
    wanted = Wanted((TWO,), run_counts=((TWO, 2),))
    findings = list(check_balance(change(balances=(balance,)), profile(time="75"), (TWO,), wanted))
    assert [finding.level for finding in findings] == [level]
    other = Balance("vision", None, "gres/gpu", 600, 600)
    assert not list(check_balance(change(balances=(other,)), profile(), (TWO,), wanted))


@pytest.mark.parametrize(
    ("balance", "values", "levels"),
    [
        (Balance("ml", None, "billing", 600, 600), {}, [Level.FAIL]),
        (Balance("ml", None, "mem", 600, 599), {}, [Level.OK]),
        (Balance("physics", None, "gres/gpu", 600, 600), {}, [Level.FAIL]),
        (Balance("ml", None, "gres/gpumem", 600, 600), {}, []),
        (Balance("ml", None, "gres/gpu:a100", 600, 600), {"gpu_type": "h100"}, []),
        (Balance("ml", None, "gres/gpu:h100", 600, 600), {"gpu_type": "h100"}, [Level.FAIL]),
    ],
)
def test_resource_that_is_used_up(balance: Balance, values: Mapping[str, Any], levels: list[Level]) -> None:
    site = change(balances=(balance,), parents=(("ml", "physics"),))
    found = check_balance(site, profile(**values), (TWO,), Wanted((TWO,)))
    assert [finding.level for finding in found] == levels


def test_hours_that_are_not_enforced_are_a_note() -> None:
    site = change(balances=(Balance("ml", None, "gres/gpu", 600, 600),), enforced=frozenset({"associations"}))
    (finding,) = check_balance(site, profile(), (TWO,), Wanted((TWO,)))
    assert finding.level is Level.NOTE


def test_limits_of_the_qos() -> None:
    site = change(qos=(Qos("normal", max_submit=10, max_tres_of_user=(("gres/gpu", 3),)),))
    _, *findings = check_account(site, profile(qos="normal"), (SINGLE, TWO), 11)
    assert [finding.level for finding in findings] == [Level.FAIL, Level.NOTE]
    assert findings[0].text == "2x2 has 4 GPUs; the QOS normal gives a user 3: it never starts"
    most = change(qos=(Qos("normal", max_tres_of_user=(("gres/gpu", 4),)),))
    assert len(list(check_account(most, profile(qos="normal"), (TWO,), 11))) == 1


def test_one_of_several_partitions_is_enough() -> None:
    (finding,) = partition(partition="cpu,gpu")
    assert finding.level is Level.OK
    (finding,) = partition(change(partitions=(CPU, Partition("gpu"))), partition="cpu,gpu")
    assert finding.text == "Slurm counts no GPUs in cpu"


def test_partition_that_only_sbatch_sees() -> None:
    (finding,) = check_partition(SITE, profile(partition="hidden"), (SINGLE,), is_accepted=True)
    assert finding.level is Level.NOTE
    reserved = Partition("gpu", is_default=True, node_kinds=NODES, needs_reservation=True)
    (finding,) = check_partition(change(partitions=(reserved,)), profile(), (SINGLE,), is_accepted=True)
    assert finding.level is Level.NOTE


def test_time_limits_that_do_not_hold() -> None:
    site = change(associations=(Association("ml", is_default=True, partition="cpu", max_time_min=10),))
    assert partition(site, time="60")[0].level is Level.OK
    site = change(qos=(Qos("long", overrules_partition=True),))
    assert partition(site, qos="long", time="3:00:00")[0].level is Level.OK


def test_silent_controller_is_one_finding() -> None:
    unknown = (Unknown("limits", "scontrol show config", "no route"), Unknown("partitions", "sinfo", "no route"))
    facts = LoginFacts(SiteFacts(unknown=unknown), EnvironmentFacts(), DiskFacts("/runs", 10**12))
    findings = check_login(facts, Cluster("site", "slurm", profile()), Wanted((SINGLE,)))
    (finding,) = (finding for finding in findings if finding.check == "slurm")
    assert (finding.level, finding.text) == (Level.FAIL, "the controller does not answer: no route")


def test_forbidden_configuration_is_a_note() -> None:
    assert check_slurm(SiteFacts(partitions=(GPU,))).level is Level.NOTE


@pytest.mark.parametrize(
    ("reason", "fix"),
    [
        ("Invalid account or account/partition combination specified", "change account in"),
        ("AssocMaxSubmitJobLimit; Job violates accounting/QOS policy", "wait until"),
        ("Socket timed out on send/recv operation", "repeat it"),
        ("sbatch gives no answer: it timed out after 60 seconds", "repeat it"),
    ],
)
def test_fix_of_a_refusal(reason: str, fix: str) -> None:
    facts = LoginFacts(SITE, EnvironmentFacts(), DiskFacts("/runs"), {SINGLE: Answer(False, reason)})
    (finding,) = check_requests(facts)
    assert finding.fix is not None
    assert finding.fix.startswith(fix)


def test_slurm_and_accounting() -> None:
    assert check_slurm(SiteFacts()).level is Level.FAIL
    assert check_slurm(change(release="19.05.1")).level is Level.WARN
    assert "srun of this release" in check_slurm(SITE).text
    assert "srun" not in check_slurm(change(release="24.11.5")).text
    (finding,) = check_accounting(change(accounting=False))
    assert finding.level is Level.WARN
    _, finding = check_accounting(change(counts_gpus=False))
    assert finding.level is Level.NOTE


def test_array_size() -> None:
    assert not list(check_array_size(SITE, profile(max_array_size=1000)))
    (finding,) = check_array_size(SITE, profile(max_array_size=1001))
    assert (finding.level, finding.fix) == (Level.NOTE, "set max_array_size: 1000")


def test_refused_request_names_the_key() -> None:
    answer = parse_test_only(1, "sbatch: error: Batch job submission failed\nallocation failure: Invalid qos")
    facts = LoginFacts(SITE, EnvironmentFacts(), DiskFacts("/runs"), {SINGLE: answer})
    findings = list(check_login(facts, Cluster("site", "slurm", profile()), Wanted((SINGLE,))))
    (finding,) = (finding for finding in findings if finding.check == "request 1x1")
    assert finding.text == "sbatch refuses it: Batch job submission failed; Invalid qos"
    assert finding.fix == "change qos in the profile; sweep plan FILE --scripts shows the request"


def test_what_could_not_be_learned_is_a_note() -> None:
    facts = LoginFacts(
        change(unknown=(Unknown("QOS", "sacctmgr show qos", "sacctmgr failed: denied"),)),
        EnvironmentFacts(),
        DiskFacts("/runs"),
    )
    *_, finding = check_login(facts, Cluster("site", "slurm", profile()), Wanted((SINGLE,)))
    assert (finding.level, finding.text) == (Level.NOTE, "QOS: not known, sacctmgr failed: denied")


def test_leaked_variables() -> None:
    environ = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_CONF": "/etc/slurm.conf", "HOME": "/root"}
    facts = environment_facts(environ, (), SITE)
    assert facts.leaked == ("SLURM_JOB_ID", "SLURM_NTASKS")
    (finding,) = check_environment(facts)
    assert finding.level is Level.WARN
    assert finding.fix == "unset SLURM_JOB_ID SLURM_NTASKS, or use a new login shell"


def test_variable_that_srun_reads_in_jobs() -> None:
    (finding,) = check_environment(environment_facts({"SLURM_CPU_BIND": "none", "SLURM_ROOT": "/opt/slurm"}, (), SITE))
    assert finding.text == "srun reads SLURM_CPU_BIND=none in each job"


def test_variables_that_name_another_cluster() -> None:
    (finding,) = check_environment(environment_facts({"SLURM_CLUSTERS": "other"}, (), SITE))
    assert (finding.level, finding.text) == (
        Level.FAIL,
        "SLURM_CLUSTERS is 'other', but this host submits to cluster 'site'",
    )


def test_overruled_variables_are_a_note() -> None:
    first, second = check_environment(environment_facts({}, ("SBATCH_ACCOUNT",), SITE))
    assert (first.level, second.level) == (Level.NOTE, Level.OK)


@pytest.mark.parametrize(
    ("facts", "check", "level"),
    [
        (DiskFacts("/r", write_error="No space left on device"), "disk", Level.FAIL),
        (DiskFacts("/r", 10**10, lock_error="Operation not supported"), "locks", Level.FAIL),
        (DiskFacts("/r", 10**9, expected_bytes=2 * 10**9), "disk", Level.FAIL),
        (DiskFacts("/r", 10**9, expected_bytes=10**8, quota_bytes=10**7), "disk", Level.FAIL),
        (DiskFacts("/r", 10**8), "disk", Level.WARN),
        (DiskFacts("/r", 10**10, 100), "disk", Level.WARN),
    ],
)
def test_disk(facts: DiskFacts, check: str, level: Level) -> None:
    worst = max(check_disk(facts), key=lambda finding: finding.level)
    assert (worst.check, worst.level) == (check, level)
    assert worst.fix
