"""What of a run is saved, and how it goes on: the state of training between two steps, on every rank."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from disttrain.checkpoint import files as checkpoint
from disttrain.checkpoint.files import Claim, FoundCheckpoint, Manifest
from disttrain.checkpoint.schedule import SaveSchedule
from disttrain.checkpoint.writer import CheckpointWriter
from disttrain.config.cadence import Cadence
from disttrain.data.batches import BEGINNING, Position
from disttrain.distributed.group import Group
from disttrain.errors import UserError
from disttrain.records.record_files import RecordPosition, RecordWriter, is_intact, records_after
from disttrain.records.record_types import CheckpointRecord
from disttrain.records.versions import versions


@dataclass(frozen=True)
class ResumePoint:
    """Where training begins: at the beginning, or behind the last step of a checkpoint."""

    position: Position = BEGINNING
    records: RecordPosition = RecordPosition()  # noqa: RUF009 - immutable; of this rank, those of the steps before
    saved: tuple[CheckpointRecord, ...] = ()  # of checkpoints up to this one, that were written down behind those
    train_s: float = 0.0  # that the steps before took
    notices: tuple[str, ...] = ()


class CheckpointManager:
    """The checkpoints of one run, seen from one rank: rank 0 writes, all go on from the same."""

    def __init__(self, folder: Path, group: Group, identity: str, cadence: Cadence) -> None:
        self._folder = folder
        self._group = group
        self._identity = identity
        self._schedule = SaveSchedule(cadence, on_gpu=group.device.type == "cuda")
        self._versions = versions()
        self._writer: CheckpointWriter | None = None
        if group.is_main:
            claim = Claim(folder)
            on_gpu = group.device.type == "cuda"
            self._writer = CheckpointWriter(claim, folder, identity, group.env.world_size, on_gpu=on_gpu)
        self._attempt = group.broadcast_from_main(claim.attempt if group.is_main else 0)
        self._due = 0
        self.saves_at_due = True

    def is_overtaken(self) -> bool:
        """Whether a newer attempt owns the run; all that is left to this one is to stop."""
        return checkpoint.is_overtaken(self._folder, self._attempt)

    def check_owner(self) -> None:
        """Makes sure that this attempt still owns the run: before anything of it is put in its place.

        Raises:
            NewerAttempt: A newer one does.
        """
        checkpoint.check_owner(self._folder, self._attempt)

    def load(self, model: nn.Module, optimizer: torch.optim.Optimizer, examples: int, records: Path) -> ResumePoint:
        """Puts the latest whole checkpoint into model, optimizer and random generators.

        Args:
            model: As built, on its device.
            optimizer: Of the model.
            examples: To train on.
            records: The file of this rank's records, as the attempt before left it.

        Returns:
            Where to go on; the beginning where there is no checkpoint.

        Raises:
            UserError: The folder holds the checkpoints of another run, or the data are no longer the same.
        """
        # Rank 0 alone reads and checks the files, and decides for all.
        found = checkpoint.find(self._folder) if self._group.is_main else FoundCheckpoint(None, ())
        found = self._group.broadcast_from_main(found)
        if self._group.is_main:
            checkpoint.remove_leftovers(self._folder, self._attempt, found.damaged)
        manifest, notices = found.manifest, found.notices
        if found.unreadable and manifest is None:
            # To begin anew would put other checkpoints in their place.
            raise UserError(f"no checkpoint can be read: {'; '.join(notices)}", hint="try again, or remove the folder")
        if manifest is None:
            return ResumePoint(notices=notices)
        if manifest.identity != self._identity:
            raise UserError(
                f"{str(self._folder)!r} holds checkpoints of another run, {manifest.identity}",
                hint="give another output_dir, or remove the folder",
            )
        state = checkpoint.load(self._folder, manifest)
        _restore(state, model, optimizer, examples)
        start = ResumePoint(Position(**state["position"]), train_s=state["train_s"])
        notices = (*notices, *_other_versions(state.get("versions", {}), self._versions))
        notices = (*notices, f"goes on behind step {manifest.step}, from attempt {manifest.attempt}")
        return self._restore_rank(start, state["ranks"], manifest, notices, records)

    def _restore_rank(
        self, start: ResumePoint, ranks: list[Tensor], manifest: Manifest, notices: tuple[str, ...], records: Path
    ) -> ResumePoint:
        env = self._group.env
        if manifest.world_size != env.world_size:
            lost = (
                f"the checkpoint is of {manifest.world_size} ranks, this run has {env.world_size}: dropout is drawn"
                " anew, batch and learning rate are those of this number of ranks, and the records of the steps before"
                " are left out; no example of the epoch is lost or repeated"
            )
            return dataclasses.replace(start, notices=(*notices, lost))
        written = _unpack(ranks[env.rank], self._group.device)
        # All keep them or none, so that the ranks' records are of the same steps.
        broken = torch.tensor([not is_intact(records, written)], dtype=torch.int64, device=self._group.device)
        if int(self._group.sum(broken)):
            gone = "the records of the steps before are not all there, or not as they were written: they are left out"
            return dataclasses.replace(start, notices=(*notices, gone))
        saved = tuple(
            record
            for record in records_after(records, written)
            if isinstance(record, CheckpointRecord) and record.step <= manifest.step
        )
        return dataclasses.replace(start, records=written, saved=saved, notices=notices)

    def begin(self, start: Position, model: nn.Module) -> None:
        """Starts counting towards the first checkpoint of the model."""
        steps, self.saves_at_due = self._schedule.begin(start.step, time.monotonic(), _size_bytes(model))
        self._due = start.step + steps

    def is_due(self, step: int) -> bool:
        """Whether to call `decide` after this step, behind `save` if `saves_at_due`; all ranks know it beforehand."""
        return step == self._due

    def save(
        self,
        position: Position,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        examples: int,
        train_s: float,
        writer: RecordWriter,
    ) -> None:
        """Copies the run's state and leaves it to be written.

        Args:
            position: Behind the step just done.
            model: Not DDP's wrapper.
            optimizer: Of the model.
            examples: That are trained on.
            train_s: Spent so far.
            writer: Of this rank's records, all steps so far among them.
        """
        began_s = time.perf_counter()
        writer.write(self.outcomes())
        ranks = self._group.gather(_pack(writer.sync(), self._group.device))
        if self._writer is not None:
            state = {
                "position": dataclasses.asdict(position),
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "examples": examples,
                "train_s": train_s,
                "ranks": ranks,
                "versions": self._versions,
            }
            self._writer.save(position.step, state, began_s)

    def decide(self, step: int) -> None:
        """Settles when to save next, behind a step that was due."""
        decision = self._schedule.next(step, time.monotonic(), saved=self.saves_at_due)
        # Rank 0's clock decides for all: a message that each waits for, a GPU's host too, in few of the steps.
        steps, self.saves_at_due = self._group.broadcast_from_main(decision)
        self._due = step + steps

    def outcomes(self) -> list[CheckpointRecord]:
        """What became of checkpoints since the last call.

        Raises:
            NewerAttempt: Another attempt owns the run.
        """
        done = self._writer.done() if self._writer else []
        for each in done:
            # On a CPU the writing takes cores from training; beside a GPU it only takes the copy.
            beside = each.write_s if self._group.device.type == "cpu" else 0.0
            self._schedule.note_cost(each.blocked_ms / 1000 + beside)
        return [CheckpointRecord(**dataclasses.asdict(each)) for each in done]

    def end(self, writer: RecordWriter) -> None:
        """Waits for the last write, and makes sure that this attempt still owns the run."""
        if self._writer is not None:
            self._writer.wait()
            self.check_owner()
        writer.write(self.outcomes())

    def clear(self) -> None:
        """Removes the checkpoints of a run that has ended well."""
        if self._group.is_main:
            checkpoint.clear(self._folder, self._attempt)


def _size_bytes(model: nn.Module) -> int:
    """Of a checkpoint, about: the model, and AdamW's two moments of each weight."""
    state: int = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    return state + 2 * sum(weight.numel() * weight.element_size() for weight in model.parameters())


