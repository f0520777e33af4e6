"""The records of a script's ranks: where they started, and samples of the GPUs and of the script's processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from disttrain.command.rank_records import recorded_ranks, write_samples
from disttrain.command.script_host import ScriptHost
from disttrain.environment.rank_env import RankEnv
from disttrain.records.record_files import metrics_name, read_records
from disttrain.records.record_types import Record, TelemetryRecord
from disttrain.records.start_types import StartRecord
from tests.disttrain.scriptednvml import ALL_FIGURES, script_nvml

GPU = {"CUDA_VISIBLE_DEVICES": "GPU-1", "OMP_NUM_THREADS": "3,2"}


def record(run_dir: Path, env: RankEnv, environ: dict[str, str], workers: int | None = None) -> list[list[Record]]:
    """The records of each rank after a start with two samples."""
    with recorded_ranks(env, run_dir, os.getpid(), environ, workers) as ranks:
        time.sleep(0.1)
        write_samples(ranks)
    return [rank.read() for rank in ranks]


def test_a_gpu_and_its_energy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = script_nvml(monkeypatch, ALL_FIGURES)
    with recorded_ranks(RankEnv(), tmp_path, os.getpid(), GPU, None) as (rank,):
        library.answers["nvmlDeviceGetTotalEnergyConsumption"] += 7000
    start, *samples = rank.read()
    assert isinstance(start, StartRecord)
    assert (start.device, start.gpu_uuid, start.threads, start.notices) == ("cuda:0", "1", 3, ())
    assert all(isinstance(sample, TelemetryRecord) and sample.gpu_power_w == 412.5 for sample in samples)
    figures = rank.figures()
    assert (figures.sums.energy_ranks, figures.telemetry.gpu_util_percent) == (1.0, 73.0)
    assert figures.sums.energy_j in (0.0, 7.0)  # the first sample may be the later one
    assert library.opened == 0


def test_a_gpu_that_nvml_does_not_know_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script_nvml(monkeypatch, ALL_FIGURES)
    ((start, *samples),) = record(tmp_path, RankEnv(), {"CUDA_VISIBLE_DEVICES": "GPU-9"})
    assert isinstance(start, StartRecord)
    assert start.notices == ("GPU telemetry is empty: NVML reports 'Not Found'",)
    assert samples


def test_without_a_gpu_there_is_no_notice(tmp_path: Path) -> None:
    ((start, sample, *_),) = record(tmp_path, RankEnv(), {"CUDA_VISIBLE_DEVICES": ""})
    assert isinstance(start, StartRecord)
    assert isinstance(sample, TelemetryRecord)
    assert (start.device, start.gpu_uuid, start.notices) == ("cpu", None, ())
    assert sample.process_memory_mib is not None
    assert sample.host_memory_used_mib is not None


def test_the_workers_of_torchrun_have_their_own_files(tmp_path: Path) -> None:
    env = RankEnv(rank=1, world_size=2, node_rank=1, num_nodes=2)
    for rank, (start, *_) in zip((2, 3), record(tmp_path, env, {"CUDA_VISIBLE_DEVICES": ""}, workers=2), strict=True):
        assert isinstance(start, StartRecord)
        assert (start.rank, start.local_rank, start.world_size) == (rank, rank - 2, 4)
        assert (tmp_path / metrics_name(rank)).exists()


def test_the_next_start_appends(tmp_path: Path) -> None:
    path = tmp_path / metrics_name(0)
    record(tmp_path, RankEnv(), {"CUDA_VISIBLE_DEVICES": ""})
    with path.open("a") as file:
        file.write('{"kind": "telem')  # the rank was killed
    record(tmp_path, RankEnv(restart_count=1), {"CUDA_VISIBLE_DEVICES": ""})
    starts = [record for record in read_records(path) if isinstance(record, StartRecord)]
    assert [start.restart_count for start in starts] == [0, 1]


@pytest.mark.process
def test_the_load_of_a_script_includes_its_children() -> None:
    work = "import os; x = os.urandom(60_000_000); print(flush=True)\nwhile True: pass"
    script = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {work!r}])"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        host = ScriptHost(process.pid)
        first = host.read()
        time.sleep(1)
        second = host.read()
        for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            os.kill(int(child), 9)
    assert first.process_cpu_percent is None
    assert first.process_memory_mib > 60
    assert second.process_cpu_percent is not None
    assert 5 < second.process_cpu_percent < 150
    assert ScriptHost(process.pid).read().process_memory_mib == 0  # it has ended
