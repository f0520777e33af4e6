"""Pairs of texts are encoded as by transformers' own tokenizer and model, in training and afterwards."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from disttrain.config.train_config import TrainConfig
from disttrain.data import texts as texts_module
from disttrain.data.splits import load_splits
from disttrain.data.texts import Texts, tokenize
from disttrain.environment.rank_env import RankEnv
from disttrain.errors import UserError
from disttrain.models.bert import TextClassifier, build, encode
from disttrain.models.family import EncodedSplits
from disttrain.run import run
from tests.disttrain.ranks import ALONE

PAIRS = [
    ("A man sleeps.", "Somebody is asleep."),
    ("It rains, and the naïve go out without a coat or an umbrella, again and again.", "It rains."),
    ("No.", "Two men on a roof repair what the storm of last week has left of it, which is little."),
    ("", "Nothing before this."),
    ("Nothing after this.", ""),
    ("long " * 40, "longer " * 50),
]
THINGS = ["dog", "cat", "man"]


def write_pairs(folder: Path, rows: int = 240) -> Path:
    """A small entailment task: the second text follows if it names the thing of the first."""
    folder.mkdir(exist_ok=True)
    for name, count in (("train", rows), ("dev", 15)):
        draw = np.random.default_rng(count)
        with (folder / f"{name}.jsonl").open("w") as file:
            for row in range(count):
                first, other = draw.choice(THINGS, 2, replace=False)
                second = first if row % 2 else other
                premise = f"a {first}" + " there" * int(draw.integers(0, 3))
                print(json.dumps({"premise": premise, "hypothesis": f"a {second}", "label": row % 2}), file=file)
    return folder


@pytest.fixture
def pair_config(bert_config: TrainConfig, tmp_path: Path) -> TrainConfig:
    return dataclasses.replace(bert_config, dataset=str(write_pairs(tmp_path / "pairs")), text_pair_column="hypothesis")


def encoded_with(config: TrainConfig, folder: Path) -> EncodedSplits:
    return encode(config.resolved(), load_splits(config.resolved(), "text"), ALONE, folder)


@pytest.mark.parametrize("max_length", [3, 8, 32, 128])
@pytest.mark.parametrize("cached_from", [0, 10**9])
def test_inputs_are_those_of_transformers(
    minilm: str, max_length: int, cached_from: int, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts_module, "_CACHED_FROM", cached_from)
    rows = [{"a": first, "b": second, "label": row % 2} for row, (first, second) in enumerate(PAIRS)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = TrainConfig(
        model="bert",
        checkpoint=minilm,
        dataset=str(tmp_path / "train.jsonl"),
        text_column="a",
        text_pair_column="b",
        max_eval_examples=0,
        max_length=max_length,
        compact_vocab=False,
    )
    encoded = encoded_with(config, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    for chosen in ([0, 1, 2, 3, 4, 5], [5, 0], [3], [4, 3, 4]):
        firsts, seconds = zip(*(PAIRS[row] for row in chosen), strict=True)
        expected = tokenizer(
            list(firsts), list(seconds), truncation=True, max_length=max_length, padding=True, return_tensors="pt"
        )
        batch = encoded.train.batch(chosen)
        assert torch.equal(batch["input_ids"], expected["input_ids"])
        assert torch.equal(batch["token_type_ids"], expected["token_type_ids"])
        assert torch.equal(batch.get("attention_mask", torch.ones_like(batch["input_ids"])), expected["attention_mask"])
    lengths = [len(ids) for ids in tokenizer(*map(list, zip(*PAIRS, strict=True)))["input_ids"]]
    cut = sum(length > max_length for length in lengths)
    assert encoded.notices == ((f"cut {cut} of 6 pairs of texts to {max_length} tokens",) if cut else ())
    assert encoded.train.lengths is not None
    assert encoded.train.lengths.tolist() == [min(length, max_length) for length in lengths]


def test_the_cache_key_has_both_texts(minilm: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts_module, "_CACHED_FROM", 0)
    tokenizer = AutoTokenizer.from_pretrained(minilm).backend_tokenizer
    for count, texts in enumerate(
        [
            Texts(["a"], ["b"]),
            Texts(["a", "b"]),
            Texts(["b"], ["a"]),
            Texts(["a"], ["c"]),
            Texts(["a"]),
        ],
        start=1,
    ):
        made = tokenize(tokenizer, {"train": texts}, 16, ALONE)["train"]
        assert (made.first_lengths is None) == (texts.second is None)
        assert len(list(cache.iterdir())) == count


def test_no_room_for_a_pair(pair_config: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="max_length 2 is less than the 3 special tokens of an input"):
        encoded_with(dataclasses.replace(pair_config, max_length=2), tmp_path)


def test_unknown_token_types_are_refused() -> None:
    assert texts_module._first_length([0, 0, 1]) == 2
    assert texts_module._first_length([0, 0]) == 2
    for type_ids in ([0, 1, 0], [0, 0, 2], [1, 0, 0]):
        with pytest.raises(UserError, match="text_pair_column: the checkpoint's tokenizer marks"):
            texts_module._first_length(type_ids)


def test_a_single_text_has_no_types(bert_config: TrainConfig, tmp_path: Path) -> None:
    assert "token_type_ids" not in encoded_with(bert_config, tmp_path).train.batch([0, 1])


def test_a_model_without_types_gets_none(pair_config: TrainConfig, tmp_path: Path) -> None:
    architecture = {**(pair_config.architecture or {}), "type_vocab_size": 1}
    config = dataclasses.replace(pair_config, architecture=architecture)
    encoded = encoded_with(config, tmp_path)
    batch = encoded.train.batch([0, 1])
    assert batch["token_type_ids"].max() == 1
    model = build(config, encoded).model
    assert isinstance(model, TextClassifier)
    assert not model.takes_types
    assert model(batch).shape == (2, 2)


def only_rank_0_tokenises(config: TrainConfig, env: RankEnv, output_dir: Path) -> None:
    texts_module._CACHED_FROM = 0
    if env.rank > 0:
        texts_module._append_tokens = None  # type: ignore[assignment]
    run(config, env, output_dir)


@pytest.mark.parametrize("target", [run, only_rank_0_tokenises])
def test_a_run_learns_entailment(
    target: Callable[..., Any], pair_config: TrainConfig, run_ranks: Callable[..., Any], tmp_path: Path
) -> None:
    config = dataclasses.replace(pair_config, max_steps=90, per_gpu_batch=16, lr=5e-3, seed=3)
    finished = run_ranks(config, 2, target=target)
    assert finished.exit_codes == (0, 0)
    losses = finished.losses()
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])
    folder = finished.output_dir / "model"
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = [json.loads(line) for line in Path(str(config.dataset), "dev.jsonl").read_text().splitlines()]
    premises, hypotheses = ([row[name] for row in rows] for name in ("premise", "hypothesis"))
    with torch.no_grad():
        logits = model(**tokenizer(premises, hypotheses, padding=True, return_tensors="pt")).logits
    correct = logits.argmax(dim=1) == torch.tensor([row["label"] for row in rows])
    assert correct.float().mean().item() == pytest.approx(finished.summary["eval_accuracy"])
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor([row["label"] for row in rows])).item()
    assert loss == pytest.approx(finished.summary["eval_loss"], rel=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"text_pair_column": "claim"},
            "text_pair_column: column 'claim' is not in the dataset (it has: 'premise', 'hypothesis', 'label')",
        ),
        (
            {"text_column": "premise", "text_pair_column": "premise"},
            "text_pair_column: 'premise' is also the text_column (name another column)",
        ),
        ({"text_pair_column": "label"}, "text_pair_column: 'label' is also the label_column (name another column)"),
        (
            {"text_pair_column": None},
            "text_column: the dataset has 'premise', 'hypothesis' (set text_column to one of: 'premise', 'hypothesis'",
        ),
    ],
)
def test_column_mistakes_are_one_line(fields: dict[str, Any], message: str, pair_config: TrainConfig) -> None:
    with pytest.raises(UserError) as caught:
        load_splits(dataclasses.replace(pair_config, **fields).resolved(), "text")
    assert str(caught.value).startswith(message)


def test_the_other_text_column_is_found(pair_config: TrainConfig) -> None:
    splits = load_splits(pair_config.resolved(), "text")
    assert (splits.input_column, splits.pair_column) == ("premise", "hypothesis")
    assert list(splits.train.rows.columns) == ["premise", "hypothesis"]
    swapped = load_splits(dataclasses.replace(pair_config, text_pair_column="premise").resolved(), "text")
    assert (swapped.input_column, swapped.pair_column) == ("hypothesis", "premise")


def test_a_split_without_the_pair_column(pair_config: TrainConfig) -> None:
    Path(str(pair_config.dataset), "dev.jsonl").write_text('{"premise": "a", "label": 1}\n')
    with pytest.raises(UserError) as caught:
        load_splits(pair_config.resolved(), "text")
    assert (
        str(caught.value) == "text_pair_column: column 'hypothesis' is not in split 'dev' (it has: 'premise', 'label')"
    )


def test_a_missing_second_text(pair_config: TrainConfig, tmp_path: Path) -> None:
    rows = ['{"premise": "a", "hypothesis": "b", "label": 0}', '{"premise": "a", "hypothesis": null, "label": 1}']
    Path(str(pair_config.dataset), "train.jsonl").write_text("\n".join(rows))
    with pytest.raises(UserError, match="row 1 of train has no text in column 'hypothesis', but None"):
        encoded_with(pair_config, tmp_path)


def test_images_have_no_second_text(vit_config: TrainConfig) -> None:
    config = dataclasses.replace(vit_config, text_pair_column="label")
    with pytest.raises(UserError, match=r"text_pair_column: 'label' is set, but model 'vit' takes images \(drop it\)"):
        load_splits(config.resolved(), "image")
