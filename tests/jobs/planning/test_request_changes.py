"""The changes of a request that `sweep retry` makes."""

from __future__ import annotations

from typing import Any

import pytest

from disttrain.errors import UserError
from jobs.planning.allocation import Allocation
from jobs.planning.cluster import Cluster
from jobs.planning.cluster_profile import ClusterProfile
from jobs.planning.plan import slurm_parameters
from jobs.planning.request_changes import NO_CHANGES, RequestChanges


def site(**profile: Any) -> Cluster:
    large = ClusterProfile.model_validate({**profile, "time": "90", "partition": "large"})
    allocation = Allocation(2, 2)
    return Cluster("site", "slurm", ClusterProfile.model_validate(profile), {allocation: large})


def profiles(cluster: Cluster) -> list[ClusterProfile]:
    assert cluster.profile is not None
    return [cluster.profile, *cluster.by_allocation.values()]


def test_every_allocation_gets_the_changes() -> None:
    changes = RequestChanges(("node17", "node[18-19]"), "2:00:00", 48.5, "big")
    for profile in profiles(changes.apply(site(sbatch={"nice": 5}))):
        assert (profile.time_min, profile.memory_gb_per_gpu, profile.partition) == (120, 48.5, "big")
        assert profile.sbatch == {"nice": 5, "exclude": "node17,node[18-19]"}
    assert str(changes) == (
        "--time 2:00:00 --memory-gb-per-gpu 48.5 --partition big --exclude node17 --exclude node[18-19]"
    )


def test_without_changes_the_cluster_is_the_same() -> None:
    local = Cluster("local", "local")
    assert NO_CHANGES.apply(local) is local
    cluster = site()
    assert (NO_CHANGES.apply(cluster) is cluster, str(NO_CHANGES)) == (True, "")


@pytest.mark.parametrize(("before", "after"), [("n1,n2", "n1,n2,n3"), (17, "17,n3"), (False, "n3"), ("n3", "n3")])
def test_excluded_nodes_add_to_those_of_the_profile(before: str | int | bool, after: str) -> None:
    for profile in profiles(RequestChanges(("n3",)).apply(site(sbatch={"exclude": before}))):
        assert profile.sbatch == {"exclude": after}


def test_memory_is_stronger_than_an_option_of_sbatch() -> None:
    (profile, _) = profiles(RequestChanges(memory_gb_per_gpu=64.0).apply(site(sbatch={"mem-per-cpu": "2G", "nice": 5})))
    parameters = slurm_parameters("s", Allocation(1, 2), profile)
    assert (parameters["mem"], parameters["additional_parameters"]) == (f"{128 * 1024}M", {"requeue": True, "nice": 5})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (RequestChanges(time="soon"), "--time: time is 'soon', not a time limit (write MM, HH:MM:SS or D-HH:MM:SS"),
        (RequestChanges(time=""), "--time: time"),
        (RequestChanges(memory_gb_per_gpu=0.0), "--memory-gb-per-gpu: memory_gb_per_gpu is 0"),
        (RequestChanges(partition="$PART"), "--partition: partition is '$PART'; the variable $PART is not expanded"),
        (RequestChanges(("n[1-",)), "--exclude: 'n[1-' is not a Slurm hostlist"),
        (RequestChanges((" ",)), "--exclude: ' ' names no node (for example --exclude node17)"),
        (RequestChanges(("$NODE",)), "--exclude: sbatch.exclude is '$NODE'; the variable $NODE is not expanded"),
    ],
)
def test_a_wrong_value(changes: RequestChanges, message: str) -> None:
    with pytest.raises(UserError) as error:
        changes.apply(site())
    assert str(error.value).startswith(message)


def test_the_local_executor_has_no_request() -> None:
    with pytest.raises(UserError) as error:
        RequestChanges(("n1",), "30").apply(Cluster("local", "local"))
    message = "cluster 'local' has no Slurm, so --time 30 --exclude n1 would change nothing (leave it out)"
    assert str(error.value) == message
