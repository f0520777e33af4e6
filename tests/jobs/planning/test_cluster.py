"""The cluster that `--cluster` names, and the changes of a sweep to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from disttrain.errors import UserError
from jobs.planning.allocation import Allocation
from jobs.planning.cluster import Cluster, find_cluster, with_changes
from jobs.planning.cluster_profile import ClusterProfile, override
from jobs.planning.sweep_file import Sweep, parse_sweep
from jobs.planning.yaml_file import parse_yaml

SITE = Cluster("site", "slurm", ClusterProfile.model_validate({"partition": "gpu", "sbatch": {"nice": 5}}))


def sweep_of(slurm: str) -> Sweep:
    text = f"name: s\nallocations: [1x1, 2x2]\nbase: {{model: bert}}\nslurm:\n{slurm}"
    return parse_sweep(parse_yaml(text, "s.yaml"), "/nowhere")


def test_a_sweep_changes_the_profile_of_one_allocation() -> None:
    slurm = """  time: 30
  sbatch: {mail-type: END}
  2x2: {time: 90, partition: large, sbatch: {exclusive: true}}
"""
    cluster = with_changes(SITE, sweep_of(slurm.replace(": 30", ': "30"').replace(": 90", ': "90"')))
    small, large = (cluster.profile_for(Allocation(nodes, nodes)) for nodes in (1, 2))
    assert small
    assert large
    assert (small.time_min, small.partition, small.sbatch) == (30, "gpu", {"nice": 5, "mail-type": "END"})
    assert (large.time_min, large.partition) == (90, "large")
    assert large.sbatch == {"nice": 5, "mail-type": "END", "exclusive": True}
    assert Cluster.from_json(cluster.to_json()) == cluster


def test_a_sweep_decides_on_the_code_of_each_allocation() -> None:
    """On this machine, which has no profile, for all allocations."""
    sweep = sweep_of("  code: live\n  2x2: {code: snapshot}\n")
    places = [Allocation(1, 1), Allocation(2, 2)]
    site, local = (with_changes(cluster, sweep) for cluster in (SITE, Cluster("local", "local")))
    assert [[cluster.code_for(place) for place in places] for cluster in (SITE, site, local)] == [
        [None, None], ["live", "snapshot"], ["live", "live"]
    ]  # fmt: skip
    assert Cluster.from_json(local.to_json()) == local
    former = {name: value for name, value in local.to_json().items() if name != "code"}
    assert Cluster.from_json(former) == Cluster("local", "local")


@pytest.mark.parametrize(
    ("slurm", "message"),
    [
        ("  4x4: {time: '30'}\n", "s.yaml:5: slurm.4x4: the sweep has no allocation 4x4 (its allocations: 1x1, 2x2)"),
        ("  2x2: '30'\n", "s.yaml:5: slurm.2x2 is '30', not a mapping (write lines of key: value below it)"),
        (
            "  2x2: {tme: '30'}\n",
            "s.yaml:5: slurm.2x2.tme: unknown key 'tme' (slurm_templates/slurm.yaml lists the keys",
        ),
        (
            "  2x2: {sbatch: {clusters: beta}}\n",
            "s.yaml:5: slurm.2x2.sbatch: sbatch has the key 'clusters', but jobs go to the cluster of this host "
            "(submit from a login node of that cluster)",
        ),
    ],
)
def test_wrong_changes(slurm: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        with_changes(SITE, sweep_of(slurm))
    assert str(caught.value).startswith(message)


WRONG_CODE: dict[str, object] = {
    "name": "local",
    "kind": "local",
    "profile": None,
    "by_allocation": {},
    "code": "frozen",
}


@pytest.mark.parametrize(
    "data", [{}, {"kind": "pbs"}, {"kind": "slurm", "profile": {"time": 3}, "by_allocation": {}}, WRONG_CODE]
)
def test_a_damaged_cluster(data: dict[str, object]) -> None:
    with pytest.raises((ValueError, KeyError)):
        Cluster.from_json(data)


def test_user_defaults_fill_missing_keys(tmp_path: Path) -> None:
    """Sites advise export SBATCH_ACCOUNT=project: it holds where profile and sweep say nothing."""
    (tmp_path / "site.yaml").write_text("partition: gpu\nqos: null\n")
    environ = {
        "SBATCH_ACCOUNT": "proj-a", "SBATCH_PARTITION": "debug", "SBATCH_QOS": "high", "SBATCH_CONSTRAINT": "",
        "SBATCH_TIMELIMIT": "2-12",
    }  # fmt: skip
    cluster = find_cluster("./site.yaml", environ, tmp_path).profile
    assert cluster
    assert (cluster.account, cluster.partition, cluster.qos, cluster.constraint) == ("proj-a", "gpu", None, None)
    assert cluster.time_min == 3600
    assert override(cluster, {"account": "proj-b"}, str).account == "proj-b"
    with pytest.raises(UserError, match=r"^\$SBATCH_TIMELIMIT: time is 'UNLIMITED', not a time limit"):
        find_cluster("./site.yaml", {"SBATCH_TIMELIMIT": "UNLIMITED"}, tmp_path)


def no_program(name: str) -> None:
    return None


def test_profile_folders_are_searched_in_order(tmp_path: Path) -> None:
    """./clusters is searched before the user's folder, and that before the folder of the package."""
    environ = {"XDG_CONFIG_HOME": str(tmp_path / "config")}
    packaged = find_cluster("slurm", environ, tmp_path)
    for folder, partition in ((tmp_path / "config/sweep/clusters", "user"), (tmp_path / "clusters", "working_dir")):
        folder.mkdir(parents=True)
        (folder / "slurm.yaml").write_text(f"partition: {partition}\n")
        cluster = find_cluster("slurm", environ, tmp_path)
        assert cluster == Cluster("slurm", "slurm", ClusterProfile.model_validate({"partition": partition}))
    assert packaged == Cluster("slurm", "slurm", ClusterProfile.model_validate({}))


