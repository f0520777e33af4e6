"""Attention with dropout on a CPU computes what torch's does, except for which weights it drops."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertForSequenceClassification

from disttrain.config.train_config import TrainConfig
from disttrain.data.splits import load_splits
from disttrain.models import bert, cpu_dropout
from disttrain.models.bert import TextClassifier
from disttrain.models.cpu_attention import attend, use_cpu_attention
from disttrain.models.cpu_dropout import CpuDropout
from tests.disttrain.ranks import ALONE

P = 0.25


@pytest.fixture
def drops_every_fourth(monkeypatch: pytest.MonkeyPatch) -> None:
    def mask(values: Tensor, p: float) -> Tensor:
        assert p == P
        return (torch.arange(values.numel()) % 4 != 3).to(values.dtype).view(values.shape)

    monkeypatch.setattr(cpu_dropout, "keep_mask", mask)


@pytest.mark.parametrize("masked", [False, True])
def test_scores_and_gradients_are_those_of_the_formula(masked: bool, drops_every_fourth: None) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    mask = None
    if masked:
        mask = torch.ones(2, 1, 1, 5, dtype=torch.bool)
        mask[1, ..., 3:] = False
    scores = query @ key.mT / 2
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    kept = torch.arange(scores.numel()).view(scores.shape) % 4 != 3
    expected = (scores.softmax(dim=-1) * kept / (1 - P)) @ value
    actual, weights = attend(nn.Identity(), query, key, value, mask, dropout=P, scaling=0.5)
    assert weights is None
    torch.testing.assert_close(actual, expected.transpose(1, 2))
    own, wanted = (torch.autograd.grad(result.pow(2).sum(), (query, key, value)) for result in (actual, expected))
    torch.testing.assert_close(own, wanted)


def test_an_empty_text_gives_no_nan() -> None:
    """A tokenizer without special tokens gives it no token, so all of its row is padding."""
    query, key, value = (torch.randn(2, 1, 3, 4, requires_grad=True) for _ in range(3))
    mask = torch.tensor([[True, True, False], [False, False, False]])[:, None, None]
    attended, _ = attend(nn.Identity(), query, key, value, mask, dropout=P, scaling=0.5)
    assert attended.isfinite().all()
    gradients = torch.autograd.grad(attended.sum(), (query, key, value))
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_dropping_everything_gives_zeros() -> None:
    query = torch.randn(2, 1, 3, 4)
    assert not attend(nn.Identity(), query, query, query, None, dropout=1.0, scaling=0.5)[0].any()


@pytest.mark.parametrize(("fields", "own"), [({}, True), ({"compile": True}, False)])
def test_a_bert_on_a_cpu_has_both(fields: dict[str, Any], own: bool, bert_config: TrainConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(bert_config, **fields)
    encoded = bert.encode(config, load_splits(config, "text"), ALONE, tmp_path)
    model: Any = bert.build(config, encoded).model
    assert (model.model.config._attn_implementation == "cpu_dropout") == own
    assert any(isinstance(module, CpuDropout) for module in model.modules()) == own


@pytest.mark.parametrize("padded", [False, True])
def test_bert_evaluates_as_before(padded: bool) -> None:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=50, hidden_size=32, num_attention_heads=4, intermediate_size=48, num_hidden_layers=2)
    model = BertForSequenceClassification(config).eval()
    batch = {"input_ids": torch.randint(5, 50, (3, 7))}
    if padded:
        batch["attention_mask"] = torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1] * 2 + [0] * 5])
    classifier = TextClassifier(model)
    expected = classifier(batch)
    use_cpu_attention(model)
    assert torch.equal(classifier(batch), expected)
    assert model.train()(input_ids=batch["input_ids"]).logits.isfinite().all()
    assert "cpu_dropout" not in model.config.to_json_string()
