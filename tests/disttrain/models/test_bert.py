"""Batches of texts, tokenizers made from the data, and models from an architecture or a real checkpoint."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from disttrain.config.train_config import TrainConfig
from disttrain.data.splits import Splits, load_splits
from disttrain.data.texts import TextExamples
from disttrain.errors import UserError
from disttrain.models import bert
from disttrain.models.bert import build, encode
from disttrain.models.family import EncodedSplits
from disttrain.models.tokenizers import checkpoint_tokenizer, train_tokenizer
from tests.disttrain.ranks import ALONE

SENTENCES = ["A dull film.", "Was it moving? It was!", "naïve, yet bright: a film of films", "« Ça va »"] * 5


def splits_of(config: TrainConfig) -> Splits:
    return load_splits(config.resolved(), "text")


def encoded_with(config: TrainConfig, folder: Path) -> EncodedSplits:
    return encode(config.resolved(), splits_of(config), ALONE, folder)


def test_a_batch_is_padded_to_its_longest_text() -> None:
    examples = TextExamples(
        tokens=np.array([1, 2, 3, 4, 5, 6], dtype=np.int32),
        offsets=np.array([0, 2, 3, 6]),
        labels=np.array([0, 1, 1]),
        pad_id=9,
    )
    batch = examples.batch([2, 0])
    assert batch["input_ids"].tolist() == [[4, 5, 6], [1, 2, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [1, 0]
    assert set(examples.batch([1, 1])) == {"input_ids", "labels"}  # no padding, so no mask


@pytest.mark.parametrize(("max_length", "width"), [(16, 8), (5, 5)])
def test_a_compiled_model_gets_few_widths(max_length: int, width: int) -> None:
    tokens, offsets = np.array([1, 2, 3], np.int32), np.array([0, 1, 3])
    examples = TextExamples(tokens, offsets, np.array([0, 1]), 9, compiled_max_length=max_length)
    batch = examples.batch([1, 0])
    assert batch["input_ids"].tolist() == [[2, 3, *[9] * (width - 2)], [1, *[9] * (width - 1)]]
    assert batch["attention_mask"].sum(dim=1).tolist() == [2, 1]
    full = TextExamples(
        np.arange(8, dtype=np.int32), np.array([0, 8]), np.array([0]), 9, compiled_max_length=max(8, max_length)
    )
    assert full.batch([0])["attention_mask"].tolist() == [[1] * 8], "a mask also without padding"


@pytest.mark.process
def test_a_tokenizer_is_the_same_in_every_process() -> None:
    code = (
        f"from disttrain.models.tokenizers import train_tokenizer; print(train_tokenizer({SENTENCES!r}, 60).to_str())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    tokenizer = train_tokenizer(SENTENCES, 60)
    assert json.loads(other.stdout) == json.loads(tokenizer.to_str())
    assert tokenizer.get_vocab_size() == 60
    assert tokenizer.encode("a Dull film?").tokens[:2] == ["[CLS]", "a"]
    assert tokenizer.decode(tokenizer.encode("a dull film").ids) == "a dull film"
    assert tokenizer.encode("a 語").tokens == ["[CLS]", "a", "[UNK]", "[SEP]"]
    assert tokenizer.encode("##a [SEP]").tokens[1:3] != ["##a", "[SEP]"]


def test_long_texts_are_cut_and_counted(bert_config: TrainConfig, tmp_path: Path) -> None:
    encoded = encoded_with(dataclasses.replace(bert_config, max_length=6), tmp_path)
    batch = encoded.train.batch(range(len(encoded.train)))
    assert batch["input_ids"].shape == (30, 6)
    assert encoded.notices[0] == f"made a tokenizer of {len(encoded.reader.tokenizer)} tokens from 30 training texts"
    assert encoded.notices[1].endswith("of 41 texts to 6 tokens")
    ends = [row[row != 0][-1].item() for row in batch["input_ids"]]
    assert set(ends) == {3}  # [SEP], also where a text was cut
    longest = encoded_with(dataclasses.replace(bert_config, max_length=128), tmp_path)
    assert len(longest.notices) == 1


def test_padding_changes_no_scores(bert_config: TrainConfig, tmp_path: Path) -> None:
    encoded = encoded_with(bert_config, tmp_path)
    torch.manual_seed(0)
    model = build(bert_config, encoded).model.eval()
    with torch.no_grad():
        in_one_batch = model(encoded.train.batch(range(8)))
        separately = torch.cat([model(encoded.train.batch([index])) for index in range(8)])
    torch.testing.assert_close(in_one_batch, separately, rtol=1e-4, atol=1e-5)


def test_the_same_seed_gives_the_same_weights(bert_config: TrainConfig, tmp_path: Path) -> None:
    encoded = encoded_with(bert_config, tmp_path)
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(build(bert_config, encoded).model.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        (
            {"hidden_sise": 32},
            "architecture.hidden_sise: unknown field 'hidden_sise' of BertConfig (did you mean hidden_",
        ),
        (
            {"hidden_size": 30, "num_attention_heads": 4},
            "architecture: invalid values for a bert model: The hidden size",
        ),
        ({"hidden_size": "wide"}, "architecture: invalid values for a bert model: Validation error for field 'hidden_"),
        ({"hidden_act": "nope"}, "architecture: invalid values for a bert model"),
        ({"max_position_embeddings": 64}, "max_length 128 is more than the model's 64 positions"),
        ({"id2label": {0: "a"}}, "architecture.id2label: 'id2label' cannot be set here (the dataset's classes decide"),
    ],
)
def test_architecture_mistakes_are_one_line(architecture: dict[str, Any], message: str) -> None:
    config = TrainConfig(model="bert", architecture=architecture)
    examples = TextExamples(np.zeros(1, np.int32), np.array([0, 1]), np.array([0]), 0)
    with pytest.raises(UserError) as caught:
        build(config, EncodedSplits(examples, None, ("a", "b"), reader=bert.TextReader(range(20))))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_vocab_size_must_be_a_count(bert_config: TrainConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(bert_config, architecture={"vocab_size": "many"})
    with pytest.raises(UserError, match=r"architecture.vocab_size is 'many'"):
        encoded_with(config, tmp_path)


def test_a_missing_text(tmp_path: Path, bert_config: TrainConfig) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x", "label": 0}\n{"text": null, "label": 1}\n')
    config = dataclasses.replace(bert_config, dataset=str(tmp_path / "a.jsonl"), max_eval_examples=0)
    with pytest.raises(UserError, match="row 1 of train has no text in column 'text', but None"):
        encoded_with(config, tmp_path)


def test_a_real_checkpoint_gets_a_new_head(minilm: str, texts: Path, tmp_path: Path, capfd: Any) -> None:
    config = TrainConfig(model="bert", checkpoint=minilm, dataset=str(texts), device="cpu")
    encoded = encoded_with(config, tmp_path)
    built = build(config, encoded)
    assert built.notices == (f"{minilm} has no head for 2 classes: classifier.bias, classifier.weight start at random",)
    assert encoded.notices == ()
    assert built.model(encoded.train.batch([0, 1])).shape == (2, 2)
    tokenizer = checkpoint_tokenizer(minilm)
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    ids = encoded.train.batch([0])["input_ids"][0]
    assert backend.encode(splits_of(config).train.rows["sentence"][[0]][0]).ids == ids.tolist()
    assert tokenizer.pad_token_id == 0
    assert capfd.readouterr() == ("", "")  # no reports, no progress bars


def test_a_bert_checkpoint_is_no_vit(minilm: str, images: Path) -> None:
    from disttrain.models import vit

    config = TrainConfig(model="vit", checkpoint=minilm, dataset=str(images))
    splits = load_splits(config, "image")
    encoded = vit.encode(config, splits, ALONE, images)
    with pytest.raises(UserError, match="is a bert model"):
        vit.build(config, encoded)


@pytest.mark.parametrize("checkpoint", ["google-bert/bert-base-uncased", "/no/such/folder"])
def test_a_checkpoint_that_does_not_exist(checkpoint: str, texts: Path, tmp_path: Path) -> None:
    config = TrainConfig(model="bert", checkpoint=checkpoint, dataset=str(texts))
    with pytest.raises(UserError, match=re.escape(f"checkpoint '{checkpoint}' cannot be loaded")):
        encoded_with(config, tmp_path)


def test_both_mask_shapes_give_the_same_scores(minilm: str, texts: Path, tmp_path: Path) -> None:
    """The mask in the shape of attention gives the scores of the 2D mask that transformers converts."""
    config = TrainConfig(model="bert", checkpoint=minilm, dataset=str(texts), device="cpu", compact_vocab=False)
    encoded = encoded_with(config, tmp_path)
    model: Any = build(config, encoded).model.eval()
    batch = encoded.train.batch([0, 1, 2, 3])
    assert "attention_mask" in batch
    expected = model.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    torch.testing.assert_close(model(batch), expected, rtol=0, atol=0)
