"""A compact embedding gives the same outputs and the same trained weights as the full one."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import (
    BartConfig,
    BartForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2ForSequenceClassification,
)

from disttrain.config.train_config import TrainConfig
from disttrain.models.compact_embedding import CompactEmbedding, compact, full_state
from disttrain.models.model_change import ModelChange
from disttrain.training.optimizer import make_optimizer


def test_training_gives_the_same_weights() -> None:
    torch.manual_seed(0)
    full = nn.Embedding(50, 4, padding_idx=0)
    small = CompactEmbedding(full, np.array([0, 7, 9, 30]))
    ids = torch.tensor([[7, 30, 30], [9, 0, 0]])
    assert torch.equal(small(ids), full(ids))
    optimizers = [make_optimizer(module, TrainConfig(model="bert", weight_decay=0.1)) for module in (full, small)]
    for _ in range(20):
        for module, optimizer in zip((full, small), optimizers, strict=True):
            module(ids).square().sum().backward()
            for group in optimizer.param_groups:
                group["lr"] = 0.03
            optimizer.step()
            optimizer.zero_grad()
    assert torch.allclose(small.full_weight(), full.weight, rtol=1e-5, atol=0)
    assert list(small.state_dict()) == ["weight"]
    assert small.weight.shape == (5, 4)


def test_a_model_still_gets_its_token_ids() -> None:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=60, n_positions=8, n_embd=8, n_layer=1, n_head=2, pad_token_id=50)
    model: Any = GPT2ForSequenceClassification(config).eval()
    ids = torch.tensor([[5, 6, 7], [8, 50, 50]])  # GPT-2 classifies a text by its last token that is not padding
    before = model(input_ids=ids).logits
    state = {name: value.clone() for name, value in model.state_dict().items()}
    assert compact(model, np.array([5, 6, 7, 8, 50])) == ModelChange("compact_vocab")
    assert torch.equal(model(input_ids=ids).logits, before)
    assert model.state_dict()["transformer.wte.weight"].shape == (6, 8)
    torch.testing.assert_close(full_state(model), state, rtol=0, atol=0)


def test_a_tied_embedding_is_unchanged() -> None:
    model: Any = BertForMaskedLM(
        BertConfig(vocab_size=60, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    )
    assert compact(model, np.array([0, 1, 2])).obstacle == "the token embedding is tied to other weights"
    assert model.get_input_embeddings().weight.shape == (60, 8)


def test_a_scaled_embedding_is_unchanged() -> None:
    config = BartConfig(
        vocab_size=60,
        max_position_embeddings=8,
        d_model=8,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=8,
        decoder_ffn_dim=8,
    )
    model: Any = BartForSequenceClassification(config)
    change = compact(model, np.array([0, 1, 2]))
    assert change.obstacle == "the token embedding is of class BartScaledWordEmbedding, not nn.Embedding"
    assert model.get_input_embeddings().weight.shape == (60, 8)
