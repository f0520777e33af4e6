"""One rank from its environment to the run's summary: what RankTask, bert.py and vit.py call."""

from __future__ import annotations

import atexit
import dataclasses
import importlib.metadata
import math
import os
import platform
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from disttrain import records
from disttrain.config import TrainConfig, absolute_paths, parse_cadence, run_id
from disttrain.errors import NewerAttempt, UserError
from disttrain.flags import parse_flags
from disttrain.rankenv import RankEnv
from disttrain.summary import Sums, own_sums, summarise

# torch and what needs it is imported where a rank really runs: --help and a wrong flag need none of it.
if TYPE_CHECKING:
    import torch

    from disttrain.dist import Group
    from disttrain.family import Built, Encoded
    from disttrain.resume import Checkpoints

_LIBRARIES = ("torch", "torchvision", "transformers", "tokenizers", "datasets", "numpy")

_EXIT_S = 15.0  # that a rank which has failed takes to end, at most


def main(model: str, arguments: list[str]) -> None:
    """The command ``bert.py`` or ``vit.py``: one rank of a run; exits with 2 on a mistake of the user's.

    Args:
        model: The family.
        arguments: The flags.
    """
    try:
        config = absolute_paths(parse_flags(model, arguments), os.getcwd())
        env = RankEnv.from_environ(os.environ)
        output_dir = Path(config.output_dir or default_output_dir(config, env, os.environ))
        run(config, env, output_dir)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    if env.rank == 0:
        print(f"results: {output_dir}")


def default_output_dir(config: TrainConfig, env: RankEnv, environ: Mapping[str, str]) -> Path:
    """Where a run that no sweep started puts its files: ``<root>/torchrun/<run_id>``."""
    return Path(environ.get("SWEEP_ROOT") or "runs") / "torchrun" / run_id(_shape(env), config)


def run(config: TrainConfig, env: RankEnv, output_dir: Path) -> records.Summary:
    """Trains one rank of a run, and leaves its records, and rank 0's summary, in `output_dir`.

    Args:
        config: As asked for.
        env: This rank's place.
        output_dir: The run's folder, on a file system that all ranks see.

    Raises:
        UserError: The config or the data are wrong, in one line.
        Exception: Whatever else went wrong; either way the rank has written its failure record.
    """
    output_dir = output_dir.absolute()
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output_dir {str(output_dir)!r} cannot be made: {error.strerror}") from error
    # What an earlier attempt left must not be taken for this one's.
    (output_dir / records.failure_name(env.rank)).unlink(missing_ok=True)
    if env.rank == 0:
        (output_dir / records.SUMMARY_NAME).unlink(missing_ok=True)
    try:
        summary = _run(config.resolved(), env, output_dir)
        if env.world_size > 1:
            atexit.register(_leave)
        return summary
    except Exception as error:
        # One that has been overtaken leaves no word: the folder is the newer attempt's.
        if not isinstance(error, NewerAttempt):
            records.write_failure(output_dir, env.rank, error)
        if env.world_size > 1:
            _exit_soon()
        raise


def _leave() -> None:
    """Ends a rank that has done its work without the interpreter's tear-down.

    There a thread of torch's may outlive what it belongs to ("terminate called without an active exception"): seen now
    and then with four gloo ranks. The rank then counts as failed, and the launcher ends the others before their end.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _exit_soon() -> None:
    """Ends this process even where its end would wait for ranks that cannot answer.

    The launcher ends the other ranks once this process is gone; NCCL's own tear-down may wait for a collective that
    will never be done until its time limit.
    """
    timer = threading.Timer(_EXIT_S, os._exit, (1,))
    timer.daemon = True
    timer.start()


def _run(config: TrainConfig, env: RankEnv, output_dir: Path) -> records.Summary:
    if config.setup is not None:
        env.check_setup(config.setup)
    config.rank_batch(env.world_size)
    import torch

    from disttrain.data import load_splits
    from disttrain.dist import process_group
    from disttrain.family import load_family
    from disttrain.resume import Start
    from disttrain.train import Training, make_optimizer, train

    torch.set_num_threads(choose_threads(env, os.environ, len(os.sched_getaffinity(0))))
    say = _Progress(env.rank == 0)
    with process_group(env, config.device) as group:
        if group.is_main and not (output_dir / records.RUN_NAME).exists():
            records.write_json(output_dir / records.RUN_NAME, _run_info(config, env))
        family = load_family(config.model)
        with group.main_first():  # `datasets` caches what it has read
            splits = load_splits(config, family.INPUT)
        encoded = family.encode(config, splits, group, output_dir)
        torch.manual_seed(config.seed)
        built = family.build(config, encoded)
        model = built.model.to(group.device)
        optimizer = make_optimizer(model, config.weight_decay)
        torch.manual_seed(config.seed + 1 + env.rank)  # of dropout: each rank drops its own units
        checkpoints = open_checkpoints(config, group, output_dir)
        start = checkpoints.load(model, optimizer) if checkpoints else Start()
        path = output_dir / records.metrics_name(env.rank)
        with records.RecordWriter(path, start.records_bytes) as writer:
            notices = (*splits.notices, *encoded.notices, *built.notices, *start.notices)
            writer.write([_start_record(group, encoded, built, start.position.step + 1, notices)])
            for notice in notices:
                say(f"note: {notice}")
            train(Training(config, group, model, optimizer, encoded, writer, say, checkpoints, start))
        own = list(records.read_records(path))
        warmup_steps = config.timing_warmup_steps
        sums = _over_ranks(own_sums(own, warmup_steps), group)
        summary = summarise(own, sums, hosts=group.hosts, num_nodes=env.num_nodes, warmup_steps=warmup_steps)
        if group.is_main:
            if config.save_model and built.save is not None:
                lrs = [record.lr for record in own if isinstance(record, records.StepRecord)]
                decay = math.prod(1 - lr * config.weight_decay for lr in lrs)  # of AdamW, decoupled from the gradient
                _replace_folder(output_dir / "model", lambda folder: built.save and built.save(folder, decay))
            # Last: a run with a summary is done.
            records.write_json(output_dir / records.SUMMARY_NAME, summary)
        if checkpoints:
            checkpoints.clear()
    return summary


def open_checkpoints(config: TrainConfig, group: Group, output_dir: Path) -> Checkpoints | None:
    """The run's checkpoints, if it keeps any."""
    if config.checkpoint_every is None:
        return None
    from disttrain.resume import Checkpoints

    # Of what is trained, not on how many ranks: a run may go on with another number of them.
    identity = run_id("run", config)
    return Checkpoints(output_dir / records.CHECKPOINTS_NAME, group, identity, parse_cadence(config.checkpoint_every))


