"""`sweep doctor` on the real Slurm: nothing on a healthy cluster, and each planted fault with its fix."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.disks import mounted
from tests.jobs.sweeping import Sweeping, tiny_base, write_sweep
from tests.proofs.slow_rank import slowed_node
from tests.proofs.throttle import throttled

pytestmark = pytest.mark.slurm

JOB_LIMIT_S = 180.0
# A library for LD_PRELOAD that shifts the wall clock by 5 min. libfaketime does the same, but with Debian 12's version
# (0.9.10) and its C library, time.sleep fails or never ends.
CLOCK_AHEAD = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>

int clock_gettime(clockid_t clock, struct timespec *now) {
    int (*read_clock)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
    int status = read_clock(clock, now);
    if (clock == CLOCK_REALTIME) now->tv_sec += 300;
    return status;
}
"""


@dataclass(frozen=True)
class Doctor:
    """The command in a folder, with a sweep on 2x1."""

    sweeping: Sweeping
    file: Path

    def findings(self, *arguments: str | Path, exit_code: int = 0) -> dict[str, list[dict[str, Any]]]:
        """The findings that need a fix, by check."""
        done = self.sweeping.run("doctor", self.file, "--json", *arguments, exit_code=exit_code, timeout_s=JOB_LIMIT_S)
        found: dict[str, list[dict[str, Any]]] = {}
        for finding in json.loads(done.stdout)["findings"]:
            if finding["level"] != "ok":
                found.setdefault(finding["check"], []).append(finding)
        return found

    def profile(self, **changes: Any) -> Path:
        """A profile like that of the test cluster, with changes."""
        profile = yaml.safe_load(Path(self.sweeping.environ["SWEEP_CLUSTER"]).read_text()) | changes
        path = self.sweeping.folder / "site.yaml"
        path.write_text(yaml.safe_dump(profile))
        return path


@pytest.fixture
def doctor(slurm_cluster: Mapping[str, str], tmp_path: Path) -> Doctor:
    environ = {**os.environ, **slurm_cluster}
    file = write_sweep(tmp_path / "small.yaml", allocations=["2x1"], base=tiny_base())
    return Doctor(Sweeping(tmp_path, environ), file)


def on_node2(folder: Path, *lines: str) -> str:
    """A Python for the ranks that first runs these lines of shell on node2."""
    script = folder / "python"
    body = "\n".join(f"    {line}" for line in lines)
    script.write_text(
        f'#!/bin/sh\nif [ "$(hostname)" = node2 ]; then\n{body}\nfi\nexec {shlex.quote(sys.executable)} "$@"\n'
    )
    script.chmod(0o755)
    return str(script)


def test_healthy_cluster_has_no_finding(doctor: Doctor) -> None:
    done = doctor.sweeping.run("doctor", doctor.file, timeout_s=JOB_LIMIT_S)
    assert "nothing would fail\n" in done.stdout
    assert not [line for line in done.stdout.splitlines() if not line.startswith(("ok ", "nothing would fail", ""))]
    assert "ok    job 2x1        node1, node2; torch " in done.stdout
    assert " GB/s over sockets (eth0)" in done.stdout
    assert not list((doctor.sweeping.folder / "runs" / ".doctor").iterdir())


@contextmanager
def account_without_hours(sweeping: Sweeping) -> Iterator[str]:
    """An account of root with a limit of GPU minutes that is used up."""
    name = "doctortest"
    for change in (
        f"add account {name} cluster=sweeptest set GrpTRESMins=gres/gpu=0",
        f"add user root account={name} cluster=sweeptest",
    ):
        sweeping.outside("sacctmgr", "--immediate", *change.split())
    try:
        yield name
    finally:
        sweeping.outside("sacctmgr", "--immediate", "delete", "user", "root", f"account={name}")
        sweeping.outside("sacctmgr", "--immediate", "delete", "account", name)


@contextmanager
def short_partition(sweeping: Sweeping) -> Iterator[str]:
    """A partition in which a job may run for five minutes."""
    sweeping.outside("scontrol", "create", "PartitionName=doctorshort", "Nodes=ALL", "MaxTime=5", "State=UP")
    try:
        yield "doctorshort"
    finally:
        sweeping.outside("scontrol", "delete", "PartitionName=doctorshort")


