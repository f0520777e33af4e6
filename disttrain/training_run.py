"""A run that trains: prepares data, model and optimizer, trains from where the run stands, and writes the summary."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from disttrain.analysis.measured_steps import measured_steps, split_by_start
from disttrain.analysis.run_summary import Sums, own_sums, summarise
from disttrain.checkpoint.manager import CheckpointManager, ResumePoint
from disttrain.config.run_id import run_id
from disttrain.config.train_config import TrainConfig, parse_cadence
from disttrain.distributed.device import gpu_uuid
from disttrain.distributed.group import Group
from disttrain.distributed.start_record import start_record
from disttrain.measure.gather_steps import drop_old_exchanges, gather_measured_steps
from disttrain.measure.start_check import StartCheck
from disttrain.measure.telemetry import open_sampler
from disttrain.models.compile import compile_model, why_not_compiled
from disttrain.models.family import BuiltModel, EncodedSplits, load_family
from disttrain.records import record_files
from disttrain.records.record_types import StartRecord
from disttrain.records.run_folder import remove_results, save_model
from disttrain.records.summary_types import Summary
from disttrain.training.loop import TrainingLoop
from disttrain.training.optimizer import make_optimizer


@dataclass(frozen=True)
class PreparedRun:
    """The model that a rank trains, its optimizer and its examples."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    encoded: EncodedSplits
    built: BuiltModel
    notices: tuple[str, ...]


def prepare(config: TrainConfig, group: Group, output_dir: Path) -> PreparedRun:
    """Loads and encodes the data, and builds the model and its optimizer.

    Args:
        config: A resolved config.
        group: The ranks.
        output_dir: The run's folder.

    Raises:
        UserError: The config and the data or the checkpoint do not fit.
    """
    family = load_family(config.model)
    # After the family's own imports: see disttrain.models.family.
    from disttrain.data.splits import load_splits

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
    torch.manual_seed(config.seed + 1 + group.env.rank)  # dropout: each rank drops its own units
    notices = (*splits.notices, *encoded.notices, *built.notices, *uncompiled)
    return PreparedRun(model, optimizer, encoded, built, notices)


def open_checkpoints(config: TrainConfig, group: Group, output_dir: Path) -> CheckpointManager | None:
    """The checkpoints of the run; None if the config asks for none."""
    if config.checkpoint_every is None:
        return None
    # The id leaves out the number of ranks, because a run may resume with a different number.
    identity = run_id("run", config)
    folder = output_dir / record_files.CHECKPOINTS_NAME
    return CheckpointManager(folder, group, identity, parse_cadence(config.checkpoint_every))


def train_and_summarise(
    config: TrainConfig,
    group: Group,
    output_dir: Path,
    prepared: PreparedRun,
    checked: StartCheck,
    checkpoints: CheckpointManager | None,
) -> Summary:
    """Trains from the latest checkpoint or from the beginning, and writes records, trained model and summary.

    Args:
        config: A resolved config.
        group: The ranks.
        output_dir: The run's folder.
        prepared: What `prepare` returned.
        checked: The outcome of the start check.
        checkpoints: Of the run; None if it saves none.

    Returns:
        The summary, the same on every rank.
    """
    env, model, optimizer = group.env, prepared.model, prepared.optimizer
    path = output_dir / record_files.metrics_name(env.rank)
    start = checkpoints.load(model, optimizer, len(prepared.encoded.train), path) if checkpoints else ResumePoint()
    if group.is_main:
        remove_results(output_dir, env.world_size)
    sampler, unsampled = open_sampler(config.telemetry_every_s, gpu_uuid(group.device))
    with record_files.RecordWriter(path, start.records) as writer:
        notices = (*checked.notices, *prepared.notices, *start.notices, *unsampled)
        writer.write([_start_record(group, prepared, start.position.step + 1, notices), *start.saved, *checked.records])
        for notice in notices:
            group.say(f"note: {notice}")
        gc.freeze()  # a collection during training looks only at what training makes
        gc.enable()
        with sampler:
            end = TrainingLoop(
                config,
                group,
                model,
                optimizer,
                prepared.encoded,
                writer,
                checkpoints=checkpoints,
                start=start,
                take_samples=sampler.taken,
            ).run()
        writer.write([*sampler.taken(), end])
    summary = _summarise(config, group, path)
    if group.is_main:
        save = prepared.built.save if config.save_model else None
        summary = _save_results(summary, save, output_dir, checkpoints)
    if checkpoints:
        checkpoints.clear()
    return summary


def _summarise(config: TrainConfig, group: Group, path: Path) -> Summary:
    own = drop_old_exchanges(record_files.read_records(path))
    warmup_steps = config.timing_warmup_steps
    sums = _sum_over_ranks(own_sums(own, warmup_steps, first_on_gpu=group.first_on_gpu), group)
    # Only the steps of this start: earlier ones may have run on other hosts.
    ranks = gather_measured_steps(measured_steps(split_by_start(own)[-1], warmup_steps), group)
    return summarise(own, sums, ranks, hosts=group.hosts, num_nodes=group.env.num_nodes, warmup_steps=warmup_steps)


def _save_results(
    summary: Summary, save: Callable[[Path], object] | None, output_dir: Path, checkpoints: CheckpointManager | None
) -> Summary:
    """Writes the trained model, and the summary last: a run with a summary is done."""
    check_owner = checkpoints.check_owner if checkpoints else lambda: None
    if save is not None:
        try:
            save_model(output_dir, save, check_owner)
        except OSError as error:  # a full disk must not cost what was measured
            lost = f"the trained model could not be saved: {error}"
            summary = dataclasses.replace(summary, notices=(*summary.notices, lost))
            print(f"note: {lost}", flush=True)
    check_owner()
    record_files.write_json(output_dir / record_files.SUMMARY_NAME, summary)
    return summary


def _start_record(group: Group, prepared: PreparedRun, first_step: int, notices: tuple[str, ...]) -> StartRecord:
    encoded = prepared.encoded
    return start_record(
        group,
        first_step=first_step,
        parameters=sum(parameter.numel() for parameter in prepared.built.model.parameters()),
        train_examples=len(encoded.train),
        eval_examples=len(encoded.eval) if encoded.eval else 0,
        notices=notices,
    )


def _sum_over_ranks(own: Sums, group: Group) -> Sums:
    values = torch.tensor(dataclasses.astuple(own), dtype=torch.float64, device=group.device)
    return Sums(*group.sum(values).tolist())
