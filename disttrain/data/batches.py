"""Decides which examples each rank sees at each step, and loads them onto the device in that order."""

from __future__ import annotations

import faulthandler
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from disttrain.config.recipe import stream_seed
from disttrain.errors import UserError

# The number of global batches whose examples are sorted by length together. With fewer there is more padding; with
# more, the same examples are together again in the next epoch. docs/benchmarks.md has both for some numbers.
SORTED_TOGETHER = 100
# The share of each group's batches, its longest, that are sorted again with those of the other groups. Lengths have a
# long tail: the last batches of a group alone would reach from medium to the longest texts.
_LONGEST_SHARE = 0.03

Indices = NDArray[np.int64]
Batch = Mapping[str, Tensor]


class Examples(Protocol):
    """Encoded examples of one split, indexed from 0."""

    # Whether making a batch costs less than receiving it from another process. If so, the loader starts no workers.
    in_memory: bool

    @property
    def lengths(self) -> Indices | None:
        """The cost of each example in tokens; None if all examples cost the same."""

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int] | Indices) -> Batch:
        """The examples with these indices as one batch of CPU tensors, including `labels`."""
        ...


@dataclass(frozen=True)
class Position:
    """A point between two optimizer steps, from which a run can resume."""

    step: int = 0  # completed optimizer steps
    epoch: int = 0
    consumed: int = 0  # completed examples of this epoch, over all ranks
    global_batch: int = 0  # the global batch for which the epoch's order was made; unused if consumed is 0


BEGINNING = Position()


@dataclass(frozen=True)
class RankStep:
    """The work of one rank in one optimizer step."""

    step: int  # from 1
    epoch: int  # from 0
    last_of_epoch: bool
    batches: tuple[Indices, ...]  # one for each forward pass; at least one
    examples: int  # this rank's examples in the loss; may be 0 if the step has fewer examples than ranks
    global_examples: int  # over all ranks
    end: Position  # after this step


