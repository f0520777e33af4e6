"""The trimmed last layer gives the same scores and gradients as the full layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoTokenizer, BertConfig, RobertaConfig, RobertaForSequenceClassification, ViTConfig
from transformers.models.bert.modeling_bert import BertForSequenceClassification, BertLayer
from transformers.models.vit.modeling_vit import ViTForImageClassification

from disttrain.config.train_config import TrainConfig
from disttrain.data.splits import load_splits
from disttrain.models import bert, vit
from disttrain.models.first_token_layer import trim
from disttrain.models.model_change import ModelChange
from disttrain.models.normalisation import Normalisation
from tests.disttrain.ranks import ALONE


def _bert(**fields: Any) -> tuple[nn.Module, nn.ModuleList, type[nn.Module]]:
    sizes = {"vocab_size": 50, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
    model = BertForSequenceClassification(
        BertConfig(
            **{
                **sizes,
                "num_hidden_layers": 3,
                "hidden_dropout_prob": 0.0,
                "attention_probs_dropout_prob": 0.0,
                **fields,
            }
        )
    )
    return bert.TextClassifier(model), model.bert.encoder.layer, bert.FirstTokenLayer


def _vit(**fields: Any) -> tuple[nn.Module, nn.ModuleList, type[nn.Module]]:
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "image_size": 32, "patch_size": 8}
    model = ViTForImageClassification(ViTConfig(**{**sizes, "num_hidden_layers": 3, **fields}))
    return vit.ImageClassifier(model, Normalisation()), model.vit.layers, vit.FirstTokenLayer


def _batches(kind: str) -> list[dict[str, torch.Tensor]]:
    if kind == "vit":
        return [{"pixels": torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)}]
    ids = torch.randint(5, 50, (3, 7))
    mask = torch.ones_like(ids)
    mask[1, 4:] = mask[2, 2:] = 0
    types = torch.zeros_like(ids)
    types[:, 3:] = 1
    return [
        {"input_ids": ids},
        {"input_ids": ids, "attention_mask": mask},
        {"input_ids": ids, "attention_mask": mask, "token_type_ids": types},
    ]


def _scores_and_gradients(model: nn.Module, batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    scores = model(batch)
    loss = scores.square().sum()
    return [scores.detach(), *torch.autograd.grad(loss, list(model.parameters()))]


@pytest.mark.parametrize("kind", ["bert", "vit"])
@pytest.mark.parametrize("act", ["gelu", "relu"])
def test_scores_and_gradients_are_the_same(kind: str, act: str) -> None:
    torch.manual_seed(0)
    model, layers, trimmed = (_bert if kind == "bert" else _vit)(hidden_act=act)
    batches = _batches(kind)
    names = list(model.state_dict())
    full = [_scores_and_gradients(model, batch) for batch in batches]

    assert trim(model, trimmed) == ModelChange("trim_last_layer")

    assert isinstance(layers[-1], trimmed)
    assert not isinstance(layers[-2], trimmed)
    assert layers[-1](torch.zeros(2, 5, 32)).shape == (2, 1, 32)
    assert list(model.state_dict()) == names
    for batch, expected in zip(batches, full, strict=True):
        torch.testing.assert_close(_scores_and_gradients(model, batch), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["bert", "vit"])
@pytest.mark.parametrize("dropped", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
def test_dropout_works_in_training_only(kind: str, dropped: str) -> None:
    torch.manual_seed(0)
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, dropped: 0.5}
    model, layers, trimmed = (_bert if kind == "bert" else _vit)(**rates)
    trim(model, trimmed)
    layer, tokens = layers[-1], torch.randn(2, 5, 32)
    layer.eval()
    torch.testing.assert_close(layer(tokens), layer(tokens))
    layer.train()
    assert not torch.allclose(layer(tokens), layer(tokens))


def test_trimming_preserves_random_state_and_mode() -> None:
    model, layers, trimmed = _bert()
    layers[-1].train()
    state = torch.get_rng_state()
    trim(model, trimmed)
    assert torch.equal(torch.get_rng_state(), state)
    assert layers[-1].training


class _OtherLayer(BertLayer):  # type: ignore[misc]
    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        doubled: torch.Tensor = super().forward(hidden_states, *args, **kwargs) * 2
        return doubled


class _TupleLayer(BertLayer):  # type: ignore[misc]
    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor]:
        return (super().forward(hidden_states, *args, **kwargs),)


class _RaisingLayer(BertLayer):  # type: ignore[misc]
    def forward(self, *_: Any, **__: Any) -> torch.Tensor:
        raise KeyError("no such layer")


def test_large_activations_are_trimmed_too() -> None:
    torch.manual_seed(0)
    model, layers, trimmed = _vit(hidden_size=256, initializer_range=0.5)
    for parameter in layers[-1].parameters():
        parameter.data.mul_(3)
    assert trim(model, trimmed) == ModelChange("trim_last_layer")


@pytest.mark.parametrize(
    ("other", "obstacle"),
    [
        (_OtherLayer, "the trimmed last layer would compute other values"),
        (_TupleLayer, "the last layer is not supported (TypeError)"),
        (_RaisingLayer, "the last layer is not supported (KeyError)"),
    ],
)
def test_another_layer_is_not_changed(other: type[nn.Module], obstacle: str) -> None:
    model, layers, trimmed = _bert()
    layers[-1].__class__ = other
    assert trim(model, trimmed) == ModelChange("trim_last_layer", obstacle)
    assert type(layers[-1]) is other


def test_a_model_without_layers_is_not_changed() -> None:
    change = trim(nn.Sequential(nn.Linear(2, 2)), bert.FirstTokenLayer)
    assert change == ModelChange("trim_last_layer", "the model has no layer of a supported class")


@pytest.mark.parametrize("name", ["bert_config", "vit_config"])
def test_two_ranks_learn_the_same(name: str, request: pytest.FixtureRequest, run_ranks: Callable[..., Any]) -> None:
    config = dataclasses.replace(request.getfixturevalue(name), max_steps=6)
    trimmed = run_ranks(config, 2)
    full = run_ranks(dataclasses.replace(config, trim_last_layer=False), 2)
    assert trimmed.losses() == pytest.approx(full.losses(), rel=1e-4)
    assert not [notice for notice in trimmed.summary["notices"] if "trim_last_layer" in notice]
    # Without the bias of the keys. It does not change attention: its gradient is rounding noise, which AdamW amplifies.
    models = [
        {
            name: value
            for name, value in load_file(run.output_dir / "model" / "model.safetensors").items()
            if not name.endswith(("key.bias", "k_proj.bias"))
        }
        for run in (trimmed, full)
    ]
    torch.testing.assert_close(*models, rtol=1e-3, atol=1e-4)
    assert trimmed.summary["eval_loss"] == pytest.approx(full.summary["eval_loss"], rel=1e-4)


def _built(checkpoint: Path, texts: Path, work_dir: Path, **fields: Any) -> nn.Module:
    config = TrainConfig(model="bert", checkpoint=str(checkpoint), dataset=str(texts), device="cpu", **fields)
    encoded = bert.encode(config, load_splits(config.resolved(), "text"), ALONE, work_dir)
    model: nn.Module = bert.build(config, encoded).model
    return model.eval()


def test_a_trimmed_checkpoint_gives_the_same_scores(minilm: str, texts: Path, tmp_path: Path) -> None:
    scores = []
    for trimmed in (True, False):
        torch.manual_seed(0)
        model = _built(Path(minilm), texts, tmp_path, trim_last_layer=trimmed)
        assert any(isinstance(module, bert.FirstTokenLayer) for module in model.modules()) == trimmed
        with torch.no_grad():
            scores.append(model({"input_ids": torch.arange(1000, 1024).view(2, 12)}))
    torch.testing.assert_close(*scores)


@pytest.mark.parametrize("kind", ["decoder", "another head"])
def test_other_heads_are_not_trimmed(kind: str, minilm: str, texts: Path, tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    if kind == "decoder":
        model: Any = BertForSequenceClassification(BertConfig(**sizes, is_decoder=True))
    else:
        model = RobertaForSequenceClassification(
            RobertaConfig(**sizes, vocab_size=30522, max_position_embeddings=514, pad_token_id=0)
        )
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(minilm).save_pretrained(tmp_path / "model")
    built = _built(tmp_path / "model", texts, tmp_path)
    assert not any(isinstance(module, bert.FirstTokenLayer) for module in built.modules())
