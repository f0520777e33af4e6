"""One rank of a job of `sweep doctor`: what it sees of its node, computes and exchanges, as a report in a file."""

from __future__ import annotations

import dataclasses
import os
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from disttrain.config.train_config import LINK, TrainConfig
from disttrain.distributed.process_exit import exit_soon, leave_without_teardown
from disttrain.environment.network import ib_rates, interface_speeds
from disttrain.environment.rank_env import RankEnv, choose_threads
from disttrain.errors import UserError, first_line
from disttrain.records.job_files.doctor_reports import (
    DoctorRequest,
    RankReport,
    read_report,
    read_request,
    write_report,
)
from disttrain.records.versions import versions

# `_measure` imports torch, after the first report: an import that hangs or fails must be in it.
if TYPE_CHECKING:
    from disttrain.distributed.group import Group
    from disttrain.records.job_files.doctor_reports import Stage

# An NFS client may need 30 s to see the file of another node, after it has looked for it once.
SEEN_WITHIN_S = 45.0
_POLL_S = 0.25
_COMPUTE_S = 4.0
_SIZES_BYTES = (4 * 2**10, 2**20, 16 * 2**20, 64 * 2**20)
_EXCHANGE_S = 5.0

# What may change the speed of a run or whether it starts. Others may hold secrets, so no other value is reported.
_NOTED = (
    "CUDA_LAUNCH_BLOCKING", "CUDA_VISIBLE_DEVICES", "GLOO_SOCKET_IFNAME", "HF_HUB_OFFLINE", "NCCL_IB_DISABLE",
    "NCCL_NET", "NCCL_P2P_DISABLE", "NCCL_SHM_DISABLE", "NCCL_SOCKET_IFNAME", "OMP_NUM_THREADS", "SLURM_CPU_BIND",
    "TORCH_DISTRIBUTED_DEBUG",
)  # fmt: skip


def run_doctor(folder: Path, env: RankEnv, seen_within_s: float = SEEN_WITHIN_S) -> None:
    """Runs one rank. It ends with status 0 if its report says what it found, so that no other rank is ended.

    Args:
        folder: The folder of the job, with its request; the reports are written there.
        env: The place of this rank.
        seen_within_s: How long a rank waits for the files of the others.

    Raises:
        Exception: An exchange between the ranks failed: the others would wait.
    """
    reporter = _Reporter(folder, _first_report(env, os.environ))
    request = read_request(folder)
    try:
        reporter.begin("importing", hub=_find_hub_files(request, env))
        _import_torch(reporter)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
        reporter.fail(error)
    if not _others_agree(reporter, env, seen_within_s):
        return
    try:
        _measure(reporter, request, env)
    except Exception as error:
        reporter.fail(error)
        if env.world_size > 1:
            exit_soon()
        raise
    if env.world_size > 1:
        leave_without_teardown()


class _Reporter:
    """Writes the report of this rank again at each stage."""

    def __init__(self, folder: Path, report: RankReport) -> None:
        self.folder = folder
        self.report = report
        write_report(folder, report)

    def begin(self, stage: Stage, **found: Any) -> None:
        """Adds what was found, and notes the next stage."""
        self.report = dataclasses.replace(self.report, stage=stage, time_s=time.time(), **found)
        write_report(self.folder, self.report)

    def fail(self, error: Exception) -> None:
        """Notes why the present stage has failed."""
        text = f"{type(error).__name__}: {first_line(error)}"
        if isinstance(error, UserError):
            text = str(error)
        self.begin(self.report.stage, error=text)


def _first_report(env: RankEnv, environ: Mapping[str, str]) -> RankReport:
    return RankReport(
        rank=env.rank,
        host=socket.gethostname(),
        time_s=time.time(),
        python=sys.executable,
        versions=versions(),
        variables={name: environ[name] for name in _NOTED if name in environ},
    )


def _find_hub_files(request: DoctorRequest, env: RankEnv) -> dict[str, str]:
    """What the first rank of each node knows of the hub ids."""
    if env.host_rank != 0:
        return {}
    from disttrain.data.hub_access import hub_access

    return hub_access(request.models, request.datasets, os.environ, request.pinned)


def _import_torch(reporter: _Reporter) -> None:
    start_s = time.perf_counter()
    import torch

    import_s = time.perf_counter() - start_s
    # Not the version of the installed package only: PYTHONPATH may name another torch.
    known = {**reporter.report.versions, "torch": str(torch.__version__)}
    reporter.begin("waiting", import_s=import_s, versions=known)


