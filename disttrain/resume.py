"""When a run is saved, what of it, and how it goes on: the state of training between two steps, on every rank."""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from disttrain import checkpoint
from disttrain.batches import BEGINNING, Position
from disttrain.checkpoint import CheckpointWriter, Claim, Found, Manifest
from disttrain.config import Cadence
from disttrain.dist import Group
from disttrain.errors import UserError
from disttrain.records import CheckpointRecord

# Steps that are timed before the first checkpoint of a cadence in seconds or as a share of the time.
_FIRST_LOOK = 5


@dataclass(frozen=True)
class Start:
    """Where training begins: at the beginning, or behind the last step of a checkpoint."""

    position: Position = BEGINNING
    records_bytes: int = 0  # of this rank's records, those of the steps before
    train_s: float = 0.0  # that the steps before took
    notices: tuple[str, ...] = ()


class Checkpoints:
    """The checkpoints of one run, seen from one rank: rank 0 writes, all go on from the same."""

    def __init__(self, folder: Path, group: Group, identity: str, cadence: Cadence) -> None:
        self._folder = folder
        self._group = group
        self._identity = identity
        self._cadence = cadence
        self._claim = Claim(folder) if group.is_main else None
        self._writer = CheckpointWriter(self._claim, folder, identity, group.env.world_size) if self._claim else None
        self._due = 0
        self._saves_at_due = True
        self._looked = (0, 0.0)  # step and time of the last decision
        self._cost_s: float | None = None  # of the last checkpoint that has reached the disk

    def load(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Start:
        """Puts the latest whole checkpoint into model, optimizer and random generators.

        Returns:
            Where to go on; the beginning where there is no checkpoint.

        Raises:
            UserError: The folder holds the checkpoints of another run.
        """
        # Rank 0 alone reads and checks the files, and decides for all.
        found = self._group.from_main(checkpoint.find(self._folder) if self._group.is_main else Found(None, ()))
        manifest, notices = found.manifest, found.notices
        if manifest is None:
            return Start(notices=notices)
        if manifest.identity != self._identity:
            raise UserError(
                f"{str(self._folder)!r} holds checkpoints of another run, {manifest.identity}",
                hint="give another output_dir, or remove the folder",
            )
        state = checkpoint.load(self._folder, manifest)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start = Start(Position(**state["position"]), train_s=state["train_s"])
        notices = (*notices, f"goes on behind step {manifest.step}, from attempt {manifest.attempt}")
        return self._restore_rank(start, state["ranks"], manifest, notices)

    def _restore_rank(self, start: Start, ranks: list[Tensor], manifest: Manifest, notices: tuple[str, ...]) -> Start:
        env = self._group.env
        if manifest.world_size != env.world_size:
            lost = (
                f"the checkpoint is of {manifest.world_size} ranks, this run has {env.world_size}: dropout is drawn"
                " anew and the records of the steps before are left out; no example is lost or repeated"
            )
            return dataclasses.replace(start, notices=(*notices, lost))
        records_bytes = _unpack(ranks[env.rank], self._group.device)
        return dataclasses.replace(start, records_bytes=records_bytes, notices=notices)

    def begin(self, start: Position) -> None:
        """Starts counting towards the first checkpoint."""
        self._looked = (start.step, time.monotonic())
        if self._cadence.steps is not None:
            self._due = start.step + self._cadence.steps
        else:
            self._due = start.step + _FIRST_LOOK
            self._saves_at_due = self._cadence.share is not None  # its cost must be known

    def is_due(self, step: int) -> bool:
        """Whether to call `save` after this step. All ranks know it beforehand, so that no step pays for asking."""
        return step == self._due

    def save(
        self,
        position: Position,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        train_s: float,
        records_bytes: int,
    ) -> list[CheckpointRecord]:
        """Copies the run's state and leaves it to be written, and settles when to do so again.

        Args:
            position: Behind the step just done.
            model: Not DDP's wrapper.
            optimizer: Of the model.
            train_s: Spent so far.
            records_bytes: Size of this rank's records, all steps so far among them.

        Returns:
            Records of checkpoints that have reached the disk since the last call.
        """
        if self._saves_at_due:
            ranks = self._group.gather(_pack(records_bytes, self._group.device))
            if self._writer is not None:
                self._writer.save(
                    position.step,
                    {
                        "position": dataclasses.asdict(position),
                        "model": model.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "train_s": train_s,
                        "ranks": ranks,
                    },
                )
        done = self.written()
        # Rank 0's clock decides for all.
        steps, self._saves_at_due = self._group.from_main(self._next(position.step))
        self._due = position.step + steps
        return done

    def _next(self, step: int) -> tuple[int, bool]:
        """In how many steps to come here again, and whether to save then."""
        if self._cadence.steps is not None:
            return self._cadence.steps, True
        before, since = self._looked
        self._looked = (step, time.monotonic())
        step_s = (self._looked[1] - since) / max(1, step - before)
        if self._cadence.seconds is not None:
            return max(1, math.ceil(self._cadence.seconds / step_s)), True
        if self._cost_s is None:
            return _FIRST_LOOK, False  # the first one is still being written
        assert self._cadence.share is not None
        return max(1, math.ceil(self._cost_s / self._cadence.share / step_s)), True

    def written(self) -> list[CheckpointRecord]:
        """What has reached the disk since the last call."""
        done = self._writer.written() if self._writer else []
        for each in done:
            # On a CPU the writing takes cores from training; beside a GPU it only takes the copy.
            beside = each.write_s if self._group.device.type == "cpu" else 0.0
            self._cost_s = each.blocked_ms / 1000 + beside
        return [CheckpointRecord(**dataclasses.asdict(each)) for each in done]

    def end(self) -> list[CheckpointRecord]:
        """Waits for the last write, and makes sure that this attempt still owns the run."""
        if self._writer is not None and self._claim is not None:
            self._writer.wait()
            self._claim.check()
        return self.written()

    def clear(self) -> None:
        """Removes the checkpoints of a run that has ended well."""
        if self._group.is_main:
            checkpoint.clear(self._folder)


def _pack(records_bytes: int, device: torch.device) -> Tensor:
    """The state of one rank alone, as bytes: the size of its records, and its random generators."""
    parts = [torch.tensor([records_bytes], dtype=torch.int64).view(torch.uint8), torch.get_rng_state()]
    if device.type == "cuda":
        parts.append(torch.cuda.get_rng_state(device))
    return torch.cat(parts)


def _unpack(state: Tensor, device: torch.device) -> int:
    """Restores the random generators; gives the size of the records."""
    size = torch.get_rng_state().numel()
    torch.set_rng_state(state[8 : 8 + size].clone())
    if device.type == "cuda" and state.numel() > 8 + size:
        torch.cuda.set_rng_state(state[8 + size :].clone(), device)
    return int(state[:8].clone().view(torch.int64))
