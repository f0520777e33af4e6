"""One rank from its environment to the run's summary: what RankTask, bert.py and vit.py call."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from disttrain.analysis.measured_steps import measured, starts
from disttrain.analysis.run_summary import Sums, own_sums, summarise
from disttrain.config.flags import parse_flags
from disttrain.config.train_config import LINK, TrainConfig, absolute_paths, parse_cadence, run_id
from disttrain.distributed.process_exit import exit_soon, leave_without_teardown
from disttrain.distributed.start_record import choose_threads, gpu_uuid, shape, start_record
from disttrain.environment.rank_env import RankEnv
from disttrain.errors import BrokenNode, NewerAttempt, UserError
from disttrain.records import record_files as recordfile
from disttrain.records.record_types import StartRecord
from disttrain.records.run_folder import begin_run, keep_model, remove_results
from disttrain.records.summary_types import Summary

# torch and what needs it is imported where a rank really runs: --help and a wrong flag need none of it.
if TYPE_CHECKING:
    import torch

    from disttrain.checkpoint.manager import Checkpoints
    from disttrain.distributed.group import Group
    from disttrain.measure.start_check import StartCheck
    from disttrain.models.family import Built, Encoded


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
    except (UserError, BrokenNode, NewerAttempt) as error:
        # In one write, the line's end with it: ranks share this stream, and print would let another's line in between.
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2 if isinstance(error, UserError) else 1)
    if env.rank == 0:
        print(f"results: {output_dir}")


def default_output_dir(config: TrainConfig, env: RankEnv, environ: Mapping[str, str]) -> Path:
    """Where a run that no sweep started puts its files: ``<root>/torchrun/<run_id>``."""
    return Path(environ.get("SWEEP_ROOT") or "runs") / "torchrun" / run_id(shape(env), config)


def run(config: TrainConfig, env: RankEnv, output_dir: Path) -> Summary:
    """Does one rank's part of a run, and leaves its records, and rank 0's summary, in `output_dir`.

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
    (output_dir / recordfile.failure_name(env.rank)).unlink(missing_ok=True)
    # What is imported and built on the way to the first step stays: collecting garbage meanwhile looks through it again
    # and again and finds none, for 17 % of that time.
    gc.disable()
    try:
        summary = _run(config.resolved(), env, output_dir)
        if env.world_size > 1:
            leave_without_teardown()
        return summary
    except Exception as error:
        # One that has been overtaken leaves no word: the folder is the newer attempt's.
        if not isinstance(error, NewerAttempt):
            recordfile.write_failure(output_dir, env.rank, error)
        if env.world_size > 1:
            exit_soon()
        raise
    finally:
        gc.enable()


def _run(config: TrainConfig, env: RankEnv, output_dir: Path) -> Summary:
    if config.setup is not None:
        env.check_setup(config.setup)
    config.check_world_size(env.world_size)
    import torch

    from disttrain.distributed.group import process_group
    from disttrain.measure.start_check import check_start

    torch.set_num_threads(choose_threads(env, os.environ, len(os.sched_getaffinity(0))))
    if config.deterministic:
        _compute_deterministically()
    with process_group(env, config.device) as group:
        finished = group.from_main(begin_run(config, env, output_dir) if group.is_main else None)
        if finished is not None:
            return finished
        checked = check_start(config, group)  # before data are prepared for an hour, on ranks that are of no use
        if config.model == LINK:
            from disttrain.measure.all_reduce import run_link

            return run_link(group, output_dir, checked.records, checked.notices)
        prepared = _prepare(config, group, output_dir)
        checkpoints = open_checkpoints(config, group, output_dir)
        try:
            return _train(config, group, output_dir, prepared, checked, checkpoints)
        except Exception as error:
            # The ranks of an attempt that was overtaken lose each other; what they say then is of no use to the newer.
            overtaken = False
            with contextlib.suppress(OSError):  # what went wrong first is what is told
                overtaken = checkpoints is not None and checkpoints.is_overtaken()
            if overtaken:
                raise NewerAttempt("a newer attempt of this run has started") from error
            raise


@dataclass(frozen=True)
class _Prepared:
    """What a rank trains, and on what."""

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    encoded: Encoded
    built: Built
    notices: tuple[str, ...]


