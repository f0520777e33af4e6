"""Saves the training state between two steps, and restores it on every rank when a run resumes."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from disttrain.checkpoint import files
from disttrain.checkpoint.files import Claim, FoundCheckpoint, Manifest
from disttrain.checkpoint.schedule import SaveSchedule
from disttrain.checkpoint.writer import CheckpointWriter
from disttrain.config.cadence import Cadence
from disttrain.config.recipe import FIRST_VERSION, RECIPE_VERSION
from disttrain.data.batches import BEGINNING, Position
from disttrain.data.digest import DataState
from disttrain.distributed.group import Group
from disttrain.errors import UserError
from disttrain.records.record_files import RecordPosition, RecordWriter, is_intact, records_after
from disttrain.records.record_types import CheckpointRecord
from disttrain.records.versions import STARTING, versions


@dataclass(frozen=True)
class Progress:
    """How far training has come: what a checkpoint has besides the model, the optimizer and the state of the data.

    Attributes:
        position: The position in the training data.
        train_s: The training time of the steps so far.
        scaler: The state of the scale of losses; empty without one.
        best: The state of the best evaluation; empty without one.
    """

    position: Position = BEGINNING
    train_s: float = 0.0
    scaler: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    best: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class ResumePoint:
    """Where training begins: at the first step, or after the last step of a checkpoint.

    Attributes:
        progress: How far earlier attempts have come.
        records: The part of this rank's record file that belongs to earlier steps.
        saved: The records of checkpoints up to this one, which come after `records` in the file.
        notices: Notices about the checkpoint, such as differences from the run that wrote it.
    """

    progress: Progress = dataclasses.field(default_factory=Progress)
    records: RecordPosition = RecordPosition()  # noqa: RUF009 - immutable
    saved: tuple[CheckpointRecord, ...] = ()
    notices: tuple[str, ...] = ()

    @property
    def position(self) -> Position:
        """The position in the training data."""
        return self.progress.position


class CheckpointManager:
    """The checkpoints of one run, used by every rank: rank 0 writes them, and all ranks resume from the same one.

    Args:
        folder: The checkpoint folder.
        group: The ranks.
        identity: The id of the run, which a checkpoint must match.
        cadence: How often to save; None for a run that saves only when it is stopped.

    Attributes:
        saves_at_due: Whether to call `save` at the next due step, before `decide`.
    """

    def __init__(self, folder: Path, group: Group, identity: str, cadence: Cadence | None) -> None:
        self._folder = folder
        self._group = group
        self._identity = identity
        self._schedule: SaveSchedule | None = None
        if cadence is not None:
            self._schedule = SaveSchedule(cadence, on_gpu=group.device.type == "cuda")
        self._versions = versions()
        self._writer: CheckpointWriter | None = None
        attempt = 0
        if group.is_main:
            claim = Claim(folder)
            attempt = claim.attempt
            on_gpu = group.device.type == "cuda"
            self._writer = CheckpointWriter(claim, folder, identity, group.env.world_size, on_gpu=on_gpu)
        self._attempt = group.broadcast_from_main(attempt)
        self._due = 0
        self.saves_at_due = True

    def is_overtaken(self) -> bool:
        """Whether a newer attempt owns the run, so that this one must stop."""
        return files.is_overtaken(self._folder, self._attempt)

    def check_owner(self) -> None:
        """Checks that this attempt still owns the run; to be called before its results are written.

        Raises:
            NewerAttempt: A newer attempt owns the run.
        """
        files.check_owner(self._folder, self._attempt)

    def load(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, data: Callable[[], DataState], records: Path
    ) -> ResumePoint:
        """Restores model, optimizer and random generators from the latest intact checkpoint.

        Args:
            model: The model as it was built, on its device.
            optimizer: The optimizer of the model.
            data: Returns the state of the data; every rank calls it, or none.
            records: The path of this rank's record file from the previous attempt.

        Returns:
            Where to resume; the beginning if no checkpoint exists.

        Raises:
            UserError: The folder holds checkpoints of another run or of a release with another recipe, the data have
                changed, or no checkpoint can be read.
        """
        # Only rank 0 checks the files, and it decides for all ranks.
        found = FoundCheckpoint(None, ())
        if self._group.is_main:
            found = files.find(self._folder)
        found = self._group.broadcast_from_main(found)
        if self._group.is_main:
            files.remove_leftovers(self._folder, self._attempt, found.damaged)
        manifest, notices = found.manifest, found.notices
        if found.unreadable and manifest is None:
            # A new beginning would replace checkpoints that may be intact.
            raise UserError(f"no checkpoint can be read: {'; '.join(notices)}", hint="try again, or remove the folder")
        if manifest is None:
            return ResumePoint(notices=notices)
        if manifest.identity != self._identity:
            raise UserError(
                f"{str(self._folder)!r} holds checkpoints of another run, {manifest.identity}",
                hint="set another output_dir, or remove the folder",
            )
        state = files.load(self._folder, manifest)
        _check_recipe(state.get("recipe_version", FIRST_VERSION), self._folder)
        _restore(state, model, optimizer, data())
        best = state.get("best", {})
        if not self._group.is_main:
            best.pop("weights", None)  # rank 0 saves the model
        start = ResumePoint(
            Progress(Position(**state["position"]), state["train_s"], state.get("scaler", {}), best),
        )
        notices = (*notices, *_other_versions(state.get("versions", {}), self._versions))
        notices = (*notices, f"resumes after step {manifest.step}, from attempt {manifest.attempt}")
        return self._restore_rank(start, state["ranks"], manifest, notices, records)

    def _restore_rank(
        self, start: ResumePoint, ranks: list[Tensor], manifest: Manifest, notices: tuple[str, ...], records: Path
    ) -> ResumePoint:
        """Restores the state that belongs to this rank alone: its random generators and its records."""
        env = self._group.env
        if manifest.world_size != env.world_size:
            lost = (
                f"the checkpoint was written by {manifest.world_size} ranks, this run has {env.world_size}:"
                " dropout uses other random numbers, batch size and learning rate are those of the new number of ranks,"
                " and the records of earlier steps are dropped; no example of the epoch is lost or repeated"
            )
            return dataclasses.replace(start, notices=(*notices, lost))
        written = _unpack(ranks[env.rank], self._group.device)
        # Either all ranks continue their records or none does, so that the records cover the same steps on every rank.
        if self._group.any(not is_intact(records, written)):
            gone = "the records of earlier steps are incomplete or have changed: they are dropped"
            return dataclasses.replace(start, notices=(*notices, gone))
        saved = tuple(
            record
            for record in records_after(records, written)
            if isinstance(record, CheckpointRecord) and record.step <= manifest.step
        )
        return dataclasses.replace(start, records=written, saved=saved, notices=notices)

    def begin(self, start: Position, model: nn.Module, *, keeps_best: bool) -> None:
        """Starts the schedule of saves at the first step of this attempt.

        Args:
            start: The position in the training data before that step.
            model: The model.
            keeps_best: Whether checkpoints have the weights of the best evaluation too.
        """
        if self._schedule is None:
            return
        size_bytes = _size_bytes(model, keeps_best=keeps_best)
        steps, self.saves_at_due = self._schedule.begin(start.step, time.monotonic(), size_bytes)
        self._due = start.step + steps

    def is_due(self, step: int) -> bool:
        """Whether to call `decide` after this step, and `save` before it if `saves_at_due`; the same on every rank."""
        return step == self._due

    def save(
        self,
        progress: Progress,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        data: DataState,
        writer: RecordWriter,
    ) -> None:
        """Copies the state of the run; a thread of rank 0 writes the copy while training continues.

        Args:
            progress: How far training has come.
            model: The model itself, not DDP's wrapper.
            optimizer: The optimizer of the model.
            data: The state of the data.
            writer: The writer of this rank's records, which has the records of all steps so far.
        """
        began_s = time.perf_counter()
        writer.write(self.outcomes())
        ranks = self._group.gather(_pack(writer.sync(), self._group.device))
        if self._writer is not None:
            state = {
                "position": dataclasses.asdict(progress.position),
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "scaler": progress.scaler,
                "best": progress.best,
                "data": dataclasses.asdict(data),
                "train_s": progress.train_s,
                "ranks": ranks,
                "versions": self._versions,
                "recipe_version": RECIPE_VERSION,
            }
            self._writer.save(progress.position.step, state, began_s)

    def decide(self, step: int) -> None:
        """Decides at a due step when the next one is due, and whether to save then."""
        assert self._schedule is not None  # no step is due without one
        decision = self._schedule.next(step, time.monotonic(), saved=self.saves_at_due)
        # Rank 0's clock decides for all ranks. They wait for its message, on a GPU the host too, but only at due steps.
        steps, self.saves_at_due = self._group.broadcast_from_main(decision)
        self._due = step + steps

    def outcomes(self) -> list[CheckpointRecord]:
        """The records of the checkpoints that were written or failed since the last call.

        Raises:
            NewerAttempt: A newer attempt owns the run.
        """
        if self._writer is None:
            return []
        outcomes = self._writer.done()
        for outcome in outcomes:
            cost_s = outcome.blocked_ms / 1000
            if self._group.device.type == "cpu":
                cost_s += outcome.write_s  # the writing takes cores from training; on a GPU only the copy costs time
            if self._schedule is not None:
                self._schedule.note_cost(cost_s)
        return [CheckpointRecord(**dataclasses.asdict(outcome)) for outcome in outcomes]

    def end(self, writer: RecordWriter) -> list[CheckpointRecord]:
        """Waits for the last write, and checks that this attempt still owns the run.

        Returns:
            The records of the checkpoints that were written or failed since the last call of `outcomes`.
        """
        if self._writer is not None:
            self._writer.wait()
            self.check_owner()
        outcomes = self.outcomes()
        writer.write(outcomes)
        return outcomes

    def clear(self) -> None:
        """Removes the checkpoints of a successful run."""
        if self._group.is_main:
            files.clear(self._folder, self._attempt)


def _size_bytes(model: nn.Module, *, keeps_best: bool) -> int:
    """The approximate size of a checkpoint: the model, once more if it is kept, and AdamW's two moments per weight."""
    state: int = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    return (1 + keeps_best) * state + 2 * sum(weight.numel() * weight.element_size() for weight in model.parameters())


