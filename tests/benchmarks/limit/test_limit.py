"""The limit takes the batches of ours, records every product of its models, and executes the same products."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, ViTConfig, ViTForImageClassification

from disttrain.config.train_config import TrainConfig
from disttrain.data.batches import Batch, load_batches
from disttrain.models import bert, vit
from disttrain.models.family import load_family
from disttrain.models.first_token_layer import trim
from disttrain.models.normalisation import Normalisation
from disttrain.run import run
from disttrain.training.loop import TrainingLoop
from tests.benchmarks.limit.only_products import execute, prepare, rank_steps, record, record_pass
from tests.benchmarks.limit.products import Product, Recorder, UnknownProductError
from tests.benchmarks.limit.replay import Replay
from tests.disttrain.ranks import ALONE

HIDDEN, HEADS, INNER, LAYERS, CLASSES, BATCH = 32, 4, 48, 3, 2, 3
SIZES = {"hidden_size": HIDDEN, "num_attention_heads": HEADS, "intermediate_size": INNER, "num_hidden_layers": LAYERS}
CPU = torch.device("cpu")


def tiny_bert(*, trimmed: bool, dropout: float = 0.1) -> nn.Module:
    config = BertConfig(**SIZES, vocab_size=50, num_labels=CLASSES, attention_probs_dropout_prob=dropout)
    config._attn_implementation = "sdpa"
    model = BertForSequenceClassification(config).train()
    assert not trimmed or trim(model, bert.FirstTokenLayer).obstacle is None
    return bert.TextClassifier(model)


def tiny_vit(*, trimmed: bool) -> nn.Module:
    config = ViTConfig(**SIZES, image_size=32, patch_size=8, num_labels=CLASSES)
    config._attn_implementation = "sdpa"
    model = ViTForImageClassification(config).train()
    assert not trimmed or trim(model, vit.FirstTokenLayer).obstacle is None
    return vit.ImageClassifier(model, Normalisation())


def texts(tokens: int) -> Batch:
    mask = torch.ones(BATCH, tokens, dtype=torch.int64)
    mask[0, -1] = 0
    ids = torch.arange(BATCH * tokens).view(BATCH, tokens) % 50
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.zeros(BATCH, dtype=torch.int64)}


def images() -> Batch:
    pixels = torch.arange(BATCH * 3 * 32 * 32).view(BATCH, 3, 32, 32) % 256
    return {"pixels": pixels.to(torch.uint8), "labels": torch.zeros(BATCH, dtype=torch.int64)}


def forward_flops(tokens: int, examples: int, *, trimmed: bool, pooler: bool = False, classes: int = CLASSES) -> int:
    """The layers and the head. A trimmed layer has one token for all but its keys and values."""
    rows = examples * tokens
    full = 2 * rows * (4 * HIDDEN**2 + 2 * HIDDEN * INNER) + 4 * rows * tokens * HIDDEN
    last = 2 * rows * 2 * HIDDEN**2 + 2 * examples * (2 * HIDDEN**2 + 2 * HIDDEN * INNER) + 4 * rows * HIDDEN
    head = 2 * examples * HIDDEN * classes + pooler * 2 * examples * HIDDEN**2
    return (LAYERS - 1) * full + (last if trimmed else full) + head


def patch_flops(examples: int) -> int:
    return 2 * examples * 16 * HIDDEN * 3 * 8**2


def recorded(model: nn.Module, batch: Batch, precision: Literal["fp32", "bf16"] = "fp32") -> list[Product]:
    return record_pass(model, batch, TrainConfig(model="bert", precision=precision), CPU)


@pytest.mark.parametrize("dropout", [0.0, 0.1])  # with dropout, attention is not one operation on a CPU
@pytest.mark.parametrize("trimmed", [False, True])
def test_all_products_of_bert(trimmed: bool, dropout: float) -> None:
    products = recorded(tiny_bert(trimmed=trimmed, dropout=dropout), texts(7))
    forward = LAYERS * (6 + 2) + 2  # pooler and classifier
    assert len(products) == 3 * forward
    flops = [product.flops for product in products]
    assert sum(flops[:forward]) == forward_flops(7, BATCH, trimmed=trimmed, pooler=True)
    assert sum(flops[forward:]) == 2 * sum(flops[:forward])


@pytest.mark.parametrize("trimmed", [False, True])
def test_all_products_of_vit(trimmed: bool) -> None:
    products = recorded(tiny_vit(trimmed=trimmed), images())
    forward = 1 + LAYERS * (6 + 2) + 1  # patches and classifier
    assert len(products) == 3 * forward - 1  # the pixels need no gradient
    flops = [product.flops for product in products]
    layers_and_head = forward_flops(17, BATCH, trimmed=trimmed)
    assert sum(flops[:forward]) == patch_flops(BATCH) + layers_and_head
    assert sum(flops[forward:]) == patch_flops(BATCH) + 2 * layers_and_head


def test_trimmed_layer_has_fewer_products() -> None:
    for make, batch in ((tiny_bert, texts(7)), (tiny_vit, images())):
        full, fewer = (sum(item.flops for item in recorded(make(trimmed=it), batch)) for it in (False, True))
        assert fewer < 0.9 * full


def test_bf16_products_are_bf16() -> None:
    products = recorded(tiny_vit(trimmed=True), images(), "bf16")
    assert {operand.dtype for product in products for operand in product.operands} == {torch.bfloat16}


def test_weights_keep_their_memory() -> None:
    layer, tokens = nn.Linear(4, 3), torch.ones(2, 4, requires_grad=True)
    with Recorder() as recorder:
        layer(tokens).sum().backward()
    forward, backward = recorder.products[0], recorder.products[1:]
    weight = forward.operands[1]
    assert weight.transposed() in [product.operands[1] for product in backward]
    outputs = [product.output.memory for product in recorder.products if product.output is not None]
    assert len({weight.memory, forward.operands[0].memory, *outputs}) == 2 + 3


def test_replay_computes_the_product() -> None:
    with Recorder() as recorder:
        torch.addmm(torch.zeros(5), torch.ones(8, 3), torch.ones(5, 3).T)
        torch.ones(2, 3, 4) @ torch.ones(2, 4, 5)
    replay = Replay({"pass": recorder.products}, CPU)
    replay.run("pass")
    for product in recorder.products:
        first, second = (replay._tensor(operand) for operand in product.operands)
        assert product.output is not None
        torch.testing.assert_close(replay._tensor(product.output), first @ second)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_replay_executes_every_product(precision: Literal["fp32", "bf16"]) -> None:
    """The operations of a replay are the recorded ones, also for attention and convolutions."""
    products = recorded(tiny_vit(trimmed=True), images(), precision)
    replay = Replay({"pass": products}, CPU)
    with Recorder() as recorder:
        replay.run("pass")
    assert [item.operation for item in recorder.products] == [item.operation for item in products]
    assert [item.flops for item in recorder.products] == [item.flops for item in products]
    shapes = [[(part.size, part.stride, part.dtype) for part in item.operands] for item in products]
    assert [[(part.size, part.stride, part.dtype) for part in item.operands] for item in recorder.products] == shapes


def test_unknown_product_is_an_error() -> None:
    pixels, kernel = torch.ones(1, 1, 4, 4), torch.ones(1, 1, 2, 2)
    with Recorder(), pytest.raises(UnknownProductError, match="_slow_conv2d_forward"):
        torch.ops.aten._slow_conv2d_forward(pixels, kernel, [2, 2], None, [1, 1], [0, 0])


@pytest.mark.parametrize("family", ["bert", "vit"])
def test_limit_takes_the_batches_of_ours(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repository: Path
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    config = TrainConfig(
        model=family,
        dataset=str(repository / "sweeps" / "data" / {"bert": "sst2", "vit": "cifar10"}[family]),
        architecture={**SIZES, **{"bert": {"vocab_size": 300}, "vit": {"patch_size": 8}}[family]},
        image_size=32,
        max_train_examples=45,
        max_eval_examples=8,
        per_gpu_batch=4,
        grad_accum_steps=2,
        epochs=2,
        num_workers=0,
    ).resolved()
    of_ours: list[Batch] = []
    loss = TrainingLoop._loss

    def keep(self: TrainingLoop, batch: Batch) -> Tensor:
        of_ours.append(batch)
        return loss(self, batch)

    monkeypatch.setattr(TrainingLoop, "_loss", keep)
    summary = run(config, ALONE.env, tmp_path / "run")
    encoded, model = prepare(config, load_family(family), ALONE, tmp_path / "limit")
    steps = rank_steps(config, ALONE, encoded)
    indices = [indices for step in steps for indices in step.batches]
    taken = list(load_batches(encoded.train, indices, CPU, 0))
    assert len(taken) == 2 * (45 // 4 + 1)
    assert [batch.keys() for batch in taken] == [batch.keys() for batch in of_ours]
    for own, other in zip(taken, of_ours, strict=True):
        assert all(torch.equal(own[name], other[name]) for name in own)
    shapes, passes = record(iter(taken), model, config, CPU)
    assert len(passes) < len(shapes) == len(taken)
    # The models of ours have no product that is not recorded.
    assert [flops_of(passes[shape]) for shape in shapes] == [expected_flops(family, batch) for batch in taken]
    result = execute(steps, shapes, passes, ALONE)
    assert (result.steps, result.examples) == (summary["steps"], 90)
    assert result.eval_loss is None
    assert 0 < result.first_step_s < result.train_s


def flops_of(products: list[Product]) -> int:
    return sum(product.flops for product in products)


def expected_flops(family: str, batch: Batch) -> int:
    """The forward and backward pass of a batch."""
    if family == "bert":
        examples, tokens = batch["input_ids"].shape
        return 3 * forward_flops(tokens, examples, trimmed=True, pooler=True)
    examples = len(batch["pixels"])
    return 2 * patch_flops(examples) + 3 * forward_flops(17, examples, trimmed=True, classes=10)
