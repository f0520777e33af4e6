"""What is learned of a site from the answers of Slurm's commands, and what is not."""

from __future__ import annotations

import pytest

from jobs.planning.allocation import Allocation
from jobs.site.query_site import query_site
from jobs.site.site_facts import Association, Balance, GpuKind, NodeKind, Partition, Qos, SiteFacts, Unknown
from tests.jobs.site.answers import Site


def facts_of(site: Site) -> SiteFacts:
    return query_site(environ={}, user="alice", run=site)


def test_the_configuration() -> None:
    facts = facts_of(Site())
    assert (facts.release, facts.cluster_name, facts.max_array_size) == ("22.05.8", "site", 1001)
    assert (facts.accounting, facts.job_requeue) == (True, True)
    assert facts.needs_association
    assert facts.unknown == ()


def test_partitions_with_their_nodes_and_limits() -> None:
    facts = facts_of(Site())
    assert [partition.name for partition in facts.partitions] == ["cpu", "gpu", "dev", "old"]
    assert facts.default_partition is facts.partition("cpu")
    assert facts.partition("gpu") == Partition(
        "gpu",
        max_time_min=2880,
        node_kinds=(
            NodeKind(3, 2, 64, 512000, (GpuKind("a100", 4),)),
            NodeKind(1, 1, 96, 768000, (GpuKind("h100", 8),)),
        ),
        min_nodes=1,
        max_nodes=2,
        allowed_accounts=frozenset({"ml", "vision"}),
        allowed_qos=frozenset({"normal", "long"}),
        whole_nodes=True,
        preempt_mode="OFF",
    )
    dev, old = facts.partition("dev"), facts.partition("old")
    assert dev is not None
    assert old is not None
    assert dev.needs_reservation
    assert not dev.accepts_account("guest")
    assert (old.is_up, old.nodes, old.max_time_min) == (False, 0, None)


@pytest.mark.parametrize(
    ("allocation", "gpu_type", "is_possible"),
    [
        ("2x4", "a100", True),
        ("1x8", None, True),
        ("1x8", "a100", False),
        ("2x8", None, False),
        ("3x4", None, False),  # MaxNodes is 2
        ("1x1", "v100", False),
    ],
)
def test_what_a_partition_can_give(allocation: str, gpu_type: str | None, is_possible: bool) -> None:
    partition = facts_of(Site()).partition("gpu")
    assert partition is not None
    assert partition.can_give(Allocation.parse(allocation), gpu_type) is is_possible


def test_gpu_types_and_counts() -> None:
    partition = facts_of(Site()).partition("gpu")
    assert partition is not None
    assert partition.gpu_types == ("a100", "h100")
    assert (partition.count_gpus(), partition.count_gpus("h100")) == (20, 8)


def test_accounts_of_this_cluster_only() -> None:
    facts = facts_of(Site())
    assert facts.accounts == ("ml", "vision")
    assert facts.associations[0] == Association("vision", qos=("normal",), max_time_min=1440)
    assert facts.associations[1].max_submit == 100
    assert facts.qos == (Qos("normal"), Qos("long", 10080, 20, (("gres/gpu", 8),), overrules_partition=True))


def test_what_is_left_in_the_accounts() -> None:
    facts = facts_of(Site())
    assert facts.balances == (
        Balance("ml", None, "gres/gpu", 600, 590),
        Balance("ml", "alice", "gres/gpu", 60, 70),
        Balance("physics", None, "billing", 50, 50),
    )
    assert [balance.left_min for balance in facts.balances] == [10, 0, 0]
    assert facts.with_parents("ml") == ("ml", "physics", "root")


def test_forbidden_commands_are_noted() -> None:
    site = Site(forbidden=["sacctmgr"])
    facts = facts_of(site)
    assert facts.associations == ()
    assert [unknown.what for unknown in facts.unknown] == ["accounts", "QOS"]
    assert facts.unknown[1] == Unknown(
        "QOS", site.asked[-1], "sacctmgr failed: sacctmgr: error: Access/permission denied"
    )
    assert facts.partitions


def test_a_site_without_accounting_is_not_asked_for_accounts() -> None:
    site = Site(**{"scontrol show config": "ClusterName = c\nAccountingStorageType = (null)\nJobRequeue = 0\n"})
    facts = facts_of(site)
    assert (facts.accounting, facts.job_requeue) == (False, False)
    assert not any(command.startswith("sacctmgr") for command in site.asked)
    assert not facts.needs_association


def test_nothing_answers() -> None:
    facts = facts_of(Site(forbidden=["s"]))
    assert facts.partitions == ()
    assert (facts.accounting, facts.job_requeue, facts.max_array_size) == (None, None, None)
    assert {unknown.what for unknown in facts.unknown} == {
        "limits and requeue",
        "partitions and GPUs",
        "accounts",
        "QOS",
    }