def _check_recipe(version: int, folder: Path) -> None:
    """Checks that the checkpoint's run has the same order of data and the same random streams as this release.

    Raises:
        UserError: It has others, so that examples of the epoch would be lost and others repeated.
    """
    if version != RECIPE_VERSION:
        raise UserError(
            f"{str(folder)!r} holds checkpoints of another release: its order of data and its random numbers"
            f" (recipe version {version}) differ from those of this release ({RECIPE_VERSION})",
            hint="finish the run with that release, or remove the folder to start from the beginning",
        )


def _restore(state: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer, data: DataState) -> None:
    before = DataState(**state["data"])
    changed = "examples, labels, class names or pretrained weights differ from those with which it was saved"
    if before.examples != data.examples:
        changed = f"it was saved with {before.examples} training examples, and the data now have {data.examples}"
    if before == data:
        try:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            return
        except (RuntimeError, ValueError) as error:
            changed = next(iter(str(error).splitlines()[1:2]), str(error)).strip()
    raise UserError(
        f"the run cannot resume from its checkpoint, because its data or the checkpoint have changed: {changed}",
        hint="set another output_dir to start from the beginning",
    )


def _other_versions(before: dict[str, str], now: dict[str, str]) -> tuple[str, ...]:
    """A notice if the checkpoint was written with other versions of the packages that compute."""
    changed = [
        f"{name} {before[name]} to {now[name]}"
        for name in now
        if name not in STARTING and before.get(name, now[name]) != now[name]
    ]
    if not changed:
        return ()
    return (f"since the checkpoint, {', '.join(changed)}: losses may differ from those of an uninterrupted run",)


def _pack(written: RecordPosition, device: torch.device) -> Tensor:
    """The state that belongs to one rank alone, as bytes: its position in the records, and its random generators."""
    numbers = torch.tensor([written.size_bytes, written.crc32], dtype=torch.int64)
    parts = [numbers.view(torch.uint8), torch.get_rng_state()]
    if device.type == "cuda":
        parts.append(torch.cuda.get_rng_state(device))
    return torch.cat(parts)


def _unpack(state: Tensor, device: torch.device) -> RecordPosition:
    """Restores the random generators, and returns the position in the records."""
    head, size = 16, torch.get_rng_state().numel()
    torch.set_rng_state(state[head : head + size].clone())
    if device.type == "cuda" and state.numel() > head + size:
        torch.cuda.set_rng_state(state[head + size :].clone(), device)
    size_bytes, crc32 = state[:head].clone().view(torch.int64).tolist()
    return RecordPosition(size_bytes, crc32)