def test_the_default_cluster(tmp_path: Path) -> None:
    """It is $SWEEP_CLUSTER, or slurm if sbatch is on PATH, or local."""
    (tmp_path / "site.yaml").write_text("partition: gpu\n")
    named = {"SWEEP_CLUSTER": "./site.yaml"}
    site = Cluster("site", "slurm", ClusterProfile.model_validate({"partition": "gpu"}))
    assert find_cluster(None, named, tmp_path, no_program) == site
    assert find_cluster("local", named, tmp_path, no_program) == Cluster("local", "local")
    assert find_cluster("debug", named, tmp_path, no_program) == Cluster("debug", "debug")
    assert find_cluster(None, {}, tmp_path, lambda name: f"/usr/bin/{name}").name == "slurm"
    assert find_cluster(None, {"SWEEP_CLUSTER": ""}, tmp_path, no_program) == Cluster("local", "local")


def test_an_unknown_name_lists_folders_and_profiles(tmp_path: Path) -> None:
    (tmp_path / "clusters").mkdir()
    (tmp_path / "clusters" / "mine.yaml").touch()
    environ = {"XDG_CONFIG_HOME": str(tmp_path / "config"), "SWEEP_CLUSTER": "theirs"}
    for name, where in (("theirs", "--cluster"), (None, "$SWEEP_CLUSTER")):
        with pytest.raises(UserError) as caught:
            find_cluster(name, environ, tmp_path)
        start = f"{where}: no cluster profile 'theirs' in {tmp_path}/clusters, {tmp_path}/config/sweep/clusters, "
        assert str(caught.value).startswith(start)
        assert str(caught.value).endswith("slurm_templates (known: local, debug, mine, slurm)")


def test_a_profile_cannot_have_an_executors_name(tmp_path: Path) -> None:
    (tmp_path / "local.yaml").write_text("partition: gpu\n")
    with pytest.raises(UserError) as caught:
        find_cluster("./local.yaml", {}, tmp_path)
    assert str(caught.value) == "the profile './local.yaml' has the reserved name 'local' (rename the file)"
