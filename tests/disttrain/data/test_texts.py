"""Texts are tokenised once, by one rank of a run, and the next run reads them from the cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from disttrain.config.train_config import TrainConfig
from disttrain.data import texts as texts_module
from disttrain.data.texts import Texts, TokenizedSplit, tokenize
from disttrain.environment.rank_env import RankEnv
from disttrain.models.tokenizers import train_tokenizer
from disttrain.run import run
from tests.disttrain.ranks import ALONE

SENTENCES = [f"a film of {number} parts, naïve \ud800 and" + " long" * (number % 7) for number in range(4500)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([text.replace("\ud800", "") for text in SENTENCES[:50]], 120)


def tokenised(tokenizer: Tokenizer, texts: list[str], max_length: int = 16) -> TokenizedSplit:
    return tokenize(tokenizer, {"train": Texts(texts)}, max_length, ALONE)["train"]


def fail_if_tokenised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts_module, "_append_tokens", None)


def same(first: TokenizedSplit, second: TokenizedSplit) -> bool:
    return all(np.array_equal(*pair) for pair in zip(*map(dataclasses.astuple, (first, second)), strict=True))


def test_cached_ids_are_those_of_the_tokenizer(
    tokenizer: Tokenizer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [text.replace("\ud800", "") for text in SENTENCES]
    made = tokenised(tokenizer, texts)
    ids = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    assert [made.tokens[a:b].tolist() for a, b in zip(made.offsets, made.offsets[1:], strict=False)] == ids
    assert made.occurring.tolist() == sorted({token for text_ids in ids for token in text_ids})
    assert made.cut == sum(len(tokenizer.encode(text).overflowing) > 0 for text in texts) > 0
    assert isinstance(made.tokens.base, np.memmap)
    assert len(list(cache.iterdir())) == 1
    fail_if_tokenised(monkeypatch)
    assert same(tokenised(tokenizer, texts), made)


def test_few_texts_are_not_cached(tokenizer: Tokenizer, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = ["a film", "of parts"]
    made = tokenised(tokenizer, few)
    assert not cache.exists()
    monkeypatch.setattr(texts_module, "_CACHED_FROM", 0)
    assert same(tokenised(tokenizer, few), made)
    assert len(list(cache.iterdir())) == 1


def test_the_cache_key_has_every_input(tokenizer: Tokenizer, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts_module, "_CACHED_FROM", 0)
    other = train_tokenizer(["another text"], 60)
    for count, (own_tokenizer, texts, max_length) in enumerate(
        [
            (tokenizer, ["a film", "of parts"], 16),
            (tokenizer, ["of parts", "a film"], 16),
            (tokenizer, ["a film", "of parts"], 2),
            (tokenizer, ["a filmof", " parts"], 16),
            (other, ["a film", "of parts"], 16),
        ],
        start=1,
    ):
        for _ in range(2):
            tokenised(own_tokenizer, texts, max_length)
            assert len(list(cache.iterdir())) == count


def test_a_lone_surrogate_has_a_key(tokenizer: Tokenizer) -> None:
    assert texts_module._key(tokenizer, Texts(SENTENCES[:2])) != texts_module._key(tokenizer, Texts(SENTENCES[1:3]))


def only_rank_0_tokenises(config: TrainConfig, env: RankEnv, output_dir: Path) -> None:
    texts_module._CACHED_FROM = 0
    if env.rank > 0:
        texts_module._append_tokens = None  # type: ignore[assignment]
    run(config, env, output_dir)


def test_one_rank_tokenises_for_all(bert_config: TrainConfig, run_ranks: Callable[..., Any], tmp_path: Path) -> None:
    for name, count in (("train", 31), ("dev", 9)):
        rows = (f"a {('good', 'bad')[row % 2]} film, seen {row} times\t{row % 2}" for row in range(count))
        (tmp_path / f"{name}.tsv").write_text("\n".join(["sentence\tlabel", *rows]) + "\n")
    config = dataclasses.replace(bert_config, dataset=str(tmp_path), max_steps=4)
    plain = run_ranks(config, 3)
    cached = run_ranks(config, 3, target=only_rank_0_tokenises)
    assert cached.exit_codes == (0, 0, 0)
    assert cached.losses() == plain.losses()