def _restore(state: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer, examples: int) -> None:
    changed = f"it was saved with {state['examples']} training examples, and now there are {examples}"
    if state["examples"] == examples:
        try:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            return
        except (RuntimeError, ValueError) as error:
            changed = next(iter(str(error).splitlines()[1:2]), str(error)).strip()
    raise UserError(
        f"the run cannot go on from its checkpoint, its data or checkpoint have changed since: {changed}",
        hint="give another output_dir to start anew",
    )


def _other_versions(before: dict[str, str], now: dict[str, str]) -> tuple[str, ...]:
    """What to say where a checkpoint was written by other versions of what a run computes with."""
    changed = [f"{name} {before[name]} is now {now[name]}" for name in now if before.get(name, now[name]) != now[name]]
    if not changed:
        return ()
    return (f"since its checkpoint {', '.join(changed)}: losses need not be those of an uninterrupted run",)


def _pack(written: RecordPosition, device: torch.device) -> Tensor:
    """The state of one rank alone, as bytes: how far its records are written, and its random generators."""
    numbers = torch.tensor([written.size_bytes, written.crc32], dtype=torch.int64)
    parts = [numbers.view(torch.uint8), torch.get_rng_state()]
    if device.type == "cuda":
        parts.append(torch.cuda.get_rng_state(device))
    return torch.cat(parts)


def _unpack(state: Tensor, device: torch.device) -> RecordPosition:
    """Restores the random generators; gives how far the records were written."""
    head, size = 16, torch.get_rng_state().numel()
    torch.set_rng_state(state[head : head + size].clone())
    if device.type == "cuda" and state.numel() > head + size:
        torch.cuda.set_rng_state(state[head + size :].clone(), device)
    size_bytes, crc32 = state[:head].clone().view(torch.int64).tolist()
    return RecordPosition(size_bytes, crc32)
