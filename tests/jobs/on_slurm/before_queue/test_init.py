"""On the real Slurm: what is learned of the site is what the site has, and Slurm accepts what init writes."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from jobs.planning.cluster_profile import load_profile
from jobs.planning.sweep_file import load_sweep
from jobs.site.query_site import query_site
from jobs.site.site_facts import Balance, GpuKind, NodeKind
from tests.jobs.sweeping import Sweeping

pytestmark = pytest.mark.slurm


@pytest.fixture
def sweeping(slurm_cluster: Mapping[str, str], tmp_path: Path) -> Sweeping:
    return Sweeping(tmp_path, {**os.environ, **slurm_cluster})


@pytest.fixture
def account(sweeping: Sweeping) -> Iterator[str]:
    """An account of root with a limit of GPU minutes."""
    name = f"limited{os.getpid()}"
    sweeping.outside("sacctmgr", "-i", "add", "account", name, "GrpTRESMins=gres/gpu=600")
    sweeping.outside("sacctmgr", "-i", "add", "user", "root", f"account={name}", "MaxWall=02:00:00")
    yield name
    for command in (["user", "root", f"account={name}"], ["account", name]):
        subprocess.run(["sacctmgr", "-i", "delete", *command], env=sweeping.environ, check=True)


def test_the_facts_of_the_test_cluster(sweeping: Sweeping, account: str) -> None:
    facts = query_site(environ=sweeping.environ)
    assert facts.unknown == ()
    assert facts.release is not None
    assert (facts.accounting, facts.job_requeue, facts.max_array_size) == (True, True, 1001)
    assert (facts.counts_memory, facts.shares_gpus_by_tres, facts.needs_association) == (False, True, True)
    gpu, preempt = facts.partition("gpu"), facts.partition("preempt")
    assert gpu is not None
    assert preempt is not None
    assert (gpu.is_default, gpu.is_up, gpu.max_time_min) == (True, True, None)
    assert gpu.node_kinds == (NodeKind(2, 2, 16, 10000, (GpuKind("h100", 4),)),)
    assert (gpu.preempt_mode, preempt.preempt_mode) == ("OFF", "REQUEUE")
    limited = next(entry for entry in facts.associations if entry.account == account)
    assert (limited.max_time_min, limited.is_default) == (120, False)
    assert "normal" in [qos.name for qos in facts.qos]
    assert Balance(account, None, "gres/gpu", 600, 0) in facts.balances


def test_slurm_accepts_what_init_writes(sweeping: Sweeping) -> None:
    made = sweeping.run("init", "here", "--partition", "gpu", "--yes").stdout
    assert "gpu (default)" in made
    profile = load_profile(sweeping.folder / "clusters" / "here.yaml")
    assert (profile.partition, profile.gpu_type, profile.cpus_per_gpu) == ("gpu", "h100", 4)
    first = load_sweep(sweeping.folder / "first.yaml")
    assert list(map(str, first.allocations)) == ["1x1", "1x4", "2x2", "2x1"]
    scripts = sweeping.run("plan", "first.yaml", "--cluster", "here", "--scripts").stdout
    for script in scripts.split("#!/bin/bash")[1:]:
        subprocess.run(
            ["sbatch", "--test-only"], input=f"#!/bin/bash{script}", env=sweeping.environ, text=True, check=True,
            capture_output=True, timeout=60,
        )  # fmt: skip
