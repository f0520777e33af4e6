"""The families `mortal:Bert` and `mortal:Vit`: the ones that ship, on ranks that die at a step that a file names."""

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

EVENT_NAME = "event.json"  # in the run's folder, like the others
STRUCK_NAME = "struck.jsonl"
Kind = Literal["forward", "backward", "save", "hang"]


def seen_name(rank: int) -> str:
    """File name of the indices of the examples that one rank trained on, a line for each step of each attempt."""
    return f"seen-rank{rank:05d}.jsonl"


@dataclass(frozen=True)
class Event:
    """What happens to one rank of an attempt, once."""

    kind: Kind  # killed in the forward or backward pass, or while the checkpoint is written; or alive, but stuck
    step: int  # in the middle of it; of a save: the checkpoint that is made behind it
    rank: int


class _Noted:
    """Examples that know of which indices the last batch was made."""

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
    """Does all that the family does; what it adds draws no random numbers and computes nothing that is learnt from."""

    def __init__(self, family: ModuleType) -> None:
        self._family: Any = family
        self.INPUT = family.INPUT

    def encode(self, config: TrainConfig, splits: Splits, group: Group, work_dir: Path) -> EncodedSplits:
        encoded: EncodedSplits = self._family.encode(config, splits, group, work_dir)
        self._rank, self._folder = group.env.rank, work_dir
        self._noted = _Noted(encoded.train)
        return dataclasses.replace(encoded, train=self._noted)

    def build(self, config: TrainConfig, encoded: EncodedSplits) -> BuiltModel:
        assert config.grad_accum_steps == 1, "each forward pass is counted as a step"
        assert config.num_workers == 0, "the batch of a step is the last that was made"
        built: BuiltModel = self._family.build(config, encoded)
        watch = _Watch(self._folder, self._rank, _own_event(self._folder, self._rank), self._noted)
        # Hooks, not a module around it: the names of its parameters stay, and DDP sees the same model.
        built.model.register_forward_pre_hook(watch.before)
        built.model.register_forward_hook(watch.after)
        if watch.event is not None and watch.event.kind == "save":
            torch.save = _dies_while_saving(watch, sum(p.numel() * p.itemsize for p in built.model.parameters()))
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


class _Watch:
    """Counts the steps of one rank, notes its examples, and strikes."""

    def __init__(self, folder: Path, rank: int, event: Event | None, noted: _Noted) -> None:
        self.event = event
        self._folder = folder
        self._rank = rank
        self._noted = noted
        self._step: int | None = None
        self._seen = (folder / seen_name(rank)).open("a", encoding="utf-8")

    def before(self, model: nn.Module, _: Any) -> None:
        if not model.training:
            return
        if self._step is None:
            # The first pass of an attempt settles DDP's buckets; the first step comes behind it.
            records = read_records(self._folder / metrics_name(self._rank))
            self._step = [record.first_step for record in records if isinstance(record, StartRecord)][-1] - 1
            return
        self._step += 1
        self._seen.write(json.dumps({"step": self._step, "examples": self._noted.last}) + "\n")
        self._seen.flush()
        if self._is_now("hang"):
            self.note()
            time.sleep(600)  # until Slurm ends the attempt
        if self._is_now("forward"):
            self.die()

    def after(self, model: nn.Module, _: Any, logits: Tensor) -> None:
        if model.training and self._is_now("backward"):
            # When the gradient of the classifier's weights is there: of one bucket at most, not of all.
            last = [parameter for parameter in model.parameters() if parameter.requires_grad][-1]
            last.register_hook(lambda _: self.die())  # type: ignore[no-untyped-call]

    def _is_now(self, kind: Kind) -> bool:
        return self.event is not None and (self.event.kind, self.event.step) == (kind, self._step)

    def note(self) -> None:
        """Leaves word that the event has happened: the proof counts them."""
        assert self.event is not None
        with (self._folder / STRUCK_NAME).open("a", encoding="utf-8") as file:
            file.write(json.dumps(dataclasses.asdict(self.event)) + "\n")

    def die(self) -> None:
        """Ends this rank as the kernel does where memory runs out: it has no last word."""
        self.note()
        os.kill(os.getpid(), signal.SIGKILL)


def _dies_while_saving(watch: _Watch, after_bytes: int) -> Any:
    """torch.save that ends the rank once so much of the event's checkpoint is on its way to the disk."""
    save = torch.save

    def until_then(state: Any, file: Any) -> None:
        assert watch.event is not None
        is_it = state["position"]["step"] == watch.event.step
        save(state, _Doomed(file, watch, after_bytes) if is_it else file)  # type: ignore[arg-type]

    return until_then


class _Doomed:
    """A file that is never whole."""

    def __init__(self, file: Any, watch: _Watch, after_bytes: int) -> None:
        self._file = file
        self._watch = watch
        self._left = after_bytes

    def write(self, data: Any) -> int:
        written: int = self._file.write(data)
        self._left -= written
        if self._left < 0:
            self._watch.die()
        return written

    def flush(self) -> None:
        self._file.flush()
