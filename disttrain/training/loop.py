"""The training loop: DDP, AdamW, schedule, evaluation that counts each example once, and records of it all."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from disttrain.checkpoint.manager import Checkpoints, Start
from disttrain.config.train_config import TrainConfig
from disttrain.data.batches import Batch, Examples, GlobalBatches, RankStep, eval_batches, load_batches
from disttrain.distributed.group import Group
from disttrain.measure.clock_offset import clock_offset
from disttrain.measure.phase_timer import PhaseTimer
from disttrain.models.family import Encoded
from disttrain.records.record_files import RecordWriter
from disttrain.records.record_types import ClockRecord, EndRecord, EvalRecord, Record, TelemetryRecord
from disttrain.training.comm_cross_check import PAIRS, WARM_UP, cross_check, nothing_learnt
from disttrain.training.ddp import no_exchange, parallel, share_buffers
from disttrain.training.optimizer import lr_factor
from disttrain.training.step_writer import StepLog

# Evaluation keeps no activations, so it may take more than a rank's training batch.
MIN_EVAL_BATCH = 32


@dataclass(frozen=True)
class Training:
    """What the loop works on.

    Attributes:
        config: A resolved config.
        group: The ranks.
        model: On the group's device, the same weights on every rank.
        optimizer: Of the model.
        encoded: The examples, the same on every rank.
        writer: Of this rank.
        checkpoints: None: the run is not saved.
        start: Where to begin; model and optimizer are as they were there.
        sampled: Gives what telemetry has sampled since it was last asked.
    """

    config: TrainConfig
    group: Group
    model: nn.Module
    optimizer: torch.optim.Optimizer
    encoded: Encoded
    writer: RecordWriter
    checkpoints: Checkpoints | None = None
    start: Start = Start()  # noqa: RUF009 - immutable
    sampled: Callable[[], list[TelemetryRecord]] = list


def train(training: Training) -> EndRecord:
    """Trains the model and writes step, evaluation and checkpoint records.

    Returns:
        The end record, which is to be written behind all others.
    """
    config, group, start = training.config, training.group, training.start
    rank, plan = group.env.rank, _plan(training)
    steps = config.max_steps or plan.total_steps(config.epochs, start.position)
    timer = PhaseTimer(group.device, alone=group.backend is None)
    trained = parallel(training.model, group, config, timer)
    _settle_buckets(trained, training, plan)
    if training.checkpoints is not None:
        training.checkpoints.begin(start.position, training.model)
    own_batches = (indices for step in plan.rank_steps(rank, steps, start.position) for indices in step.batches)
    batches = load_batches(training.encoded.train, own_batches, group.device, config.num_workers)
    log = StepLog(training.writer, timer, steps, group.say, lambda: _beside(training))
    training.model.train()
    _note_clock(training)
    _cross_check(trained, training, plan, timer)
    began, eval_s = time.perf_counter(), 0.0

    def train_s() -> float:
        return start.train_s + time.perf_counter() - began - eval_s

    timer.restart()
    for step in plan.rank_steps(rank, steps, start.position):
        lr = _set_lr(training, step.step, steps)
        loss = _add_gradients(trained, step, batches, config, group, timer)
        training.optimizer.step()
        training.optimizer.zero_grad(set_to_none=True)
        timer.lap("optimizer")
        timer.end_step()
        log.add(step, lr, loss)
        if training.encoded.eval is not None and eval_due(step, steps, config.eval_every):
            log.flush()
            eval_s += _evaluate(training, step.step, steps)
            timer.restart()
        # Behind the evaluation of the same step, whose record a run that goes on from here must have.
        if training.checkpoints is not None and training.checkpoints.is_due(step.step):
            if training.checkpoints.saves_at_due:
                log.flush()
                _save(training, training.checkpoints, step, train_s())
            training.checkpoints.decide(step.step)
            timer.restart()
    log.flush()
    if start.position.step == steps and not start.records.size_bytes and training.encoded.eval is not None:
        _evaluate(training, steps, steps)  # the run was saved behind its last step, its records are gone
    if training.checkpoints is not None:
        training.checkpoints.end(training.writer)
    ended = EndRecord(time_s=time.time(), steps=steps, train_s=train_s())
    _note_clock(training)
    return ended


def _beside(training: Training) -> list[Record]:
    """What happened beside the steps since the last call."""
    saved = training.checkpoints.outcomes() if training.checkpoints is not None else []
    return [*training.sampled(), *saved]


def _plan(training: Training) -> GlobalBatches:
    config, world_size = training.config, training.group.env.world_size
    return GlobalBatches(
        examples=len(training.encoded.train),
        rank_batch=config.rank_batch(world_size),
        world_size=world_size,
        accum_steps=config.grad_accum_steps,
        seed=config.seed,
        lengths=training.encoded.train.lengths if config.group_by_length else None,
    )


def _set_lr(training: Training, step: int, steps: int) -> float:
    """Gives the optimizer the learning rate of a step, and returns it."""
    config, warmup = training.config, math.ceil(training.config.warmup_ratio * steps)
    peak_lr = config.peak_lr(training.group.env.world_size)
    lr = peak_lr * lr_factor(step - 1, steps, warmup, config.lr_schedule)
    for parameters in training.optimizer.param_groups:
        parameters["lr"] = lr
    return lr


def _save(training: Training, checkpoints: Checkpoints, step: RankStep, train_s: float) -> None:
    share_buffers(training.model, training.group)
    examples = len(training.encoded.train)
    checkpoints.save(step.end, training.model, training.optimizer, examples, train_s, training.writer)


def _evaluate(training: Training, step: int, steps: int) -> float:
    """Evaluates, and gives the seconds that it took."""
    assert training.encoded.eval is not None
    share_buffers(training.model, training.group)
    record = evaluate(training.model, training.encoded.eval, step, training.config, training.group)
    training.writer.write([record])
    training.group.say(f"step {step}/{steps}  eval loss {record.loss:.4f}  accuracy {record.accuracy:.4f}")
    training.model.train()
    return record.elapsed_s


def _settle_buckets(trained: nn.Module, training: Training, plan: GlobalBatches) -> None:
    """One forward and backward pass that nothing is learnt from.

    DDP orders its buckets anew after the first backward pass of a process, in the order in which gradients came; with
    another order of buckets four ranks sum in another order. Behind this pass the steps of a run that goes on have the
    buckets, and so the sums, of one that was not interrupted; and where they are watched, all steps have the same.
    """
    needed = training.checkpoints is not None or training.config.detailed_timing
    if training.group.backend is None or not needed:
        return
    first = next(plan.rank_steps(training.group.env.rank, training.start.position.step + 1, training.start.position))
    (batch,) = load_batches(training.encoded.train, [first.batches[0]], training.group.device, 0)
    with nothing_learnt(training.model, training.optimizer, training.group.device):
        _loss(trained, batch, training).backward()  # type: ignore[no-untyped-call]


def _loss(trained: nn.Module, batch: Batch, training: Training) -> Tensor:
    with _precision(training.config, training.group.device):
        logits = trained(batch)
    return loss_sum(logits, batch["labels"])


def _cross_check(trained: nn.Module, training: Training, plan: GlobalBatches, timer: PhaseTimer) -> None:
    """Estimates the exposed exchange in other ways, before the first step: a failure then loses nothing."""
    if not training.config.detailed_timing:
        return
    steps = plan.rank_steps(training.group.env.rank, WARM_UP + PAIRS)
    batches = load_batches(training.encoded.train, (step.batches[0] for step in steps), training.group.device, 0)
    with nothing_learnt(training.model, training.optimizer, training.group.device):
        found = cross_check(
            trained,
            batches,
            lambda batch: _loss(trained, batch, training),
            training.optimizer,
            training.group,
            timer,
        )
    if found is not None:
        training.writer.write([found])


def _note_clock(training: Training) -> None:
    """How far this host's clock is from rank 0's, where times of ranks are to be compared."""
    if training.config.detailed_timing:
        offset = clock_offset(training.group)
        now_s = time.perf_counter()
        training.writer.write([ClockRecord(at_s=now_s, offset_s=offset.offset_s, error_s=offset.error_s)])


def _add_gradients(
    trained: nn.Module, step: RankStep, batches: Iterator[Batch], config: TrainConfig, group: Group, timer: PhaseTimer
) -> Tensor:
    """The forward and backward passes of one optimizer step.

    Returns:
        The loss summed over this rank's examples, on the device.
    """
    # DDP takes the mean over ranks: with this weight it is the mean over the examples of the whole step.
    weight = group.env.world_size / step.global_examples if step.examples else 0.0
    loss = torch.zeros((), device=group.device)
    for number, batch in enumerate(islice(batches, len(step.batches)), start=1):
        timer.lap("data")
        with no_exchange(trained, number < len(step.batches)):
            with _precision(config, group.device):
                logits = trained(batch)
            part = loss_sum(logits, batch["labels"])
            timer.lap("forward")
            (part * weight).backward()  # type: ignore[no-untyped-call]
            timer.lap("backward")
        loss += part.detach()
    return loss


def loss_sum(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, summed over the examples, so that parts of a batch add up whatever their size."""
    return cross_entropy(logits.float(), labels, reduction="sum")


