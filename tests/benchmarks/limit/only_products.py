"""The limit: only the matrix products of the work of ours, on the same batches.

torchrun --standalone --nproc_per_node=2 tests/benchmarks/limit/only_products.py --work work.json --out result.json
followed by the flags of ours.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Hashable, Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import torch
from torch import nn

from disttrain.config.flags import parse_flags
from disttrain.config.recipe import stream_seed
from disttrain.config.train_config import TrainConfig
from disttrain.data.batches import Batch, GlobalBatches, RankStep, load_batches
from disttrain.data.splits import load_splits
from disttrain.distributed.device import choose_attention
from disttrain.distributed.group import Group, process_group
from disttrain.environment.rank_env import RankEnv, choose_threads
from disttrain.models.family import EncodedSplits, Family
from disttrain.training.evaluation import loss_sum
from disttrain.training.precision import autocast
from disttrain.training_run import import_for
from tests.benchmarks.limit.products import Product, Recorder
from tests.benchmarks.limit.replay import Replay
from tests.benchmarks.work import Result, Work, load, process_start_s, save


def main() -> None:
    """Records the products of all batches of one rank, and executes them step after step."""
    parser = argparse.ArgumentParser(description="the limit; all other flags are those of ours", allow_abbrev=False)
    parser.add_argument("--work", type=Path, required=True, help="JSON file of the Work")
    parser.add_argument("--out", type=Path, required=True, help="file to which rank 0 writes its Result as JSON")
    options, flags = parser.parse_known_args()
    work: Work = load(Work, options.work)
    config = parse_flags(work.model, flags).resolved()
    env = RankEnv.from_environ(os.environ)
    family = import_for(config, env.rank)
    torch.set_num_threads(choose_threads(env, os.environ, len(os.sched_getaffinity(0))))
    with process_group(env, config.device) as group:
        encoded, model = prepare(config, family, group, options.out.parent)
        steps = rank_steps(config, group, encoded)
        indices = [indices for step in steps for indices in step.batches]
        shapes, passes = record(load_batches(encoded.train, indices, group.device, 0), model, config, group.device)
        result = execute(steps, shapes, passes, group)
    if env.rank == 0:
        save(result, options.out)


def prepare(config: TrainConfig, family: Family, group: Group, work_dir: Path) -> tuple[EncodedSplits, nn.Module]:
    """The examples and the model of ours. It is not compiled: a compiled model shows no products."""
    with group.main_first():
        splits = load_splits(config, family.INPUT)
    encoded = family.encode(config, splits, group, work_dir)
    choose_attention(many_shapes=encoded.train.lengths is not None)
    torch.manual_seed(stream_seed(config.seed, "weights"))
    return encoded, family.build(config, encoded).model.to(group.device).train()


def rank_steps(config: TrainConfig, group: Group, encoded: EncodedSplits) -> list[RankStep]:
    """The steps of one rank, as the training loop makes them."""
    plan = GlobalBatches(
        examples=len(encoded.train),
        rank_batch=config.rank_batch(group.env.world_size),
        world_size=group.env.world_size,
        accum_steps=config.grad_accum_steps,
        seed=config.seed,
        lengths=encoded.train.lengths if config.group_by_length else None,
    )
    return list(plan.rank_steps(group.env.rank, config.max_steps or plan.total_steps(config.epochs)))


def record(
    batches: Iterable[Batch], model: nn.Module, config: TrainConfig, device: torch.device
) -> tuple[list[Hashable], dict[Hashable, list[Product]]]:
    """The shape of each batch, and the products of one forward and backward pass for each different shape."""
    shapes: list[Hashable] = []
    passes: dict[Hashable, list[Product]] = {}
    for batch in batches:
        shape = tuple(sorted((name, tuple(tensor.shape)) for name, tensor in batch.items()))
        shapes.append(shape)
        if shape not in passes:
            passes[shape] = record_pass(model, batch, config, device)
    return shapes, passes


def record_pass(model: nn.Module, batch: Batch, config: TrainConfig, device: torch.device) -> list[Product]:
    """The products of the forward and backward pass of one batch."""
    with Recorder() as recorder:
        with autocast(config, device):
            logits = model(batch)
        loss_sum(logits, batch["labels"]).backward()  # type: ignore[no-untyped-call]
    model.zero_grad()
    products: list[Product] = recorder.products
    return products


@torch.inference_mode()
def execute(
    steps: list[RankStep], shapes: list[Hashable], passes: dict[Hashable, list[Product]], group: Group
) -> Result:
    """Executes the products of all steps. The times are those of the slowest rank: the ranks do not communicate."""
    replay, remaining = Replay(passes, group.device), iter(shapes)
    group.barrier()
    first_step_s, startup_s, start_s = 0.0, 0.0, time.perf_counter()
    for step in steps:
        for _ in step.batches:
            replay.run(next(remaining))
        if step.step == 1:
            _wait_for_gpu(group)
            first_step_s = time.perf_counter() - start_s
            startup_s = time.time() - process_start_s(os.getpid())
    _wait_for_gpu(group)
    train_s = time.perf_counter() - start_s
    measured = torch.zeros(3, group.env.world_size, dtype=torch.float64, device=group.device)
    own = [train_s, first_step_s, sum(step.examples for step in steps)]
    measured[:, group.env.rank] = torch.tensor(own, dtype=torch.float64, device=group.device)
    train_of, first_of, examples_of = group.sum(measured).tolist()
    return Result(
        train_s=max(train_of),
        first_step_s=max(first_of),
        startup_s=startup_s,
        steps=len(steps),
        examples=round(sum(examples_of)),
        train_loss=None,
        eval_loss=None,
        eval_accuracy=None,
        eval_examples=None,
    )


def _wait_for_gpu(group: Group) -> None:
    if group.device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
