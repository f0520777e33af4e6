"""What the doctor concludes from the reports of a job's ranks."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from disttrain.records.job_files.doctor_reports import RankReport
from jobs.doctor.finding import Finding, Level
from jobs.doctor.job_checks import check_job
from jobs.doctor.job_facts import JobFacts
from jobs.planning.allocation import Allocation
from jobs.slurm.states import State

LOGIN = {"python": "3.11.7", "disttrain-sweeps": "1.0", "submitit": "1.5"}
NOW_S = 1_000_000.0


def report(rank: int, **changes: Any) -> RankReport:
    """The report of a healthy rank, one on each node."""
    values: dict[str, Any] = {
        "rank": rank, "host": f"node{rank + 1}", "time_s": NOW_S, "stage": "done", "python": "/env/bin/python",
        "versions": {**LOGIN, "torch": "2.9.0"}, "import_s": 4.0, "device": "H100", "clock_ahead_s": 0.0,
        "product_ms": (4.0,) * 8, "product_gflop": 100.0, "backend": "nccl", "transport": "IB", "interface": "eth0",
        "interface_mbits": {"eth0": 10_000}, "ib_gbits": {"mlx5_0": 200.0}, "latency_ms": 0.1, "link_gb_per_s": 20.0,
    }  # fmt: skip
    return RankReport(**{**values, **changes})


def job(*reports: RankReport, allocation: str = "2x1", **changes: Any) -> JobFacts:
    """A job that has ended, with these reports."""
    facts = JobFacts(
        Allocation.parse(allocation), "7", started=True, ended=True, began_s=NOW_S - 20, nodes=("node1", "node2"),
        reports={entry.rank: entry for entry in reports}, seen_s={entry.rank: NOW_S + 1 for entry in reports},
    )  # fmt: skip
    return dataclasses.replace(facts, **changes)


def only(facts: JobFacts, **options: Any) -> Finding:
    """The only finding of a job."""
    (finding,) = check_job(facts, LOGIN, **options)
    return finding


def test_healthy_job_is_one_line() -> None:
    finding = only(job(report(0), report(1)))
    assert finding.level is Level.OK
    assert finding.text == (
        "node1, node2; torch 2.9.0 imported in 4.0 s; 2 x H100 at 25 TFLOP/s; link 20 GB/s over IB (eth0)"
    )


def test_refused_job_has_the_reason() -> None:
    finding = only(JobFacts(Allocation(1, 1), refusal="sbatch refused it: Invalid qos", ended=True))
    assert (finding.level, finding.text) == (Level.FAIL, "was not sent: sbatch refused it: Invalid qos")


@pytest.mark.parametrize(
    ("reason", "level"), [("Priority", Level.WARN), ("AssocGrpGRESMinutes", Level.FAIL), ("", Level.WARN)]
)
def test_job_that_does_not_start(reason: str, level: Level) -> None:
    finding = only(JobFacts(Allocation(1, 1), "7", reason=reason, waited_s=600.0))
    assert finding.level is level
    assert (reason or "no reason given") in finding.text


def test_node_without_the_shared_folder() -> None:
    finding = only(job(report(0, stage="waiting", missing_ranks=(1,), error="has not seen 1 rank")))
    assert (finding.level, finding.check, finding.nodes) == (Level.FAIL, "shared folder", ("node2",))
    assert finding.text.startswith("rank 1 of 2x1 on node2 wrote nothing into the folder of the job")
    assert finding.fix is not None
    assert finding.fix.endswith('exclude the node: sbatch: {exclude: "node2"}')


def test_rank_whose_python_does_not_start() -> None:
    finding = only(job(log_line="/env/bin/python: No module named submitit"))
    assert finding.text == "ranks 0, 1 did not start: /env/bin/python: No module named submitit"


def test_files_that_others_do_not_see() -> None:
    finding = only(job(report(0, missing_ranks=(1,), error="unseen", stage="waiting"), report(1)))
    assert (finding.check, finding.text) == ("shared folder", "rank 0 on node1 did not see the files of rank 1")


def test_other_torch_on_a_node() -> None:
    other = report(1, versions={**LOGIN, "torch": "2.0.0"}, stage="waiting")
    facts = job(report(0, stage="waiting"), other)
    (finding,) = check_job(facts, {**LOGIN, "torch": "2.9.0"})
    assert (finding.level, finding.check, finding.nodes) == (Level.FAIL, "versions", ("node2",))
    assert finding.text == "torch is 2.9.0 on node1 and 2.0.0 on node2"
    (finding,) = check_job(facts, {**LOGIN, "torch": "2.0.0"})
    assert finding.nodes == ("node1",)
    # A login node without torch: rank 0 is right, whichever report comes first.
    (finding,) = check_job(job(other, report(0, stage="waiting")), LOGIN)
    assert finding.text == "torch is 2.9.0 on node1 and 2.0.0 on node2"
    assert finding.nodes == ("node2",)


def test_other_python_is_a_note() -> None:
    newer = {**LOGIN, "torch": "2.9.0", "python": "3.12.1"}
    first, second = check_job(job(report(0, versions=newer), report(1, versions=newer)), LOGIN)
    assert (first.text, first.level) == ("Python is 3.11.7 here and 3.12.1 on the compute nodes", Level.NOTE)
    assert second.level is Level.OK


def test_other_release_than_on_the_login_node() -> None:
    older = {**LOGIN, "torch": "2.9.0", "disttrain-sweeps": "0.9"}
    finding = only(job(report(0, versions=older), report(1, versions=older)))
    assert (finding.level, finding.text) == (Level.WARN, "disttrain-sweeps is 1.0 here and 0.9 on the compute nodes")


@pytest.mark.parametrize(("error_s", "text"), [(300.0, "299 s ahead, or more"), (-300.0, "280 s late, or more")])
def test_wrong_clock(error_s: float, text: str) -> None:
    finding = only(job(report(0), report(1, time_s=NOW_S + error_s, clock_ahead_s=error_s)))
    assert (finding.level, finding.check, finding.nodes) == (Level.WARN, "clock", ("node2",))
    assert finding.text == f"the clock of node2 is {text}"


def test_clocks_of_all_nodes_are_late() -> None:
    late = [report(rank, time_s=NOW_S - 50.0) for rank in range(2)]
    first, second = check_job(job(*late), LOGIN)
    assert (first.text, second.nodes) == ("the clock of node1 is 30 s late, or more", ("node2",))


def test_clock_that_only_the_ranks_can_compare() -> None:
    finding = only(job(report(0), report(1, clock_ahead_s=-9.0)))
    assert finding.text == "the clock of node2 is 9 s late, or more"


def test_rank_0_with_a_wrong_clock() -> None:
    ahead = (report(rank, clock_ahead_s=9.0 + rank / 100) for rank in (1, 2))
    finding = only(job(report(0), *ahead, allocation="3x1"))
    assert (finding.text, finding.nodes) == ("the clock of node1 is 9 s late, or more", ("node1",))


def test_slow_node() -> None:
    finding = only(job(report(0), report(1, product_ms=(9.0,) * 8)))
    assert (finding.level, finding.nodes) == (Level.WARN, ("node2",))
    assert finding.text == (
        "rank 1, H100 of node2, is slow: its matrix product takes 2.2 times as long as on the other ranks"
    )
    assert finding.fix == 'sbatch: {exclude: "node2"}'
    assert only(job(report(0), report(1, product_ms=(9.0,) * 8), shares_devices=True)).level is Level.OK


def test_broken_node_joins_those_that_are_excluded() -> None:
    finding = only(job(report(0), report(1, wrong=("a matrix product",))), excluded="node9")
    assert (finding.level, finding.fix) == (Level.FAIL, 'sbatch: {exclude: "node9,node2"}')


def test_torch_without_gpus() -> None:
    errors = [report(rank, device_error="GPUs were allocated, but torch 2.9.0 sees no GPU") for rank in range(2)]
    finding = only(job(*errors))
    assert (finding.level, finding.check, finding.nodes) == (Level.FAIL, "GPU", ())
    finding = only(job(report(0), errors[1]))
    assert (finding.fix, finding.nodes) == ('sbatch: {exclude: "node2"}', ("node2",))


def test_missing_torch() -> None:
    error = "ModuleNotFoundError: No module named 'torch'"
    ranks = [report(rank, stage="importing", error=error, product_ms=(), link_gb_per_s=None) for rank in range(2)]
    first, _ = check_job(job(*ranks), LOGIN)
    assert (first.level, first.text) == (Level.FAIL, f"rank 0 on node1 failed while importing torch: {error}")
    finding, healthy = check_job(job(*ranks), LOGIN, needs_torch=False)
    assert (finding.level, healthy.level) == (Level.NOTE, Level.OK)


def test_ranks_that_do_not_connect() -> None:
    finding = only(job(*(report(rank, stage="connecting", product_ms=(), link_gb_per_s=None) for rank in range(2))))
    assert finding.text == "its ranks did not end: rank 0 on node1 was connecting to the other ranks"
    assert finding.fix is not None
    assert "network_interface" in finding.fix


def test_rank_that_the_others_wait_for_is_named() -> None:
    early = report(1, stage="importing", import_s=None, product_ms=(), link_gb_per_s=None)
    finding = only(job(report(0, stage="waiting", product_ms=(), link_gb_per_s=None), early))
    assert finding.text == "its ranks did not end: rank 1 on node2 was importing torch"


def test_job_that_ends_before_a_rank_reports() -> None:
    finding = only(job(report(0, stage="waiting"), state=State.NODE_FAIL))
    assert finding.text == "ended as NODE_FAIL before rank 1 wrote a report"


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ("OUT_OF_MEMORY", "ended as OUT_OF_MEMORY while rank 0 on node1 was importing torch"),
        ("FAILED", "ended as FAILED while rank 0 on node1 was importing torch: Segmentation fault"),
        ("TIMEOUT", "its ranks did not end: rank 0 on node1 was importing torch"),
    ],
)
def test_job_that_ends_during_a_check(state: str, text: str) -> None:
    ranks = (report(rank, stage="importing", import_s=None, product_ms=(), link_gb_per_s=None) for rank in range(2))
    finding = only(job(*ranks, state=State(state), log_line="Segmentation fault"))
    assert (finding.level, finding.text) == (Level.FAIL, text)


def test_slow_import() -> None:
    finding = only(job(report(0), report(1, import_s=75.0)))
    assert finding.text == "import torch takes 75 s at each start of a run"


def test_variable_that_makes_runs_slow() -> None:
    finding = only(job(report(0, variables={"CUDA_LAUNCH_BLOCKING": "1", "OMP_NUM_THREADS": "1"}), report(1)))
    assert (finding.level, finding.fix) == (Level.WARN, "unset CUDA_LAUNCH_BLOCKING")


def test_hub() -> None:
    states = {"a/cached": "cached", "a/free": "reachable", "a/gone": "it answers 404"}
    findings = check_job(job(report(0, hub=states), report(1, hub={"a/gone": "cached"})), LOGIN)
    assert [finding.level for finding in findings] == [Level.OK, Level.OK, Level.FAIL]
    assert findings[2].text == "a/gone is not in the cache of node1, and cannot be downloaded there: it answers 404"
    assert findings[2].fix == "download it once: sweep prefetch FILE, with --here on a host that reaches the hub"


def link(**changes: Any) -> list[Finding]:
    """The findings of a job whose rank 0 has measured this."""
    return [finding for finding in check_job(job(report(0, **changes), report(1)), LOGIN) if finding.fix]


def test_tcp_although_ib_is_up() -> None:
    (finding,) = link(link_gb_per_s=1.2, interface_mbits={"eth0": 10_000, "ib0": 100_000})
    assert finding.text == (
        "2x1 seems to run over TCP: link 1.2 GB/s over IB (eth0), although mlx5_0 (200 Gbit/s) is up"
    )
    assert finding.fix is not None
    assert finding.fix.startswith("set network_interface: ib0 in the profile")
    (finding,) = link(link_gb_per_s=1.2, transport="sockets", variables={"NCCL_IB_DISABLE": "1"})
    assert finding.fix == "unset NCCL_IB_DISABLE in the shell and in setup of the profile"


def test_slower_one_of_two_interfaces() -> None:
    mbits = {"eth0": 1000, "eth1": 25_000}
    (finding,) = link(transport="sockets", ib_gbits={}, interface_mbits=mbits, link_gb_per_s=0.11)
    assert finding.fix == "set network_interface: eth1 in the profile"
    assert link(transport="sockets", ib_gbits={}, interface="eth1", interface_mbits=mbits, link_gb_per_s=1.1) == []


@pytest.mark.parametrize(("gb_per_s", "is_slow"), [(0.006, True), (0.06, True), (0.07, False)])
def test_link_that_is_far_below_its_interface(gb_per_s: float, is_slow: bool) -> None:
    findings = link(transport="sockets", ib_gbits={}, link_gb_per_s=gb_per_s)
    assert bool(findings) == is_slow
    if is_slow:
        assert findings[0].text == (
            f"the link of 2x1 is slow: link {gb_per_s} GB/s over sockets (eth0), and eth0 has 10 Gbit/s"
        )


@pytest.mark.parametrize("mbits", [100, 1000])
def test_50_mbits_are_slow_on_any_interface(mbits: int) -> None:
    assert link(transport="sockets", ib_gbits={}, interface_mbits={"eth0": mbits}, link_gb_per_s=0.00625)


def test_link_of_unknown_interface() -> None:
    unknown: dict[str, Any] = {"transport": "sockets", "ib_gbits": {}, "interface": None, "interface_mbits": {}}
    assert link(**unknown, link_gb_per_s=0.02)
    assert not link(**unknown, link_gb_per_s=0.04)
    assert not link(transport="one host", ib_gbits={}, link_gb_per_s=0.001)
