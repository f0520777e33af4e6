"""The network interfaces and adapters in the folders of a kernel."""

from __future__ import annotations

from pathlib import Path

from disttrain.environment.network import ib_rates, interface_speeds


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(f"{text}\n")


def test_active_interfaces_between_hosts(tmp_path: Path) -> None:
    write(tmp_path / "eth0", operstate="up", speed="1000")
    write(tmp_path / "ib0", operstate="up", speed="100000")
    write(tmp_path / "eth1", operstate="down", speed="10000")
    write(tmp_path / "wlan0", operstate="up", speed="-1")
    write(tmp_path / "tun0", operstate="up")
    write(tmp_path / "docker0", operstate="up", speed="10000")
    assert interface_speeds(tmp_path) == {"eth0": 1000, "ib0": 100_000}
    assert interface_speeds(tmp_path / "missing") == {}


def test_active_adapters(tmp_path: Path) -> None:
    write(tmp_path / "mlx5_0" / "ports" / "1", state="4: ACTIVE", rate="200 Gb/sec (4X HDR)")
    write(tmp_path / "mlx5_0" / "ports" / "2", state="4: ACTIVE", rate="100 Gb/sec (4X EDR)")
    write(tmp_path / "mlx5_1" / "ports" / "1", state="1: DOWN", rate="200 Gb/sec (4X HDR)")
    write(tmp_path / "mlx5_2" / "ports" / "1", state="4: ACTIVE")
    assert ib_rates(tmp_path) == {"mlx5_0": 200.0}