def _replace_folder(folder: Path, fill: Callable[[Path], object]) -> None:
    """A folder that is whole or not there, in place of what an earlier attempt left."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    fill(temporary)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


class _Progress:
    """Prints a line on rank 0, at once: Slurm and torchrun hand on what is flushed."""

    def __init__(self, wanted: bool) -> None:
        self._wanted = wanted

    def __call__(self, line: str) -> None:
        if self._wanted:
            print(line, flush=True)


def _over_ranks(own: Sums, group: Group) -> Sums:
    import torch

    return Sums(*group.sum(torch.tensor(dataclasses.astuple(own), dtype=torch.float64, device=group.device)).tolist())


def choose_threads(env: RankEnv, environ: Mapping[str, str], cores: int) -> int:
    """Threads that torch computes with on a rank: its share of the cores of its host.

    Args:
        env: This rank's place.
        environ: OMP_NUM_THREADS is obeyed, SLURM_CPUS_PER_TASK is the share that Slurm gave.
        cores: That this process may run on.

    Example:
        >>> choose_threads(RankEnv(world_size=4, local_world_size=4), {}, 16)
        4
    """
    asked = environ.get("OMP_NUM_THREADS", "")
    # torchrun sets 1 for everyone where the user has set nothing, which would leave most cores idle.
    by_torchrun = env.launcher == "torchrun" and env.local_world_size > 1 and asked == "1"
    if asked.isdecimal() and not by_torchrun:
        return max(1, int(asked))
    of_task = environ.get("SLURM_CPUS_PER_TASK", "") if env.launcher == "slurm" else ""
    if of_task.isdecimal():
        return max(1, min(int(of_task), cores))
    return max(1, cores // env.host_world_size)


def _shape(env: RankEnv) -> str:
    return f"{env.num_nodes}x{env.local_world_size}"


def _run_info(config: TrainConfig, env: RankEnv) -> records.RunInfo:
    return records.RunInfo(
        run_id=run_id(_shape(env), config),
        allocation=_shape(env),
        nodes=env.num_nodes,
        gpus_per_node=env.local_world_size,
        world_size=env.world_size,
        train=dataclasses.asdict(config),
        versions=_versions(),
    )


def _start_record(
    group: Group, encoded: Encoded, built: Built, first_step: int, notices: tuple[str, ...]
) -> records.StartRecord:
    import torch

    env = group.env
    return records.StartRecord(
        time_s=time.time(),
        rank=env.rank,
        world_size=env.world_size,
        local_rank=env.local_rank,
        node_rank=env.node_rank,
        host=socket.gethostname(),
        pid=os.getpid(),
        job_id=env.job_id,
        restart_count=env.restart_count,
        first_step=first_step,
        device=str(group.device),
        device_name=_device_name(group.device),
        backend=group.backend,
        shared_gpu=group.shared_gpu,
        folded=env.folded,
        threads=torch.get_num_threads(),
        versions=_versions(),
        parameters=sum(parameter.numel() for parameter in built.model.parameters()),
        train_examples=len(encoded.train),
        eval_examples=len(encoded.eval) if encoded.eval else 0,
        notices=notices,
    )


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in _LIBRARIES}}


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
