"""A change of the model for speed is named exactly when it took effect, in the built model and in the start record."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from torch import nn
from transformers import (
    AutoTokenizer,
    BartConfig,
    BartForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForSequenceClassification,
    ViTForImageClassification,
)

from disttrain.config.train_config import TrainConfig
from disttrain.data.splits import load_splits
from disttrain.models import bert, vit
from disttrain.models.compact_embedding import CompactEmbedding
from disttrain.models.family import BuiltModel
from disttrain.records.record_files import metrics_name, read_records
from disttrain.records.record_types import StartRecord
from tests.disttrain.ranks import ALONE

if TYPE_CHECKING:
    from tests.disttrain.conftest import RunRanks

BOTH = ("compact_vocab", "trim_last_layer")
SWITCHES = [(True, True), (True, False), (False, True), (False, False)]
TINY_BART = BartConfig(
    vocab_size=30522,
    max_position_embeddings=128,
    d_model=8,
    encoder_layers=1,
    decoder_layers=1,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=8,
    decoder_ffn_dim=8,
    num_labels=2,
)
TINY_T5 = T5Config(vocab_size=30522, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, num_labels=2)
TINY_ROBERTA = RobertaConfig(
    vocab_size=30522,
    max_position_embeddings=514,
    pad_token_id=0,
    hidden_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=8,
)


def built_bert(config: TrainConfig, folder: Path) -> BuiltModel:
    encoded = bert.encode(config, load_splits(config.resolved(), "text"), ALONE, folder)
    return bert.build(config, encoded)


def built_vit(config: TrainConfig) -> BuiltModel:
    return vit.build(config, vit.encode(config, load_splits(config.resolved(), "image"), ALONE, Path()))


def found_in(built: BuiltModel) -> tuple[str, ...]:
    """The changes that the model really has."""
    parts = {"compact_vocab": (CompactEmbedding,), "trim_last_layer": (bert.FirstTokenLayer, vit.FirstTokenLayer)}
    modules = list(built.model.modules())
    return tuple(field for field, part in parts.items() if any(isinstance(module, part) for module in modules))


def no_effect(built: BuiltModel) -> list[str]:
    return [notice for notice in built.notices if "has no effect" in notice]


@pytest.mark.parametrize(("compact", "trim"), SWITCHES)
def test_a_pretrained_bert(compact: bool, trim: bool, minilm: str, texts: Path, tmp_path: Path) -> None:
    config = TrainConfig(
        model="bert", checkpoint=minilm, dataset=str(texts), compact_vocab=compact, trim_last_layer=trim
    )
    built = built_bert(config, tmp_path)
    asked = tuple(field for field in BOTH if getattr(config, field))
    assert built.model_changes == asked == found_in(built)
    assert no_effect(built) == []


@pytest.mark.parametrize(("compact", "trim"), SWITCHES)
def test_a_bert_from_scratch_has_all_rows(compact: bool, trim: bool, bert_config: TrainConfig, tmp_path: Path) -> None:
    built = built_bert(dataclasses.replace(bert_config, compact_vocab=compact, trim_last_layer=trim), tmp_path)
    assert built.model_changes == ("trim_last_layer",) * trim == found_in(built)
    assert no_effect(built) == []


@pytest.mark.parametrize(
    ("model_class", "hf_config", "changes", "notices"),
    [
        (
            BartForSequenceClassification,
            TINY_BART,
            (),
            ["compact_vocab has no effect: the token embedding is of class BartScaledWordEmbedding, not nn.Embedding"],
        ),
        (
            T5ForSequenceClassification,
            TINY_T5,
            (),
            ["compact_vocab has no effect: the token embedding is tied to other weights"],
        ),
        (RobertaForSequenceClassification, TINY_ROBERTA, ("compact_vocab",), []),
    ],
    ids=["scaled embedding", "tied embedding", "another head"],
)
def test_another_pretrained_model(
    model_class: type[PreTrainedModel],
    hf_config: PretrainedConfig,
    changes: tuple[str, ...],
    notices: list[str],
    minilm: str,
    texts: Path,
    tmp_path: Path,
) -> None:
    checkpoint = tmp_path / "model"
    model_class(hf_config).save_pretrained(checkpoint)
    AutoTokenizer.from_pretrained(minilm).save_pretrained(checkpoint)
    built = built_bert(TrainConfig(model="bert", checkpoint=str(checkpoint), dataset=str(texts)), tmp_path)
    assert built.model_changes == changes == found_in(built)
    assert no_effect(built) == notices


@pytest.mark.parametrize("trim", [True, False])
@pytest.mark.parametrize("pretrained", [True, False])
def test_a_vit(trim: bool, pretrained: bool, vit_config: TrainConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(vit_config, trim_last_layer=trim)
    if pretrained:
        save = built_vit(vit_config).save
        assert save is not None
        save(tmp_path)
        config = dataclasses.replace(config, architecture=None, checkpoint=str(tmp_path))
    built = built_vit(config)
    assert built.model_changes == ("trim_last_layer",) * trim == found_in(built)
    assert no_effect(built) == []


def test_an_unsupported_last_layer(vit_config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    # Stands in for a version of transformers whose ViT has layers of another class.
    monkeypatch.setitem(vit._FIRST_TOKEN_LAYERS, ViTForImageClassification, bert.FirstTokenLayer)
    built = built_vit(vit_config)
    assert built.model_changes == () == found_in(built)
    assert no_effect(built) == ["trim_last_layer has no effect: the model has no layer of a supported class"]


def test_an_own_family_names_no_change() -> None:
    assert BuiltModel(nn.Linear(1, 1)).model_changes == ()


@pytest.mark.parametrize(
    ("fields", "changes"),
    [({}, BOTH), ({"compact_vocab": False}, ("trim_last_layer",)), (dict.fromkeys(BOTH, False), ())],
)
def test_start_records_name_the_changes(
    fields: dict[str, Any], changes: tuple[str, ...], minilm: str, bert_config: TrainConfig, run_ranks: RunRanks
) -> None:
    config = dataclasses.replace(
        bert_config, architecture=None, checkpoint=minilm, max_steps=1, save_model=False, **fields
    )
    finished = run_ranks(config, 2)
    for rank in range(2):
        (start,) = (
            record
            for record in read_records(finished.output_dir / metrics_name(rank))
            if isinstance(record, StartRecord)
        )
        assert start.model_changes == changes
