"""Text models of many kinds train on two ranks, evaluate padded texts as unpadded ones, and are saved and reopened.

The checkpoints have random weights. docs/your-model.md names the kinds.
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast

from disttrain.config.train_config import TrainConfig
from disttrain.models.pretrained import from_checkpoint
from disttrain.models.tokenizers import train_tokenizer
from disttrain.records.record_files import metrics_name, read_records
from disttrain.records.record_types import EvalRecord, StartRecord

COMMON: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2,
    "sep_token_id": 3, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.2,
}  # fmt: skip
# What each kind has besides, and the fields of the run that change it for speed.
KINDS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "bert": ({}, ("compact_vocab", "trim_last_layer")),
    "roberta": ({}, ("compact_vocab",)),
    "xlm-roberta": ({"pad_token_id": 1}, ("compact_vocab",)),
    "distilbert": ({"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48, "dropout": 0.0,
                    "seq_classif_dropout": 0.0, "attention_dropout": 0.0}, ("compact_vocab",)),
    "electra": ({"embedding_size": 16}, ("compact_vocab",)),
    "albert": ({"embedding_size": 16, "classifier_dropout_prob": 0.0}, ("compact_vocab",)),
    "deberta": ({"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}, ("compact_vocab",)),
    "deberta-v2": ({"relative_attention": True, "position_buckets": 8, "pos_att_type": ["c2p", "p2c"]},
                   ("compact_vocab",)),
    "mpnet": ({"pad_token_id": 1}, ("compact_vocab",)),
    "longformer": ({"attention_window": 4, "pad_token_id": 1}, ("compact_vocab",)),
    "ernie": ({}, ("compact_vocab",)),
    "modernbert": ({"attention_dropout": 0.0, "embedding_dropout": 0.0, "mlp_dropout": 0.0, "classifier_dropout": 0.0},
                   ("compact_vocab",)),
    "gpt2": ({"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "resid_pdrop": 0.0, "embd_pdrop": 0.0,
              "attn_pdrop": 0.0}, ("compact_vocab",)),
    "llama": ({"num_key_value_heads": 2}, ("compact_vocab",)),
    "bart": ({"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
              "decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "dropout": 0.0}, ()),
}  # fmt: skip


def make_checkpoint(kind: str, folder: Path, texts: list[str]) -> str:
    """A checkpoint of this kind with random weights, and a tokenizer of these texts."""
    tokenizer = train_tokenizer(texts, 200)
    fields, _ = KINDS[kind]
    pad_id = {**COMMON, **fields}["pad_token_id"]
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**COMMON, **fields, "vocab_size": 200}, num_labels=2)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=tokenizer.id_to_token(pad_id),
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "attention_mask"],
    )
    wrapped.save_pretrained(folder)
    return str(folder)


def rows_of(path: Path) -> list[tuple[str, int]]:
    with path.open(newline="") as file:
        reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [(row["sentence"], int(row["label"])) for row in reader]


def loss_of_saved(folder: Path, rows: list[tuple[str, int]]) -> float:
    """The mean loss of a saved model, opened by transformers alone, one text at a time: nothing is padded."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    losses = []
    for text, label in rows:
        with torch.no_grad():
            logits = model(**tokenizer(text, return_tensors="pt", return_token_type_ids=False)).logits
        losses.append(float(torch.nn.functional.cross_entropy(logits, torch.tensor([label]))))
    return sum(losses) / len(losses)


@pytest.mark.process
@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_trains_and_is_reopened(
    kind: str, bert_config: TrainConfig, texts: Path, tmp_path: Path, run_ranks: Callable[..., Any]
) -> None:
    checkpoint = make_checkpoint(kind, tmp_path / "checkpoint", [text for text, _ in rows_of(texts / "train.tsv")])
    config = dataclasses.replace(
        bert_config, architecture=None, checkpoint=checkpoint, max_steps=4, max_length=48, per_gpu_batch=4, lr=1e-3
    )
    finished = run_ranks(config, 2)
    assert finished.exit_codes == (0, 0)
    records = list(read_records(finished.output_dir / metrics_name(0)))
    (evaluated,) = (record for record in records if isinstance(record, EvalRecord) and record.step == 4)
    expected = loss_of_saved(finished.output_dir / "model", rows_of(texts / "dev.tsv"))
    assert evaluated.loss == pytest.approx(expected, rel=1e-4)
    (start,) = (record for record in records if isinstance(record, StartRecord))
    assert start.model_changes == KINDS[kind][1]
    alone = run_ranks(dataclasses.replace(config, per_gpu_batch=8), 1)
    assert alone.exit_codes == (0,)
    assert alone.losses() == pytest.approx(finished.losses(), rel=1e-3)


def test_the_head_behind_another_layer_is_reordered(bert_config: TrainConfig, texts: Path, tmp_path: Path) -> None:
    """DistilBERT has a layer before its head that is no head."""
    folder = Path(make_checkpoint("distilbert", tmp_path / "a", [text for text, _ in rows_of(texts / "train.tsv")]))
    before = AutoModelForSequenceClassification.from_pretrained(folder)
    built = from_checkpoint(
        AutoModelForSequenceClassification,
        str(folder),
        AutoConfig.from_pretrained(folder, id2label={0: "good", 1: "bad"}, label2id={"good": 0, "bad": 1}),
        ["bad", "good"],
    )
    model: Any = built.model
    assert torch.equal(model.classifier.weight, before.classifier.weight.flip(0))
    assert torch.equal(model.pre_classifier.weight, before.pre_classifier.weight)
