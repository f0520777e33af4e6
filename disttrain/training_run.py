"""A run that trains: it prepares data and model, trains from the latest checkpoint, and writes the summary."""

from __future__ import annotations

import dataclasses
import functools
import gc
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from disttrain.analysis.measured_steps import measured_steps, split_by_start
from disttrain.analysis.run_summary import Sums, own_sums, rank_telemetry, summarise
from disttrain.checkpoint.manager import CheckpointManager, ResumePoint
from disttrain.config.cadence import parse_cadence
from disttrain.config.hub_inputs import REVISIONS
from disttrain.config.recipe import RECIPE_VERSION, stream_seed
from disttrain.config.run_id import run_id
from disttrain.config.train_config import FAMILIES, PATH_FIELDS, TrainConfig
from disttrain.data.digest import DataState, data_state
from disttrain.data.sources import import_readers
from disttrain.distributed.device import choose_attention, gpu_uuid
from disttrain.distributed.group import Group
from disttrain.distributed.hang_watch import HangWatch
from disttrain.distributed.start_record import start_record
from disttrain.environment.stop_signals import StopSignals
from disttrain.errors import NewerAttempt, UserError, first_line
from disttrain.measure.gather_steps import drop_old_exchanges, gather_figures, gather_measured_steps, gather_startups
from disttrain.measure.nvml import gpu_settings
from disttrain.measure.start_check import StartCheck
from disttrain.measure.startup import Startup, startup_record
from disttrain.measure.telemetry import open_sampler
from disttrain.models.compact_embedding import left_out_rows
from disttrain.models.compile import compile_model, why_not_compiled
from disttrain.models.encoding import encode_splits
from disttrain.models.family import BuiltModel, EncodedSplits, Family, load_family
from disttrain.records import record_files
from disttrain.records.lifecycle.stage import enter_stage, in_stage
from disttrain.records.record_types import StartRecord, StartupRecord
from disttrain.records.run_folder import remove_results, save_model
from disttrain.records.summary_types import Summary
from disttrain.training.best_model import BestModel
from disttrain.training.ddp import open_exchange
from disttrain.training.loop import TrainingLoop
from disttrain.training.optimizer import make_optimizer
from disttrain.training.precision import LossScaler
from disttrain.training.step_profiler import StepProfiler


