"""Which examples each rank sees at each step, and the loader that brings them to the device in that order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from disttrain.errors import UserError

Indices = NDArray[np.int64]
Batch = Mapping[str, Tensor]


class Examples(Protocol):
    """Encoded examples of one split, indexed from 0."""

    # Whether making a batch costs less than handing it over from another process: the loader then starts none.
    in_memory: bool

    @property
    def lengths(self) -> Indices | None:
        """What each example costs, in tokens; None where all cost the same."""

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int] | Indices) -> Batch:
        """The examples of these indices as one batch of CPU tensors, `labels` among them."""
        ...


@dataclass(frozen=True)
class Position:
    """A place between two optimizer steps, from which a run can go on."""

    step: int = 0  # optimizer steps done
    epoch: int = 0
    consumed: int = 0  # examples of the epoch that are done, over all ranks
    global_batch: int = 0  # that the order of the epoch was made for; of no account where none is consumed


BEGINNING = Position()


@dataclass(frozen=True)
class RankStep:
    """What one rank does in one optimizer step."""

    step: int  # from 1
    epoch: int  # from 0
    last_of_epoch: bool
    batches: tuple[Indices, ...]  # one for each forward pass; at least one
    examples: int  # of this rank that count; 0 where the step has fewer examples than ranks
    global_examples: int  # over all ranks
    end: Position  # behind this step


@dataclass(frozen=True)
class GlobalBatches:
    """The order of all examples over steps and ranks, a pure function of the seed.

    A step's examples are the same whatever the number of ranks that share them: 1 rank with a batch of 4 and 4 ranks
    with a batch of 1 see the same four. The last batch of an epoch may be short; it is spread over the ranks as evenly
    as it goes, and no example is left out or repeated.

    With lengths, the examples of a step are about equally long: little is padded, and no rank waits for another that
    has the longest text.
    """

    examples: int
    rank_batch: int  # of one forward pass
    world_size: int
    accum_steps: int
    seed: int
    lengths: Indices | None = field(default=None, compare=False, repr=False)

    @property
    def global_batch(self) -> int:
        """Examples of one optimizer step over all ranks."""
        return self.rank_batch * self.world_size * self.accum_steps

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.examples // self.global_batch)

    def order(self, epoch: int, global_batch: int) -> Indices:
        """The order of all examples in one epoch.

        A permutation; with lengths one that is sorted by them, cut into global batches, and shuffled again as batches.
        What is left over makes the short last batch, drawn from all lengths.
        """
        random = np.random.default_rng([self.seed, epoch])
        shuffled = random.permutation(self.examples)
        if self.lengths is None:
            return shuffled
        left_over, rest = np.split(shuffled, [self.examples % global_batch])
        # Equal lengths stay in the order of the shuffle: which of them meet differs from epoch to epoch.
        batches = rest[np.argsort(self.lengths[rest], kind="stable")].reshape(-1, global_batch)
        return np.concatenate([batches[random.permutation(len(batches))].ravel(), left_over])

    def total_steps(self, epochs: int, start: Position = BEGINNING) -> int:
        """Optimizer steps of so many epochs, those before `start` included."""
        if start.epoch >= epochs:
            return start.step
        in_this_epoch = -(-(self.examples - start.consumed) // self.global_batch)
        return start.step + in_this_epoch + (epochs - start.epoch - 1) * self.steps_per_epoch

    def rank_steps(self, rank: int, steps: int, start: Position = BEGINNING) -> Iterator[RankStep]:
        """The steps of one rank from `start` up to step number `steps`, over as many epochs as they take.

        An epoch that was begun with another global batch is ended in the order that it was begun in, so that each of
        its examples still comes once.
        """
        number = start.step
        for epoch in count(start.epoch):
            begun = epoch == start.epoch and start.consumed > 0
            made_for = start.global_batch if begun else self.global_batch
            order = self.order(epoch, made_for)
            for at in range(start.consumed if begun else 0, self.examples, self.global_batch):
                if number == steps:
                    return
                number += 1
                consumed = at + self.global_batch
                end = Position(number, epoch, consumed, made_for)
                if consumed >= self.examples:
                    end = Position(number, epoch + 1)
                yield self._step(end, epoch, order[at:consumed], rank)

    def _step(self, end: Position, epoch: int, together: Indices, rank: int) -> RankStep:
        mine = rank_slice(together, rank, self.world_size)
        batches = tuple(mine[start : start + self.rank_batch] for start in range(0, len(mine), self.rank_batch))
        return RankStep(
            step=end.step,
            epoch=epoch,
            last_of_epoch=end.epoch > epoch,
            # A rank without an example still takes part in DDP's exchange; the loop gives this one no weight.
            batches=batches or (together[:1],),
            examples=len(mine),
            global_examples=len(together),
            end=end,
        )


def rank_slice(together: Indices, rank: int, world_size: int) -> Indices:
    """One rank's contiguous part of a global batch; parts differ by one at most.

    Example:
        >>> [share(np.arange(5), rank, 2).tolist() for rank in range(2)]
        [[0, 1], [2, 3, 4]]
    """
    return together[rank * len(together) // world_size : (rank + 1) * len(together) // world_size]


def eval_batches(
    examples: int, rank: int, world_size: int, batch: int, lengths: Indices | None = None
) -> list[Indices]:
    """The batches that one rank evaluates: over all ranks every example exactly once, of lengths the likest together.

    Example:
        >>> [indices.tolist() for indices in eval_batches(5, 0, 2, 2)]
        [[0, 2], [4]]
    """
    order = np.arange(examples) if lengths is None else np.argsort(lengths, kind="stable")
    mine = order[rank::world_size]
    return [mine[start : start + batch] for start in range(0, len(mine), batch)]


class _BatchesByIndices(torch.utils.data.Dataset[Batch | UserError]):
    """Looks like a dataset whose keys are whole lists of indices, so that a worker makes a batch in one call."""

    def __init__(self, examples: Examples) -> None:
        self._examples = examples

    def __getitem__(self, indices: Any) -> Batch | UserError:
        try:
            return self._examples.batch(indices)
        except UserError as error:
            return error  # raised here, torch would make one of it whose message is this worker's traceback


def load_batches(
    examples: Examples, index_lists: Iterable[Indices], device: torch.device, num_workers: int
) -> Iterator[Batch]:
    """The batches of these indices on the device, in this order whatever the number of workers.

    Args:
        examples: Where the batches come from.
        index_lists: One list for each batch; read ahead of the batches when there are workers.
        device: Where they go. To a GPU they are copied from pinned memory while it computes.
        num_workers: Processes that make batches; none are started where that would cost more than it saves.
    """
    pinned = device.type == "cuda"
    made: Iterable[Batch | UserError]
    if num_workers == 0 or examples.in_memory:
        plain = (examples.batch(indices) for indices in index_lists)
        made = ({name: tensor.pin_memory() for name, tensor in batch.items()} for batch in plain) if pinned else plain
    else:
        # Forked, so that a worker has everything at once: any other start method, Python 3.14's default say, imports
        # torch anew in each, which takes seconds. Workers touch no GPU.
        made = DataLoader(
            _BatchesByIndices(examples),
            sampler=index_lists,
            batch_size=None,
            num_workers=num_workers,
            pin_memory=pinned,
            multiprocessing_context="fork",
            # Its own, or each iterator would draw a seed from the generator that dropout draws from: with another
            # number of workers, or after a resume, the losses would differ.
            generator=torch.Generator(),
        )
    for batch in made:
        if isinstance(batch, UserError):
            raise batch
        yield {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()} if pinned else batch
