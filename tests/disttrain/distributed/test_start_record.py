"""The start record of a rank: what makes its run comparable to others."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
import torch

from disttrain.distributed.group import Group
from disttrain.distributed.start_record import active_ib_ports, start_record, transport
from disttrain.environment.rank_env import RankEnv
from disttrain.records.record_files import decode, encode
from disttrain.records.start_types import cpu_list


def test_start_record_of_a_rank_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_TOPOLOGY_ADDR", "s0.s1.n1")
    group = Group(RankEnv(), torch.device("cpu"), None, ("n1",), False)
    record = start_record(group, gpu_settings={"driver_version": "570", "gpu_power_cap_w": 700.0})
    cpus = os.sched_getaffinity(0)
    assert (record.cpus, record.cpu_affinity) == (len(cpus), cpu_list(cpus))
    assert (record.cuda_version, record.nccl_version, record.transport) == (None, None, None)
    assert (record.driver_version, record.gpu_power_cap_w, record.gpu_max_sm_clock_mhz) == ("570", 700.0, None)
    assert record.topology_addr == "s0.s1.n1"
    assert decode(encode(record)) == record
    monkeypatch.delenv("SLURM_TOPOLOGY_ADDR")
    assert start_record(group).topology_addr is None


@pytest.mark.parametrize(
    ("backend", "on_one_machine", "environ", "has_ib", "expected"),
    [
        (None, True, {}, True, None),
        ("gloo", True, {}, False, "one host"),
        ("nccl", True, {}, True, "one host"),
        ("gloo", False, {}, True, "sockets"),
        ("nccl", False, {}, True, "IB"),
        ("nccl", False, {}, False, "sockets"),
        ("nccl", False, {"NCCL_IB_DISABLE": "1"}, True, "sockets"),
        ("nccl", False, {"NCCL_IB_DISABLE": "0"}, True, "IB"),
        ("nccl", False, {"NCCL_NET": "Socket"}, True, "sockets"),
        ("nccl", False, {"NCCL_NET": "IB"}, True, "IB"),
        ("nccl", False, {"NCCL_NET": "AWS Libfabric"}, False, "AWS Libfabric"),
        ("nccl", False, {"NCCL_NET_PLUGIN": "libnccl-net-ofi.so"}, False, "libnccl-net-ofi.so"),
        ("nccl", False, {"NCCL_NET_PLUGIN": "none"}, True, "IB"),
    ],
)
def test_transport(
    backend: str | None, on_one_machine: bool, environ: dict[str, str], has_ib: bool, expected: str | None
) -> None:
    assert transport(backend, on_one_machine, environ, has_ib) == expected


def test_machines_with_one_host_name_are_two() -> None:
    group = Group(RankEnv(world_size=2), torch.device("cpu"), "gloo", ("n", "n"), False, machines=("n 1", "n 2"))
    assert start_record(group).transport == "sockets"
    assert start_record(dataclasses.replace(group, machines=("n 1", "n 1"))).transport == "one host"


def test_active_ports(tmp_path: Path) -> None:
    assert active_ib_ports(tmp_path / "missing") == ()
    for port, state in (("1", "1: DOWN"), ("2", "4: ACTIVE")):
        folder = tmp_path / "mlx5_0" / "ports" / port
        folder.mkdir(parents=True)
        (folder / "state").write_text(f"{state}\n")
        assert active_ib_ports(tmp_path) == (("mlx5_0",) if port == "2" else ())