@dataclass(frozen=True)
class PreparedRun:
    """The model that a rank trains, with its optimizer and examples."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    encoded: EncodedSplits
    built: BuiltModel
    startup: Startup
    notices: tuple[str, ...]


def import_for(config: TrainConfig, rank: int) -> Family:
    """The family of a run, after the imports of all modules that its training needs on this rank.

    Args:
        config: The resolved config.
        rank: The rank; of those of BERT and ViT only rank 0 reads the data.

    Raises:
        UserError: The family does not exist.
    """
    family = load_family(config.model)
    # After the family: while a model is imported, torch registers operators and searches all modules for each one.
    # That takes 0.2 s longer if pandas, which `datasets` imports, is among them.
    if rank == 0 or config.model not in FAMILIES:
        import_readers(str(config.dataset), family.INPUT)
    return family


def prepare(config: TrainConfig, family: Family, startup: Startup, group: Group, output_dir: Path) -> PreparedRun:
    """Loads and encodes the data, and builds the model and its optimizer.

    Args:
        config: The resolved config.
        family: The family of the model.
        startup: The start of this process.
        group: The ranks.
        output_dir: The run's folder.

    Raises:
        UserError: The config does not fit the data or the checkpoint.
    """
    uncompiled: tuple[str, ...] = ()
    if config.compile:
        uncompiled = why_not_compiled(group)
        config = dataclasses.replace(config, compile=not uncompiled)
    encoded = encode_splits(config, family, group, output_dir)
    choose_attention(many_shapes=encoded.train.lengths is not None)
    torch.manual_seed(stream_seed(config.seed, "weights"))
    built = family.build(config, encoded)
    if config.keep_best_model and built.save is None:
        message = f"model {config.model!r} cannot be saved, so keep_best_model has no effect"
        raise UserError(message, hint="drop keep_best_model, or give the model's family a save")
    model = built.model.to(group.device)
    if config.compile:
        compile_model(model, dynamic=encoded.train.lengths is not None)
    optimizer = make_optimizer(model, config)
    torch.manual_seed(stream_seed(config.seed, "dropout", group.env.rank))
    notices = (*encoded.notices, *built.notices, *uncompiled)
    return PreparedRun(model, optimizer, encoded, built, startup, notices)


def open_checkpoints(
    config: TrainConfig, group: Group, output_dir: Path, stop_signals: StopSignals | None
) -> CheckpointManager | None:
    """The checkpoints of the run; None if it saves none: it has no interval, and is not stopped by signals."""
    if config.checkpoint_every is None and stop_signals is None:
        return None
    cadence = None
    if config.checkpoint_every is not None:
        cadence = parse_cadence(config.checkpoint_every)
    # The id leaves out the number of ranks, because a run may resume with a different number, and the folders of data
    # and pretrained weights, which may be moved: the state of the data identifies them.
    names: dict[str, Any] = {field: _name_of(getattr(config, field)) for field in PATH_FIELDS}
    # Nor the revisions: `sweep prefetch` may pin them between two attempts.
    names |= dict.fromkeys(REVISIONS.values())
    identity = run_id("run", dataclasses.replace(config, **names))
    folder = output_dir / record_files.CHECKPOINTS_NAME
    return CheckpointManager(folder, group, identity, cadence)


def _name_of(path: str | None) -> str | None:
    """The last part of an absolute path; a hub id as it is."""
    if path is None or not os.path.isabs(path):
        return path
    return os.path.basename(os.path.normpath(path))


def train_and_summarise(
    config: TrainConfig,
    group: Group,
    output_dir: Path,
    prepared: PreparedRun,
    checked: StartCheck,
    checkpoints: CheckpointManager | None,
    stop_signals: StopSignals | None,
) -> Summary:
    """Trains from the latest checkpoint or from the beginning, and writes records, trained model and summary.

    Args:
        config: The resolved config.
        group: The ranks.
        output_dir: The run's folder.
        prepared: The model and the data.
        checked: The result of the start check.
        checkpoints: The run's checkpoints; None if it saves none.
        stop_signals: The stop signals of this process; None if it does not act on them.

    Returns:
        The summary. Rank 0's is the run's; the other ranks' are from their own records alone.
    """
    path = output_dir / record_files.metrics_name(group.env.rank)
    start = ResumePoint()
    # It takes a second for a million examples. A run that only saves when it is stopped needs it then.
    data = functools.cache(functools.partial(_data_state, prepared, group))
    if config.checkpoint_every is not None:
        data()
    if checkpoints is not None:
        start = checkpoints.load(prepared.model, prepared.optimizer, data, path)
    if group.is_main:
        remove_results(output_dir, group.env.world_size)
    keeps_best = config.keep_best_model and group.is_main
    best = BestModel(prepared.model, start.progress.best, keep=keeps_best)
    _train(config, group, prepared, path, checked, checkpoints, stop_signals, data, start, best)
    enter_stage(output_dir, group.env, "saving")
    summary = _summarise(config, group, prepared.startup, path)
    # srun ends a job two minutes after its first rank has left, and a large model may take longer to save.
    with group.main_first():
        if group.is_main:
            best.restore()
            summary = _save_results(summary, config, prepared.built, output_dir, checkpoints, best)
    group.barrier()  # rank 0 holds the store on which the others wait
    if checkpoints is not None:
        checkpoints.clear()
    return summary


def _data_state(prepared: PreparedRun, group: Group) -> DataState:
    """The state of the data, as rank 0 computes it, with the pretrained weights that no checkpoint has."""
    encoded = prepared.encoded
    own = DataState(len(encoded.train), "")
    if group.is_main:
        own = data_state(
            encoded.train,
            encoded.eval,
            encoded.label_names,
            getattr(encoded.reader, "used", None),
            *left_out_rows(prepared.built.model),
            # The mean and the deviation of the pixels.
            *(buffer.cpu().numpy() for buffer in prepared.built.model.buffers(recurse=False)),
        )
    return group.broadcast_from_main(own)


def _train(
    config: TrainConfig,
    group: Group,
    prepared: PreparedRun,
    path: Path,
    checked: StartCheck,
    checkpoints: CheckpointManager | None,
    stop_signals: StopSignals | None,
    data: Callable[[], DataState],
    start: ResumePoint,
    best: BestModel,
) -> None:
    """Trains to the last step, and writes this rank's records to `path`."""
    sampler, telemetry_notices = open_sampler(config.telemetry_every_s, gpu_uuid(group.device))
    exchange = open_exchange(prepared.model, group, config)
    notices = (
        *group.notices, *exchange.notices, *checked.notices, *prepared.notices, *start.notices, *telemetry_notices
    )  # fmt: skip
    first_step = start.position.step + 1
    scaler = LossScaler(config.precision, group.device)
    scaler.load(start.progress.scaler)
    with record_files.RecordWriter(path, start.records) as writer:
        started = _start_record(group, prepared, first_step, notices, shared_memory=exchange.shared is not None)
        # Without records of earlier steps, that of the best evaluation is in the checkpoint alone.
        evaluated = [best.record] if best.record is not None and not start.records.size_bytes else []
        writer.write([started, *evaluated, *start.saved, *checked.records])
        for notice in notices:
            group.say(f"note: {notice}")
        gc.freeze()  # collections during training then scan only the objects that training makes
        gc.enable()
        watch = HangWatch(
            group,
            path.parent,
            config.collective_timeout_s,
            first_step,
            checkpoints.is_overtaken if checkpoints is not None else lambda: False,
        )
        with sampler, watch:
            loop = TrainingLoop(
                config,
                group,
                prepared.model,
                prepared.optimizer,
                scaler,
                best,
                prepared.encoded,
                writer,
                shared=exchange.shared,
                checkpoints=checkpoints,
                stop_signals=stop_signals,
                data=data,
                start=start,
                startup=prepared.startup,
                watch=watch,
                take_samples=sampler.taken,
                skips_parameters=prepared.built.skips_parameters,
                in_stage=functools.partial(in_stage, path.parent, group.env),
                profiler=StepProfiler.of(config, group.env.rank, path.parent),
            )
            enter_stage(path.parent, group.env, "training", steps=loop.steps)
            end = loop.run()
        writer.write([*sampler.taken(), end])


