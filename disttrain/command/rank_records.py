"""The records of a rank whose training is the user's script: where it started, and samples of its GPU and host."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from disttrain.analysis.run_summary import own_sums, rank_telemetry
from disttrain.command.report import RankFigures
from disttrain.command.script_host import ScriptHost
from disttrain.config.train_config import TrainConfig
from disttrain.environment.cpu_name import cpu_name
from disttrain.environment.rank_env import RankEnv
from disttrain.environment.variables import parse_count
from disttrain.measure.nvml import VisibleGpu, gpu_settings, visible_gpus
from disttrain.measure.telemetry import Sampler, open_sampler
from disttrain.records.record_files import RecordPosition, RecordWriter, metrics_name, read_records
from disttrain.records.record_types import Record
from disttrain.records.start_types import StartRecord, cpu_list

INTERVAL_S = TrainConfig.telemetry_every_s


class RankRecords:
    """The records file of one rank. A run that resumes appends to it.

    Args:
        run_dir: The folder of the run.
        start: The record of this start.
        sampler: What samples its GPU and the script.
    """

    def __init__(self, run_dir: Path, start: StartRecord, sampler: Sampler) -> None:
        self._path = run_dir / metrics_name(start.rank)
        self._start = start
        self._sampler = sampler
        self._writer = RecordWriter(self._path, _complete_lines(self._path))
        self._writer.write([start])

    def write_samples(self) -> None:
        """Writes the samples since the last call."""
        with contextlib.suppress(OSError):  # a full disk ends no run
            self._writer.write(self._sampler.taken())

    def close(self) -> None:
        self.write_samples()
        with contextlib.suppress(OSError):
            self._writer.close()

    def read(self) -> list[Record]:
        """All records of the rank, also of earlier starts."""
        return list(read_records(self._path))

    def figures(self) -> RankFigures:
        """What this rank contributes to the summary."""
        records = self.read()
        return RankFigures(self._start, own_sums(records, warmup_steps=0), rank_telemetry(records))


def write_samples(ranks: Sequence[RankRecords]) -> None:
    """Writes the samples of all these ranks since the last call."""
    for rank in ranks:
        rank.write_samples()


@contextmanager
def recorded_ranks(
    env: RankEnv, run_dir: Path, script: int, environ: Mapping[str, str], workers: int | None
) -> Iterator[tuple[RankRecords, ...]]:
    """The records of the ranks of a script. Their GPUs and the script are sampled within the block.

    Args:
        env: The place of this process.
        run_dir: The folder of the run.
        script: The process of the script.
        environ: The environment of the script.
        workers: The number of ranks that the script starts on this node; None if it is one rank itself.
    """
    ranks: list[RankRecords] = []
    with contextlib.ExitStack() as stack:
        for start in _starts(env, environ, visible_gpus(environ), workers):
            sampler, notices = open_sampler(INTERVAL_S, start.gpu_uuid, ScriptHost(script))
            records = RankRecords(run_dir, dataclasses.replace(start, notices=notices), sampler)
            stack.callback(records.close)
            stack.enter_context(sampler)
            ranks.append(records)
        yield tuple(ranks)


def _starts(
    env: RankEnv, environ: Mapping[str, str], gpus: Sequence[VisibleGpu], workers: int | None
) -> Iterator[StartRecord]:
    """The start record of each rank of the script."""
    cpus = os.sched_getaffinity(0)
    for index in range(workers or 1):
        rank, local_rank, world_size = env.rank, env.local_rank, env.world_size
        if workers is not None:
            rank, local_rank, world_size = env.rank * workers + index, index, env.world_size * workers
        device, device_name, uuid = "cpu", cpu_name(), None
        if gpus:
            gpu = gpus[local_rank % len(gpus)]
            device, device_name, uuid = f"cuda:{local_rank % len(gpus)}", gpu.name or "GPU", gpu.uuid
        yield StartRecord(
            time_s=time.time(),
            rank=rank,
            world_size=world_size,
            local_rank=local_rank,
            node_rank=env.node_rank,
            host=socket.gethostname(),
            pid=os.getpid(),
            job_id=env.job_id,
            restart_count=env.restart_count,
            first_step=1,
            device=device,
            device_name=device_name,
            gpu_uuid=uuid,
            backend=None,
            shared_gpu=False,
            folded=env.folded,
            threads=parse_count(environ.get("OMP_NUM_THREADS", "").partition(",")[0]) or 1,
            cpus=len(cpus),
            cpu_affinity=cpu_list(cpus),
            versions={},  # the script may use another Python
            **dataclasses.asdict(gpu_settings(uuid)),
            topology_addr=environ.get("SLURM_TOPOLOGY_ADDR") or None,
            parameters=0,
            train_examples=0,
            eval_examples=0,
            notices=(),
        )


def _complete_lines(path: Path) -> RecordPosition:
    """The end of the last complete line of a file."""
    with contextlib.suppress(FileNotFoundError):
        return RecordPosition(path.read_bytes().rfind(b"\n") + 1)
    return RecordPosition()