def _others_agree(reporter: _Reporter, env: RankEnv, seen_within_s: float) -> bool:
    """Whether this rank sees the reports of all others, and all have imported the same torch.

    Ranks that differ would wait for each other in their first exchange, and the job would end without a reason.
    """
    deadline_s = time.monotonic() + seen_within_s
    while True:
        reports = {rank: read_report(reporter.folder, rank) for rank in range(env.world_size)}
        seen = [report for report in reports.values() if report is not None]
        if len(seen) == env.world_size and all(_is_ready(report) for report in seen):
            break
        # A rank that was seen and imports torch is waited for until the job ends: its stage says why.
        if len(seen) < env.world_size and time.monotonic() > deadline_s:
            missing = tuple(rank for rank, report in reports.items() if report is None)
            error = f"it did not see the files of these ranks within {seen_within_s:.0f} s: {missing}"
            reporter.begin("waiting", missing_ranks=missing, error=error)
            return False
        time.sleep(_POLL_S)
    failed = any(report.error is not None for report in seen)
    return not failed and len({report.versions.get("torch") for report in seen}) == 1


def _is_ready(report: RankReport) -> bool:
    """Whether a rank has imported torch, or failed."""
    return report.error is not None or report.stage not in ("starting", "importing")


def _measure(reporter: _Reporter, request: DoctorRequest, env: RankEnv) -> None:
    """The checks that need torch and the other ranks; all ranks call this."""
    import torch

    from disttrain.distributed.device import device_name
    from disttrain.distributed.group import process_group
    from disttrain.measure.start_check import check_rank, product_gflop

    torch.set_num_threads(choose_threads(env, os.environ, len(os.sched_getaffinity(0))))
    device_error = _device_error(request, env)
    reporter.begin("connecting", device_error=device_error)
    with process_group(env, request.device if device_error is None else "cpu") as group:
        reporter.begin(
            "computing",
            device=device_name(group.device),
            clock_ahead_s=_clock_ahead_s(group),
            ib_gbits=ib_rates(),
            interface_mbits=interface_speeds(),
        )
        check = check_rank(TrainConfig(model=LINK, start_check_s=_COMPUTE_S), group)
        computed = {
            "product_ms": check.product_ms, "product_gflop": product_gflop(group.device), "wrong": check.wrong,
        }  # fmt: skip
        reporter.begin("exchanging", **computed)
        reporter.begin("done", **_exchange(group))


def _device_error(request: DoctorRequest, env: RankEnv) -> str | None:
    """Why this rank cannot use the device that its run asks for; None if it can."""
    from disttrain.distributed.device import choose_device

    try:
        choose_device(env, request.device)
    except UserError as error:
        return error.message
    return None


def _clock_ahead_s(group: Group) -> float:
    """The wall clock of this host minus that of rank 0's, read just after a barrier; all ranks call this."""
    group.barrier()
    times_s = group.gather_objects(time.time())
    return times_s[group.env.rank] - times_s[0]


def _exchange(group: Group) -> dict[str, Any]:
    """The speed of all-reduces and what they go over; empty with one rank. All ranks call this."""
    if group.backend is None:
        return {}
    from disttrain.distributed.start_record import transport_of
    from disttrain.measure.all_reduce import measure_link

    measured = list(measure_link(group, _SIZES_BYTES, _EXCHANGE_S))
    found: dict[str, Any] = {
        "backend": group.backend,
        "transport": transport_of(group),
        "interface": _interface(group, os.environ),
    }
    if measured:
        found |= {"latency_ms": measured[0].median_ms, "link_gb_per_s": measured[-1].bus_gb_per_s}
    return found


def _interface(group: Group, environ: Mapping[str, str]) -> str | None:
    """The network interface towards another host of the group; None if all ranks are on one host."""
    from disttrain.distributed.rendezvous import interface_towards

    own = group.hosts[group.env.rank]
    other = next((host for host in group.hosts if host != own), None)
    if other is None or group.on_one_machine:
        return None
    chosen = environ.get("GLOO_SOCKET_IFNAME") if group.backend == "gloo" else environ.get("NCCL_SOCKET_IFNAME")
    return chosen or interface_towards(other)