def _prepare(config: TrainConfig, group: Group, output_dir: Path) -> _Prepared:
    import torch

    from disttrain.models.compile import compile_model, why_not_compiled
    from disttrain.models.family import load_family
    from disttrain.training.loop import make_optimizer

    family = load_family(config.model)
    from disttrain.data.splits import load_splits  # behind the family's own imports: see disttrain.models.family

    with group.main_first():  # `datasets` caches what it has read
        splits = load_splits(config, family.INPUT)
    uncompiled = why_not_compiled(group) if config.compile else ()
    config = dataclasses.replace(config, compile=config.compile and not uncompiled)
    encoded = family.encode(config, splits, group, output_dir)
    torch.manual_seed(config.seed)
    built = family.build(config, encoded)
    model = built.model.to(group.device)
    if config.compile:
        compile_model(model, dynamic=encoded.train.lengths is not None)
    optimizer = make_optimizer(model, config.weight_decay)
    torch.manual_seed(config.seed + 1 + group.env.rank)  # of dropout: each rank drops its own units
    notices = (*splits.notices, *encoded.notices, *built.notices, *uncompiled)
    return _Prepared(model, optimizer, encoded, built, notices)


def _train(
    config: TrainConfig,
    group: Group,
    output_dir: Path,
    prepared: _Prepared,
    checked: StartCheck,
    checkpoints: Checkpoints | None,
) -> Summary:
    from disttrain.checkpoint.manager import Start
    from disttrain.measure.gather_steps import gather_measured, recent
    from disttrain.measure.telemetry import open_sampler
    from disttrain.training.loop import Training, train

    env, model, optimizer, encoded = group.env, prepared.model, prepared.optimizer, prepared.encoded
    path = output_dir / recordfile.metrics_name(env.rank)
    start = checkpoints.load(model, optimizer, len(encoded.train), path) if checkpoints else Start()
    if group.is_main:
        remove_results(output_dir, env.world_size)
    sampler, unsampled = open_sampler(config.telemetry_every_s, gpu_uuid(group.device))
    with recordfile.RecordWriter(path, start.records) as writer:
        notices = (*checked.notices, *prepared.notices, *start.notices, *unsampled)
        writer.write([_start_record(group, prepared, start.position.step + 1, notices), *start.saved, *checked.records])
        for notice in notices:
            group.say(f"note: {notice}")
        gc.freeze()  # a collection during training looks only at what training makes
        gc.enable()
        with sampler:
            end = train(Training(config, group, model, optimizer, encoded, writer, checkpoints, start, sampler.taken))
        writer.write([*sampler.taken(), end])
    own = recent(recordfile.read_records(path))
    warmup_steps = config.timing_warmup_steps
    sums = _over_ranks(own_sums(own, warmup_steps, first_on_gpu=group.first_on_gpu), group)
    ranks = gather_measured(measured(starts(own)[-1], warmup_steps), group)  # which ran on the hosts of now
    summary = summarise(own, sums, ranks, hosts=group.hosts, num_nodes=env.num_nodes, warmup_steps=warmup_steps)
    if group.is_main:
        summary = _keep(summary, prepared.built.save if config.save_model else None, output_dir, checkpoints)
    if checkpoints:
        checkpoints.clear()
    return summary


def _keep(
    summary: Summary, save: Callable[[Path], object] | None, output_dir: Path, checkpoints: Checkpoints | None
) -> Summary:
    """Leaves the trained model, and last the summary: a run that has one is done."""
    check_owner = checkpoints.check_owner if checkpoints else lambda: None
    if save is not None:
        try:
            keep_model(output_dir, save, check_owner)
        except OSError as error:  # a full disk must not cost what was measured
            lost = f"the trained model could not be saved: {error}"
            summary = dataclasses.replace(summary, notices=(*summary.notices, lost))
            print(f"note: {lost}", flush=True)
    check_owner()
    recordfile.write_json(output_dir / recordfile.SUMMARY_NAME, summary)
    return summary


def _start_record(group: Group, prepared: _Prepared, first_step: int, notices: tuple[str, ...]) -> StartRecord:
    encoded = prepared.encoded
    return start_record(
        group,
        first_step=first_step,
        parameters=sum(parameter.numel() for parameter in prepared.built.model.parameters()),
        train_examples=len(encoded.train),
        eval_examples=len(encoded.eval) if encoded.eval else 0,
        notices=notices,
    )


def _compute_deterministically() -> None:
    """Makes torch choose kernels that give the same bits each time, and refuse where it has none."""
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it at its first call
    torch.use_deterministic_algorithms(True)


def open_checkpoints(config: TrainConfig, group: Group, output_dir: Path) -> Checkpoints | None:
    """The run's checkpoints, if it keeps any."""
    if config.checkpoint_every is None:
        return None
    from disttrain.checkpoint.manager import Checkpoints

    # Of what is trained, not on how many ranks: a run may go on with another number of them.
    identity = run_id("run", config)
    return Checkpoints(
        output_dir / recordfile.CHECKPOINTS_NAME, group, identity, parse_cadence(config.checkpoint_every)
    )


def _over_ranks(own: Sums, group: Group) -> Sums:
    import torch

    return Sums(*group.sum(torch.tensor(dataclasses.astuple(own), dtype=torch.float64, device=group.device)).tolist())