def _summarise(config: TrainConfig, group: Group, startup: Startup, path: Path) -> Summary:
    own = drop_old_exchanges(record_files.read_records(path))
    warmup_steps = config.timing_warmup_steps
    sums = _sum_over_ranks(own_sums(own, warmup_steps, first_on_gpu=group.first_on_gpu), group)
    # Only the records since the latest start: earlier ones may be from other hosts.
    latest = split_by_start(own)[-1]
    # A run that resumes after its last step has no first step.
    startups = [record for record in latest if isinstance(record, StartupRecord)] or [startup_record(startup, None)]
    starts = [record for record in latest if isinstance(record, StartRecord)]
    return summarise(
        own,
        sums,
        gather_measured_steps(measured_steps(latest, warmup_steps), group),
        startups=gather_startups(startups[-1], group),
        hosts=group.hosts,
        num_nodes=group.env.num_nodes,
        warmup_steps=warmup_steps,
        starts=group.gather_objects_on_main(starts[-1]),
        telemetry=gather_figures(rank_telemetry(own), group),
    )


def _save_results(
    summary: Summary,
    config: TrainConfig,
    built: BuiltModel,
    output_dir: Path,
    checkpoints: CheckpointManager | None,
    best: BestModel,
) -> Summary:
    """Writes the trained model, and the summary last: a run with a summary counts as complete."""
    check_owner = checkpoints.check_owner if checkpoints is not None else lambda: None
    if config.save_model and built.save is not None:
        notice = None
        if config.keep_best_model:
            notice = best.notice(summary["steps"])
        try:
            save_model(output_dir, built.save, check_owner)
        except NewerAttempt:
            raise
        except Exception as error:  # noqa: BLE001 - the measurements must survive a full disk, which raises many kinds
            reason = first_line(error)
            notice = f"the trained model could not be saved: {reason}"
        if notice is not None:
            summary["notices"] = (*summary["notices"], notice)
            print(f"note: {notice}", flush=True)
    check_owner()
    record_files.write_json(output_dir / record_files.SUMMARY_NAME, summary)
    return summary


def _start_record(
    group: Group, prepared: PreparedRun, first_step: int, notices: tuple[str, ...], *, shared_memory: bool
) -> StartRecord:
    encoded = prepared.encoded
    return start_record(
        group,
        first_step=first_step,
        recipe_version=RECIPE_VERSION,
        parameters=sum(parameter.numel() for parameter in prepared.built.model.parameters()),
        model_changes=prepared.built.model_changes,
        train_examples=len(encoded.train),
        eval_examples=len(encoded.eval or ()),
        notices=notices,
        gpu_settings=dataclasses.asdict(gpu_settings(gpu_uuid(group.device))),
        shared_memory=shared_memory,
    )


def _sum_over_ranks(own: Sums, group: Group) -> Sums:
    values = torch.tensor(dataclasses.astuple(own), dtype=torch.float64, device=group.device)
    return Sums(*group.sum(values).tolist())
