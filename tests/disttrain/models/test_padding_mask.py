"""A text model gets the mask in the shape that makes no host wait, if its scores stay the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from disttrain.config.train_config import TrainConfig
from disttrain.data.texts import TextExamples
from disttrain.models import bert
from disttrain.models.bert import TextClassifier
from disttrain.models.family import BuiltModel, EncodedSplits
from disttrain.models.padding_mask import as_given, bidirectional, causal, padded_batches, proven_shape
from tests.fakecuda.install import fake_cuda

SIZES: dict[str, dict[str, Any]] = {
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48},
    "llama": {"num_key_value_heads": 2},
    "qwen2": {"num_key_value_heads": 2},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64},
}
COMMON: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "vocab_size": 50,
    "pad_token_id": 1,
}
ENCODERS = ("roberta", "xlm-roberta", "camembert", "distilbert", "electra", "albert", "ernie", "data2vec-text")
DECODERS = ("gpt2", "llama", "qwen2")
LENGTHS = [3, 9, 5, 7]


def examples() -> TextExamples:
    offsets = np.cumsum([0, *LENGTHS])
    tokens = np.random.default_rng(0).integers(5, 50, offsets[-1]).astype(np.int32)
    return TextExamples(tokens, offsets, np.array([0, 1, 0, 1]), pad_id=1)


def make(kind: str, **fields: Any) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**COMMON, **SIZES.get(kind, {}), **fields}, num_labels=2)
    return AutoModelForSequenceClassification.from_config(config)


def shape_of(classifier: TextClassifier) -> Any:
    return proven_shape(classifier.model, map(classifier.inputs, padded_batches(examples())))


@pytest.mark.parametrize(
    ("kind", "shape"), [*((kind, bidirectional) for kind in ENCODERS), *((kind, causal) for kind in DECODERS)]
)
def test_a_kind_gets_the_mask_that_it_proves(kind: str, shape: Any) -> None:
    """Scores and gradients are the same to the bit, and the host does not wait, which it does with a 2D mask."""
    model = make(kind)
    classifier = TextClassifier(model)
    assert classifier.shape_mask is as_given
    assert shape_of(classifier) is shape
    batch = examples().batch([0, 1, 2, 3])
    outcomes = []
    for given in (as_given, shape):
        model.zero_grad()
        classifier.shape_mask = given
        torch.manual_seed(1)
        scores = classifier(batch)
        scores.sum().backward()
        outcomes.append([scores, *(weight.grad for weight in model.parameters() if weight.grad is not None)])
    assert all(torch.equal(first, second) for first, second in zip(*outcomes, strict=True))


@pytest.mark.parametrize("kind", [*ENCODERS, *DECODERS])
def test_no_padded_step_waits(kind: str) -> None:
    with fake_cuda() as gpus:
        gpu = torch.device("cuda", 0)
        classifier = TextClassifier(make(kind))
        shape = shape_of(classifier)
        classifier.to(gpu)
        batch = {name: value.to(gpu) for name, value in examples().batch([0, 1]).items()}
        waits = []
        for given in (as_given, shape):
            classifier.shape_mask = given
            before = gpus.waits
            classifier(batch)
            waits.append(gpus.waits - before)
        assert waits[0] > waits[1] == 0


@pytest.mark.parametrize("kind", ["mpnet", "rembert", "longformer"])
def test_a_kind_that_cannot_prove_it_keeps_its_mask(kind: str) -> None:
    """These attend without torch's function, which takes a mask of booleans, or read the 2D mask themselves."""
    fields = {"attention_window": 4} if kind == "longformer" else {}
    assert shape_of(TextClassifier(make(kind, **fields))) is as_given


def test_without_padding_nothing_is_proved() -> None:
    assert proven_shape(make("roberta"), []) is as_given


def test_a_bert_decoder_gets_no_encoder_mask() -> None:
    assert TextClassifier(make("bert")).shape_mask is bidirectional
    decoder = TextClassifier(make("bert", is_decoder=True))
    assert decoder.shape_mask is as_given
    assert shape_of(decoder) is causal


def test_the_proof_changes_no_model() -> None:
    model = make("big_bird", attention_type="block_sparse", block_size=2, num_random_blocks=1)
    shape_of(TextClassifier(model))
    assert model.bert.attention_type == "block_sparse"
    assert model.training


def test_a_run_on_a_gpu_proves_it(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = EncodedSplits(examples(), None, ("a", "b"), reader=bert.TextReader(range(50)))
    monkeypatch.setattr(bert, "_transformers_model", lambda config, encoded: BuiltModel(make("roberta")))
    auto, cpu = TrainConfig(model="bert", device="auto"), TrainConfig(model="bert", device="cpu")
    for gpus, config, shape in ((1, auto, bidirectional), (1, cpu, as_given), (0, auto, as_given)):
        with fake_cuda(gpus):
            built = bert.build(config, encoded)
        assert built.model.shape_mask is shape
