"""The worked profiles: each one is valid, and its batch script is golden."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from jobs.planning.cluster import Cluster, find_cluster
from jobs.planning.cluster_profile import load_profile
from jobs.planning.expand import expand
from jobs.planning.plan import make_plan, request_of
from jobs.planning.sweep_file import parse_sweep
from jobs.planning.yaml_file import parse_yaml

REPOSITORY = Path(__file__).resolve().parents[3]
PROFILES = sorted((REPOSITORY / "slurm_templates" / "examples").glob("*.yaml"))
SWEEP = "name: s\nallocations: [2x2]\nbase: {model: bert}\n"


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_the_script_is_golden(path: Path) -> None:
    profile = load_profile(path)
    if profile.python is None:
        profile = profile.model_copy(update={"python": "/opt/venv/bin/python"})
    cluster = Cluster(path.stem, "slurm", profile)
    runs = expand(parse_sweep(parse_yaml(SWEEP, "s.yaml"), "/nowhere"))
    plan = make_plan("s", runs, cluster, Path("/shared/me/runs/s") / path.stem)
    golden = REPOSITORY / "tests" / "golden" / "worked_profiles" / f"{path.stem}.txt"
    assert "".join(map(plan.script, plan.groups)) == golden.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_every_profile_says_what_it_is_for(path: Path) -> None:
    assert re.match(r"# .{20,}\.", path.read_text())
    page = (REPOSITORY / "docs" / "cluster.md").read_text(encoding="utf-8")
    assert f"`{path.name}`" in page


def test_their_names_are_no_clusters(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"no cluster profile 'pyxis'.+\(known: local, debug, slurm\)"):
        find_cluster("pyxis", {"XDG_CONFIG_HOME": str(tmp_path)}, tmp_path)


def test_another_container_is_another_request() -> None:
    """sweep submit --replace sends runs that wait again."""
    profile = load_profile(REPOSITORY / "slurm_templates" / "examples" / "pyxis.yaml")
    runs = expand(parse_sweep(parse_yaml(SWEEP, "s.yaml"), "/nowhere"))
    requests = []
    for image in ("/a.sqsh", "/b.sqsh"):
        changed = profile.model_copy(update={"srun": {"container-image": image}})
        (group,) = make_plan("s", runs, Cluster("site", "slurm", changed), Path("/s")).groups
        requests.append(request_of(group))
    first, second = requests
    assert {key for key in first if first[key] != second[key]} == {"srun"}
