"""The families `mortal:Bert` and `mortal:Vit`: the shipped families, but a rank dies at a step that a file names."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from disttrain.config.train_config import TrainConfig
from disttrain.data.batches import Batch, Examples, Indices
from disttrain.data.splits import Splits
from disttrain.distributed.group import Group
from disttrain.models import bert, vit
from disttrain.models.family import BuiltModel, EncodedSplits
from disttrain.records.record_files import metrics_name, read_records
from disttrain.records.record_types import StartRecord

EVENT_NAME = "event.json"  # in the run's folder, like the other files
EVENT_LOG_NAME = "events.jsonl"
Kind = Literal["forward", "backward", "save", "hang"]


def seen_name(rank: int) -> str:
    """File with the indices of the examples that one rank trained on, one line for each step of each attempt."""
    return f"seen-rank{rank:05d}.jsonl"


@dataclass(frozen=True)
class Event:
    """What happens once to one rank of an attempt."""

    kind: Kind  # killed in the forward or backward pass, or while a checkpoint is written; hang: alive but stuck
    step: int  # the step during which it happens; for a save, the step after which the checkpoint is made
    rank: int


class _RecordedExamples:
    """Examples that record the indices of the last batch."""

    def __init__(self, examples: Examples) -> None:
        self._examples = examples
        self.in_memory = examples.in_memory
        self.lengths = examples.lengths
        self.last: list[int] = []

    def __len__(self) -> int:
        return len(self._examples)

    def batch(self, indices: Sequence[int] | Indices) -> Batch:
        self.last = [int(index) for index in indices]
        return self._examples.batch(indices)


class _Mortal:
    """Does the same as the family. The additions draw no random numbers and do not change what is computed."""

    def __init__(self, family: ModuleType) -> None:
        self._family: Any = family
        self.INPUT = family.INPUT

    def encode(self, config: TrainConfig, splits: Splits, group: Group, work_dir: Path) -> EncodedSplits:
        encoded: EncodedSplits = self._family.encode(config, splits, group, work_dir)
        self._rank, self._folder = group.env.rank, work_dir
        self._recorded = _RecordedExamples(encoded.train)
        return dataclasses.replace(encoded, train=self._recorded)

    def build(self, config: TrainConfig, encoded: EncodedSplits) -> BuiltModel:
        assert config.grad_accum_steps == 1, "each forward pass is counted as a step"
        assert config.num_workers == 0, "the batch of a step is the last batch that was made"
        built: BuiltModel = self._family.build(config, encoded)
        hooks = _EventHooks(self._folder, self._rank, _own_event(self._folder, self._rank), self._recorded)
        # Hooks do not change the names of the parameters, as a wrapping module would; DDP sees the same model.
        built.model.register_forward_pre_hook(hooks.before)
        built.model.register_forward_hook(hooks.after)
        if hooks.event is not None and hooks.event.kind == "save":
            torch.save = _dies_while_saving(hooks, sum(p.numel() * p.itemsize for p in built.model.parameters()))
        return built


class Bert(_Mortal):
    def __init__(self) -> None:
        super().__init__(bert)


class Vit(_Mortal):
    def __init__(self) -> None:
        super().__init__(vit)


def _own_event(folder: Path, rank: int) -> Event | None:
    path = folder / EVENT_NAME
    event = Event(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None
    return event if event and event.rank == rank else None


class _EventHooks:
    """Counts the steps of one rank, writes down its examples, and triggers its event."""

    def __init__(self, folder: Path, rank: int, event: Event | None, recorded: _RecordedExamples) -> None:
        self.event = event
        self._folder = folder
        self._rank = rank
        self._recorded = recorded
        self._step: int | None = None
        self._seen = (folder / seen_name(rank)).open("a", encoding="utf-8")

    def before(self, model: nn.Module, _: Any) -> None:
        if not model.training:
            return
        if self._step is None:
            # The first pass of an attempt fixes DDP's buckets; the first step comes after it.
            records = read_records(self._folder / metrics_name(self._rank))
            self._step = [record.first_step for record in records if isinstance(record, StartRecord)][-1] - 1
            return
        self._step += 1
        self._seen.write(json.dumps({"step": self._step, "examples": self._recorded.last}) + "\n")
        self._seen.flush()
        if self._is_now("hang"):
            self.log_event()
            time.sleep(600)  # until Slurm ends the attempt
        if self._is_now("forward"):
            self.die()

    def after(self, model: nn.Module, _: Any, logits: Tensor) -> None:
        if model.training and self._is_now("backward"):
            # The gradient of the classifier's weights is ready early: at most one bucket is ready, not all.
            last_parameter = [parameter for parameter in model.parameters() if parameter.requires_grad][-1]
            last_parameter.register_hook(lambda _: self.die())  # type: ignore[no-untyped-call]

    def _is_now(self, kind: Kind) -> bool:
        return self.event is not None and (self.event.kind, self.event.step) == (kind, self._step)

    def log_event(self) -> None:
        """Writes down that the event has happened; the proof counts the events."""
        assert self.event is not None
        with (self._folder / EVENT_LOG_NAME).open("a", encoding="utf-8") as file:
            file.write(json.dumps(dataclasses.asdict(self.event)) + "\n")

    def die(self) -> None:
        """Ends this rank as the kernel does when memory runs out: the rank can write nothing more."""
        self.log_event()
        os.kill(os.getpid(), signal.SIGKILL)


def _dies_while_saving(hooks: _EventHooks, after_bytes: int) -> Any:
    """A torch.save that ends the rank after it has written this number of bytes of the event's checkpoint."""
    save = torch.save

    def save_or_die(state: Any, file: Any) -> None:
        assert hooks.event is not None
        if state["position"]["step"] == hooks.event.step:
            file = _InterruptedFile(file, hooks, after_bytes)
        save(state, file)

    return save_or_die


class _InterruptedFile:
    """A file that is never complete: the rank dies during a write."""

    def __init__(self, file: Any, hooks: _EventHooks, after_bytes: int) -> None:
        self._file = file
        self._hooks = hooks
        self._remaining = after_bytes

    def write(self, data: Any) -> int:
        written: int = self._file.write(data)
        self._remaining -= written
        if self._remaining < 0:
            self._hooks.die()
        return written

    def flush(self) -> None:
        self._file.flush()