@dataclass(frozen=True)
class GlobalBatches:
    """The order of all examples over steps and ranks, a pure function of the seed.

    The examples of a step do not depend on the number of ranks: 1 rank with a batch of 4 and 4 ranks with a batch of 1
    see the same four. The last batch of an epoch may be short. It is divided as evenly as possible between the ranks,
    and no example is left out or repeated.

    With lengths, the examples of a step are about equally long. Batches then need little padding, and no rank waits for
    another one that has the longest text.
    """

    examples: int
    rank_batch: int  # examples of one forward pass on one rank
    world_size: int
    accum_steps: int
    seed: int
    lengths: Indices | None = field(default=None, compare=False, repr=False)
    sorted_together: int = SORTED_TOGETHER

    @property
    def global_batch(self) -> int:
        """The number of examples of one optimizer step, over all ranks."""
        return self.rank_batch * self.world_size * self.accum_steps

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.examples // self.global_batch)

    def order(self, epoch: int, global_batch: int) -> Indices:
        """The order of all examples in one epoch.

        The order is a permutation. With lengths, it is divided into groups of `sorted_together` global batches, or of a
        quarter of a short epoch. Each group is sorted by length and divided into batches. The longest batches of all
        groups are sorted once more together. Then all batches are shuffled. So the examples of a batch are about
        equally long, and few of them share a batch in the next epoch. The remaining examples form the short last batch;
        they have any length.
        """
        random = np.random.default_rng(stream_seed(self.seed, "order", epoch))
        shuffled = random.permutation(self.examples)
        if self.lengths is None:
            return shuffled
        remaining, rest = np.split(shuffled, [self.examples % global_batch])
        batches = _sorted_in_groups(rest, self.lengths, global_batch, self.sorted_together)
        return np.concatenate([batches[random.permutation(len(batches))].ravel(), remaining])

    def total_steps(self, epochs: int, start: Position = BEGINNING) -> int:
        """The number of optimizer steps in `epochs` epochs, including the steps before `start`."""
        if start.epoch >= epochs:
            return start.step
        in_this_epoch = -(-(self.examples - start.consumed) // self.global_batch)
        return start.step + in_this_epoch + (epochs - start.epoch - 1) * self.steps_per_epoch

    def rank_steps(self, rank: int, steps: int, start: Position = BEGINNING) -> Iterator[RankStep]:
        """The steps of one rank from `start` up to step number `steps`, over as many epochs as necessary.

        If a run resumes within an epoch with another global batch, it finishes the epoch in the original order. Each
        example of the epoch is then still used once.
        """
        number = start.step
        for epoch in count(start.epoch):
            first, order_batch = 0, self.global_batch
            if epoch == start.epoch and start.consumed > 0:
                first, order_batch = start.consumed, start.global_batch
            order = self.order(epoch, order_batch)
            for begin in range(first, self.examples, self.global_batch):
                if number == steps:
                    return
                number += 1
                consumed = begin + self.global_batch
                end = Position(number, epoch, consumed, order_batch)
                if consumed >= self.examples:
                    end = Position(number, epoch + 1)
                yield self._step(end, epoch, order[begin:consumed], rank)

    def _step(self, end: Position, epoch: int, global_indices: Indices, rank: int) -> RankStep:
        # A global batch is sorted by length: in each step another rank has the longest examples.
        own = rank_slice(global_indices, (rank + end.step) % self.world_size, self.world_size)
        batches = tuple(own[start : start + self.rank_batch] for start in range(0, len(own), self.rank_batch))
        return RankStep(
            step=end.step,
            epoch=epoch,
            last_of_epoch=end.epoch > epoch,
            # A rank without an example still takes part in DDP's all-reduce; the loop gives this batch no weight.
            batches=batches or (global_indices[:1],),
            examples=len(own),
            global_examples=len(global_indices),
            end=end,
        )


def _sorted_in_groups(examples: Indices, lengths: Indices, global_batch: int, most: int) -> Indices:
    """Examples in random order as batches of similar length, (batches, global_batch); see `GlobalBatches.order`."""
    count = len(examples) // global_batch
    size = max(1, min(most, count // 4))
    group = np.arange(count) // size
    # A stable sort: examples of equal length keep their random order.
    order = np.lexsort((lengths[examples], np.repeat(group, global_batch)))
    batches = examples[order].reshape(-1, global_batch)
    following = np.append(np.flatnonzero(np.diff(group)) + 1, count)[group] - np.arange(count)  # in the group, with it
    is_long = following <= max(1, round(_LONGEST_SHARE * size))
    longest = batches[is_long].ravel()
    by_length = np.argsort(lengths[longest], kind="stable")
    return np.concatenate([batches[~is_long], longest[by_length].reshape(-1, global_batch)])


def rank_slice(global_indices: Indices, rank: int, world_size: int) -> Indices:
    """One rank's contiguous part of a global batch; the sizes of the parts differ by at most one.

    Example:
        >>> [rank_slice(np.arange(5), rank, 2).tolist() for rank in range(2)]
        [[0, 1], [2, 3, 4]]
    """
    size = len(global_indices)
    return global_indices[rank * size // world_size : (rank + 1) * size // world_size]


def eval_batches(
    examples: int, rank: int, world_size: int, batch: int, lengths: Indices | None = None
) -> list[Indices]:
    """The batches that one rank evaluates; over all ranks each example occurs once.

    With lengths, examples of similar length are in the same batch.

    Example:
        >>> [indices.tolist() for indices in eval_batches(5, 0, 2, 2)]
        [[0, 2], [4]]
    """
    order = np.arange(examples)
    if lengths is not None:
        order = np.argsort(lengths, kind="stable")
    own = order[rank::world_size]
    return [own[start : start + batch] for start in range(0, len(own), batch)]


class _BatchesByIndices(torch.utils.data.Dataset[Batch | UserError]):
    """A dataset with lists of indices as keys, so that a worker makes a batch in one call."""

    def __init__(self, examples: Examples) -> None:
        self._examples = examples

    def __getitem__(self, indices: Any) -> Batch | UserError:
        try:
            return self._examples.batch(indices)
        except UserError as error:
            return error  # if raised here, torch would replace its message by the worker's traceback


def load_batches(
    examples: Examples, index_lists: Iterable[Indices], device: torch.device, num_workers: int
) -> Iterator[Batch]:
    """The batches with these indices on the device; their order does not depend on the number of workers.

    Args:
        examples: The source of the batches.
        index_lists: One list for each batch; with workers it is read ahead of the batches.
        device: The target device. Batches are copied to a GPU from pinned memory while it computes.
        num_workers: The number of processes that make batches; none is started if that would cost more than it saves.
    """
    if device.type != "cuda":
        yield from _host_batches(examples, index_lists, num_workers, pin_memory=False)
        return
    for batch in _host_batches(examples, index_lists, num_workers, pin_memory=True):
        yield {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def _ignore_signals(_worker: int) -> None:
    """Lets a worker process continue when Slurm signals all processes of a job: it ends with its rank.

    Until the rank has saved, it needs batches. And the stacks that SIGQUIT asks for are those of the rank.
    """
    faulthandler.unregister(signal.SIGQUIT)
    for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)


def _host_batches(
    examples: Examples, index_lists: Iterable[Indices], num_workers: int, *, pin_memory: bool
) -> Iterator[Batch]:
    """The batches on the CPU, made by worker processes or in this process."""
    if num_workers == 0 or examples.in_memory:
        for indices in index_lists:
            batch = examples.batch(indices)
            if pin_memory:
                batch = {name: tensor.pin_memory() for name, tensor in batch.items()}
            yield batch
        return
    # Forked, so that a worker has all imports immediately. With another start method, such as Python 3.14's default,
    # each worker imports torch again, which takes seconds. Workers do not use the GPU.
    loader: Iterable[Batch | UserError] = DataLoader(
        _BatchesByIndices(examples),
        sampler=index_lists,
        batch_size=None,
        num_workers=num_workers,
        pin_memory=pin_memory,
        multiprocessing_context="fork",
        worker_init_fn=_ignore_signals,
        # A separate generator. Otherwise each iterator draws a seed from the generator of dropout, and the losses
        # change with the number of workers and after a resume.
        generator=torch.Generator(),
    )
    for result in loader:
        if isinstance(result, UserError):
            raise result
        yield result