def evaluate(model: nn.Module, examples: Examples, step: int, config: TrainConfig, group: Group) -> EvalRecord:
    """Loss and accuracy over all evaluation examples, shared among the ranks; the same on each of them.

    Args:
        model: Not DDP's wrapper, which would wait for ranks that have one batch more or less.
        examples: Of the whole split.
        step: After which step.
        config: The run's.
        group: The ranks.
    """
    start = time.perf_counter()
    model.eval()
    env = group.env
    size = max(config.rank_batch(env.world_size), MIN_EVAL_BATCH)
    index_lists = eval_batches(len(examples), env.rank, env.world_size, size, examples.lengths)
    # Loss, right answers, examples; in float64, where sums of 10^5 losses lose nothing.
    sums = torch.zeros(3, dtype=torch.float64, device=group.device)
    with torch.no_grad():
        for batch in load_batches(examples, index_lists, group.device, config.num_workers):
            with _precision(config, group.device):
                logits = model(batch)
            labels = batch["labels"]
            sums[0] += loss_sum(logits, labels)
            sums[1] += (logits.argmax(dim=-1) == labels).sum()
            sums[2] += len(labels)
    loss, right, count = group.sum(sums).tolist()
    assert count == len(examples)
    return EvalRecord(
        step=step, loss=loss / count, accuracy=right / count, examples=int(count), elapsed_s=time.perf_counter() - start
    )


def eval_due(step: RankStep, steps: int, eval_every: int | None) -> bool:
    """Whether to evaluate after this step: the last one, and every so many or those that end an epoch."""
    return step.step == steps or (step.step % eval_every == 0 if eval_every else step.last_of_epoch)


def _precision(config: TrainConfig, device: torch.device) -> AbstractContextManager[None]:
    return torch.autocast(device.type, torch.bfloat16) if config.precision == "bf16" else nullcontext()