def test_faults_of_the_request_and_the_shell(doctor: Doctor, tmp_path: Path) -> None:
    doctor.sweeping.environ |= {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}
    wrong = doctor.profile(partition="gpux", account="nobody")
    with mounted(tmp_path / "full", "size=1m") as full:
        (full / "filler").write_bytes(bytes(2**20 - 2**13))
        found = doctor.findings("--cluster", wrong, "--root", full, "--no-job", exit_code=1)
    assert found["partition"][0]["text"] == "there is no partition 'gpux'"
    assert found["partition"][0]["fix"] == "set partition to one of: gpu, preempt"
    assert found["account"][0]["text"] == "you have no association with the account 'nobody'"
    assert found["account"][0]["fix"].startswith("set account to one of: root")  # other tests add accounts
    assert found["variables"][0]["fix"] == "unset SLURM_JOB_ID SLURM_NTASKS, or use a new login shell"
    assert found["disk"][0]["text"] == f"{full} cannot be written: No space left on device"
    assert found["disk"][0]["fix"].startswith("choose another folder with --root")
    assert found["request 2x1"][0]["fix"].startswith("change partition in the profile")


def test_faults_of_time_and_hours(doctor: Doctor) -> None:
    with account_without_hours(doctor.sweeping) as account, short_partition(doctor.sweeping) as partition:
        profile = doctor.profile(partition=partition, account=account, time="01:00:00")
        found = doctor.findings("--cluster", profile, "--no-job", exit_code=1)
    (time_limit,) = found["time"]
    assert time_limit["text"].startswith("the time limit 01:00:00 is over that of the partition doctorshort, 00:05:00")
    assert time_limit["fix"].startswith('set time: "00:05:00"')
    (hours,) = found["hours"]
    assert hours["text"] == "doctortest: 0 of 0 hours of gres/gpu are used up, so no job starts"
    assert hours["fix"].startswith(
        "ask your site for more hours, or set a shorter time, or set account to one of: root"
    )


def clock_ahead(folder: Path) -> Path:
    """The library with which a clock is 5 min ahead."""
    source, library = folder / "clock.c", folder / "clock.so"
    source.write_text(CLOCK_AHEAD)
    try:
        subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a clock that is ahead needs a C compiler: {error}")
    return library


def test_slow_link_slow_node_and_wrong_clock(doctor: Doctor, tmp_path: Path) -> None:
    profile = doctor.profile(python=on_node2(tmp_path, f"export LD_PRELOAD={clock_ahead(tmp_path)}"))
    with throttled(50, "64kb"), slowed_node("node2"):
        found = doctor.findings("--cluster", profile)
    (link,) = found["link"]
    assert link["text"].startswith("the link of 2x1 is slow: link 0.00")
    assert link["fix"] == "ask your site about the network between the nodes of the job: node1, node2"
    (slow,) = found["computing"]
    assert slow["text"].startswith("rank 1, ")
    assert " of node2, is slow: its matrix product takes " in slow["text"]
    assert (slow["fix"], slow["nodes"]) == ('sbatch: {exclude: "node2"}', ["node2"])
    (clock_finding,) = found["clock"]
    assert clock_finding["nodes"] == ["node2"]
    assert re.fullmatch(r"the clock of node2 is (29\d|30\d) s ahead, or more", clock_finding["text"])
    assert found.keys() == {"link", "computing", "clock"}


def test_other_torch_on_a_node(doctor: Doctor, tmp_path: Path) -> None:
    stub = tmp_path / "other" / "torch"
    stub.mkdir(parents=True)
    (stub / "__init__.py").write_text("__version__ = '1.0'\n")
    profile = doctor.profile(python=on_node2(tmp_path, f"export PYTHONPATH={stub.parent}"))
    found = doctor.findings("--cluster", profile, exit_code=1)
    (versions,) = found["versions"]
    assert versions["text"].startswith("torch is ")
    assert versions["text"].endswith(" on node1 and 1.0 on node2")
    assert versions["nodes"] == ["node2"]
    assert versions["fix"].endswith('or sbatch: {exclude: "node2"}')


def test_folder_that_a_node_does_not_see(doctor: Doctor, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    root.mkdir()
    with hidden_on("node2", root):
        found = doctor.findings(exit_code=1)
    (finding,) = found["shared folder"]
    assert finding["text"].startswith("rank 1 of 2x1 on node2 wrote nothing into the folder of the job")
    assert finding["nodes"] == ["node2"]
    assert finding["fix"].startswith("choose a --root that all nodes share")


@contextmanager
def hidden_on(node: str, folder: Path) -> Iterator[None]:
    """An empty file system over a folder in the mount namespace of a node's slurmd."""
    (pid,) = subprocess.run(["pgrep", "-fx", f"slurmd -D -N {node}"], capture_output=True, text=True).stdout.split()
    inside = ["nsenter", f"--target={pid}", "--mount"]
    subprocess.run([*inside, "mount", "-t", "tmpfs", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run([*inside, "umount", folder], check=True)
