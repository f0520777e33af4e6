"""The training loop: from a prepared model and its examples to the records of all steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn

from disttrain.checkpoint.manager import CheckpointManager, Progress, ResumePoint
from disttrain.config.train_config import TrainConfig
from disttrain.data.batches import Batch, GlobalBatches, Indices, RankStep, load_batches
from disttrain.data.digest import DataState
from disttrain.distributed.group import Group
from disttrain.distributed.hang_watch import HangWatch
from disttrain.distributed.shared_memory import SharedMean
from disttrain.environment.stop_signals import StopSignals
from disttrain.errors import Stopped
from disttrain.measure.clock_offset import clock_offset
from disttrain.measure.phase_timer import PhaseTimer
from disttrain.measure.startup import Startup
from disttrain.models.family import EncodedSplits
from disttrain.records.lifecycle.stage import StageName
from disttrain.records.record_files import RecordWriter
from disttrain.records.record_types import ClockRecord, EndRecord, Record, TelemetryRecord
from disttrain.training.best_model import BestModel
from disttrain.training.comm_cross_check import PAIRS, WARM_UP, cross_check, preserve_training_state
from disttrain.training.ddp import broadcast_buffers, skip_gradient_sync, wrap_ddp
from disttrain.training.evaluation import eval_due, evaluate, loss_sum
from disttrain.training.optimizer import lr_factor
from disttrain.training.precision import LossScaler, autocast
from disttrain.training.step_profiler import StepProfiler
from disttrain.training.step_writer import StepWriter
from disttrain.training.stop_agreement import StopAgreement


class TrainingLoop:
    """Trains a model and writes its step, evaluation and checkpoint records.

    Args:
        config: A resolved config.
        group: The ranks.
        model: The model on the group's device, with the same weights on every rank.
        optimizer: The optimizer of the model.
        scaler: The scale of its losses.
        best: The best evaluation so far.
        encoded: The examples, the same on every rank.
        writer: The writer of this rank's records.
        shared: The memory in which the ranks exchange gradients; None for all-reduces of the backend.
        checkpoints: The run's checkpoints; None if it saves none.
        stop_signals: The stop signals of this process; None if it does not act on them.
        data: Returns the state of the data, which checkpoints have.
        start: Where to begin; model and optimizer are in the state of that moment.
        startup: The start of this process.
        watch: Ends this rank if a step does not end.
        take_samples: Returns the telemetry sampled since its last call.
        skips_parameters: Whether a step may give parameters no gradient; None if the first pass shows it.
        in_stage: Notes for the block that training is interrupted, and by what.
        profiler: Records some steps with torch.profiler; None for no steps.
    """

    def __init__(
        self,
        config: TrainConfig,
        group: Group,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: LossScaler,
        best: BestModel,
        encoded: EncodedSplits,
        writer: RecordWriter,
        *,
        shared: SharedMean | None,
        checkpoints: CheckpointManager | None,
        stop_signals: StopSignals | None,
        data: Callable[[], DataState],
        start: ResumePoint,
        startup: Startup,
        watch: HangWatch,
        take_samples: Callable[[], list[TelemetryRecord]],
        skips_parameters: bool | None = False,
        in_stage: Callable[[StageName], AbstractContextManager[None]] = lambda _: nullcontext(),
        profiler: StepProfiler | None = None,
    ) -> None:
        self._config = config
        self._group = group
        self._model = model
        self._optimizer = optimizer
        self._scaler = scaler
        self._best = best
        self._train_examples, self._eval_examples = encoded.train, encoded.eval
        self._classes = len(encoded.label_names)
        self._writer = writer
        self._checkpoints = checkpoints
        self._data = data
        self._start = start
        self._watch = watch
        self._take_samples = take_samples
        self._in_stage = in_stage
        self._profiler = profiler or StepProfiler()
        world_size = group.env.world_size
        self._plan = GlobalBatches(
            examples=len(encoded.train),
            rank_batch=config.rank_batch(world_size),
            world_size=world_size,
            accum_steps=config.grad_accum_steps,
            seed=config.seed,
            lengths=encoded.train.lengths if config.group_by_length else None,
        )
        self._steps = config.max_steps or self._plan.total_steps(config.epochs, start.position)
        self._timer = PhaseTimer(group.device, alone=group.backend is None)
        self._ddp_model = model  # for the pass of `_skips_parameters`
        if skips_parameters is None:
            skips_parameters = group.backend is not None and self._skips_parameters()
        self._ddp_model = wrap_ddp(model, group, config, self._timer, shared, find_unused=skips_parameters)
        self._step_writer = StepWriter(
            writer,
            self._timer,
            self._steps,
            startup,
            group.say,
            self._other_records,
            stop_on_non_finite=config.stop_on_non_finite,
        )
        self._stop_signals = stop_signals
        self._saved_step = 0
        self._began_s = self._eval_s = 0.0

    @property
    def steps(self) -> int:
        """The number of steps in the run, including those of earlier attempts."""
        return self._steps

    def run(self) -> EndRecord:
        """Trains to the last step.

        Returns:
            The end record, to be written after all others.

        Raises:
            Stopped: The ranks were asked to stop, and have saved a checkpoint.
        """
        self._warm_up()
        if self._stop_signals is None:
            self._train(None)
        else:
            agreement = StopAgreement(self._stop_signals, self._group, self._start.position.step)
            with self._stop_signals.catching_termination():
                self._train(agreement)
        return self._finish()

    def _train(self, agreement: StopAgreement | None) -> None:
        batches = self._load_batches()
        self._began_s = time.perf_counter()
        self._timer.restart()
        for step in self._rank_steps():
            self._watch.step(step.step, self._step_writer.read_step)
            self._profiler.before(step.step, self._timer.restart)
            lr = self._set_lr(step.step)
            loss = self._add_gradients(step, batches)
            norm = self._clip_gradients()
            skipped = self._scaler.step(self._optimizer)
            self._optimizer.zero_grad(set_to_none=True)
            self._timer.lap("optimizer")
            self._timer.end_step()
            self._step_writer.add(step, lr, loss, norm, skipped, profiled=self._profiler.is_on)
            self._profiler.after(step.step, self._timer.restart)
            if eval_due(step, self._steps, self._config.eval_every):
                self._evaluate(step.step)
            # After the evaluation of the same step: a run that resumes here must have its record.
            if self._checkpoints is not None and self._checkpoints.is_due(step.step):
                self._save_if_due(self._checkpoints, step)
            if agreement is not None and step.step < self._steps and agreement.is_due(step.step):
                self._stop_if_agreed(agreement, step)

    def _warm_up(self) -> None:
        """Prepares the first step: DDP's buckets, the first checkpoint's schedule, the clock offset, cross-check."""
        self._model.train()
        self._settle_buckets()
        if self._checkpoints is not None:
            self._checkpoints.begin(self._start.position, self._model, keeps_best=self._best.keeps_weights)
        self._note_clock()
        self._cross_check()

    def _rank_steps(self) -> Iterator[RankStep]:
        return self._plan.rank_steps(self._group.env.rank, self._steps, self._start.position)

    def _load_batches(self) -> Iterator[Batch]:
        indices = (indices for step in self._rank_steps() for indices in step.batches)
        return load_batches(self._train_examples, indices, self._group.device, self._config.num_workers)

    def _set_lr(self, step: int) -> float:
        """Sets the learning rate of a step, and returns it."""
        warmup = math.ceil(self._config.warmup_ratio * self._steps)
        factor = lr_factor(step - 1, self._steps, warmup, self._config.lr_schedule)
        lr = self._config.peak_lr(self._group.env.world_size) * factor
        for parameters in self._optimizer.param_groups:
            parameters["lr"] = lr
        return lr

    def _add_gradients(self, step: RankStep, batches: Iterator[Batch]) -> Tensor:
        """The forward and backward passes of one optimizer step.

        Returns:
            The loss summed over this rank's examples, on the device: a scalar that no step waits for.
        """
        # DDP takes the mean over ranks: this weight makes it the mean over the examples of the complete step.
        weight = self._group.env.world_size / step.global_examples if step.examples else 0.0
        loss = torch.zeros((), device=self._group.device)
        for number, batch in enumerate(islice(batches, len(step.batches)), start=1):
            self._timer.lap("data")
            with skip_gradient_sync(self._ddp_model, number < len(step.batches)):
                part = self._loss(batch)
                self._timer.lap("forward")
                self._scaler.scaled(part * weight).backward()  # type: ignore[no-untyped-call]
                self._timer.lap("backward")
            loss += part.detach()
        return loss

    def _clip_gradients(self) -> Tensor | None:
        """Scales the gradients down to max_grad_norm; their norm before that, on the device, or None without it."""
        if self._config.max_grad_norm is None:
            return None
        self._scaler.unscale(self._optimizer)
        return nn.utils.clip_grad_norm_(self._model.parameters(), self._config.max_grad_norm)

    def _loss(self, batch: Batch) -> Tensor:
        with autocast(self._config, self._group.device):
            logits = self._ddp_model(batch)
        return loss_sum(logits, batch["labels"], self._config.label_smoothing)

    def _evaluate(self, step: int) -> None:
        """Evaluates, if there are evaluation examples; its time does not count as training time."""
        if self._eval_examples is None:
            return
        self._step_writer.flush()
        self._watch.outside("an evaluation")
        broadcast_buffers(self._model, self._group)
        with self._in_stage("evaluating"):
            record = evaluate(self._model, self._eval_examples, self._classes, step, self._config, self._group)
        noted_s = time.perf_counter()
        self._best.note(record)
        self._eval_s += time.perf_counter() - noted_s
        self._writer.write([record])
        self._group.say(f"step {step}/{self._steps}  eval loss {record.loss:.4f}  accuracy {record.accuracy:.4f}")
        self._model.train()
        self._eval_s += record.elapsed_s
        self._timer.restart()

    def _save_if_due(self, checkpoints: CheckpointManager, step: RankStep) -> None:
        """Saves a checkpoint if one is due, and gets rank 0's decision on the next one."""
        if checkpoints.saves_at_due:
            self._save(checkpoints, step)
        checkpoints.decide(step.step)
        self._timer.restart()

    def _save(self, checkpoints: CheckpointManager, step: RankStep) -> None:
        self._step_writer.flush()
        self._watch.outside("a checkpoint")
        progress = Progress(step.end, self._train_s(), self._scaler.state(), self._best.state())
        broadcast_buffers(self._model, self._group)
        with self._in_stage("saving"):
            checkpoints.save(progress, self._model, self._optimizer, self._data(), self._writer)
        self._saved_step = step.step

    def _stop_if_agreed(self, agreement: StopAgreement, step: RankStep) -> None:
        """Saves a checkpoint and leaves the loop, if a rank was asked to stop.

        Raises:
            Stopped: A rank was.
        """
        cause = agreement.cause(step.step)
        self._timer.restart()
        if cause is None:
            return
        agreement.signals.give_time()
        problem = None
        if self._checkpoints is not None:
            if self._saved_step != step.step:
                self._save(self._checkpoints, step)
            outcomes = self._checkpoints.end(self._writer)
            problem = next((outcome.error for outcome in outcomes if outcome.step == step.step), None)
        self._group.barrier()  # rank 0 holds the store of the others, and ends the job next
        raise Stopped(step.step, terminated=cause == "termination", problem=problem)

    def _finish(self) -> EndRecord:
        self._step_writer.end()
        self._profiler.close()
        self._watch.outside("the end of training")
        if self._start.position.step == self._steps and not self._start.records.size_bytes:
            # The run was saved after its last step, and its records, with the last evaluation, are lost.
            self._evaluate(self._steps)
        if self._checkpoints is not None:
            self._checkpoints.end(self._writer)
        end = EndRecord(time_s=time.time(), steps=self._steps, train_s=self._train_s())
        self._note_clock()
        return end

    def _train_s(self) -> float:
        """Training time so far without evaluation, that of earlier attempts included."""
        return self._start.progress.train_s + time.perf_counter() - self._began_s - self._eval_s

    def _other_records(self) -> list[Record]:
        """The records, other than those of steps, since the last call."""
        records: list[Record] = [*self._take_samples()]
        if self._checkpoints is not None:
            records += self._checkpoints.outcomes()
        return records

    @contextmanager
    def _pass_without_effect(self, indices: Indices) -> Iterator[None]:
        """Runs the block after a forward and backward pass, which then leaves no trace."""
        (batch,) = load_batches(self._train_examples, [indices], self._group.device, 0)
        with preserve_training_state(self._model, self._optimizer, self._group.device):
            self._loss(batch).backward()  # type: ignore[no-untyped-call]
            yield

    def _skips_parameters(self) -> bool:
        """Whether some parameters get no gradient, by a pass that does not change the model; the same on every rank."""
        with self._pass_without_effect(np.arange(1)):
            trained = (parameter for parameter in self._model.parameters() if parameter.requires_grad)
            skipped = any(parameter.grad is None for parameter in trained)
        return self._group.any(skipped)

    def _settle_buckets(self) -> None:
        """Does one forward and backward pass that does not change the model.

        DDP reorders its buckets after the first backward pass of a process, by the order in which gradients came. With
        another order of buckets, four ranks sum in another order. After this pass, the steps of a run that resumes have
        the buckets, and so the sums, of a run without interruption; and where buckets are timed, all steps have the
        same ones.
        """
        needed = self._checkpoints is not None or self._config.detailed_timing
        if self._group.backend is None or not needed:
            return
        start = self._start.position
        first = next(self._plan.rank_steps(self._group.env.rank, start.step + 1, start))
        with self._pass_without_effect(first.batches[0]):
            pass

    def _cross_check(self) -> None:
        """Estimates the exposed communication in other ways, before the first step, when a failure loses no work."""
        if not self._config.detailed_timing:
            return
        steps = self._plan.rank_steps(self._group.env.rank, WARM_UP + PAIRS)
        batches = load_batches(self._train_examples, (step.batches[0] for step in steps), self._group.device, 0)
        with preserve_training_state(self._model, self._optimizer, self._group.device):
            record = cross_check(self._ddp_model, batches, self._loss, self._optimizer, self._group, self._timer)
        if record is not None:
            self._writer.write([record])

    def _note_clock(self) -> None:
        """Records the offset of this host's clock from rank 0's, which detailed timing needs to compare ranks."""
        if self._config.detailed_timing:
            offset = clock_offset(self._group)
            now_s = time.perf_counter()
            self._writer.write([ClockRecord(at_s=now_s, offset_s=offset.offset_s, error_s=offset.error_s)])
