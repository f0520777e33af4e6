"""A checkpoint that cannot be trained is refused before the first step, and one that asks for other outputs works."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from disttrain.config.train_config import TrainConfig
from disttrain.data.splits import load_splits
from disttrain.errors import UserError
from disttrain.models.bert import build, encode
from disttrain.models.family import BuiltModel
from disttrain.models.tokenizers import train_tokenizer
from tests.disttrain.models.test_text_kinds import loss_of_saved, make_checkpoint, rows_of
from tests.disttrain.ranks import ALONE, die_in

Change = Callable[[dict[str, Any]], None]


@pytest.fixture
def checkpoint(texts: Path, tmp_path: Path) -> Callable[[str], Path]:
    def make(kind: str) -> Path:
        return Path(make_checkpoint(kind, tmp_path / kind, [text for text, _ in rows_of(texts / "train.tsv")]))

    return make


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def config_of(bert_config: TrainConfig, folder: Path, **changes: Any) -> TrainConfig:
    return dataclasses.replace(bert_config, architecture=None, checkpoint=str(folder), max_length=48, **changes)


def built(config: TrainConfig, work_dir: Path) -> tuple[BuiltModel, tuple[str, ...]]:
    encoded = encode(config, load_splits(config.resolved(), "text"), ALONE, work_dir)
    return build(config, encoded), encoded.notices


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_other_outputs_are_turned_off(
    kind: str, checkpoint: Callable[[str], Path], bert_config: TrainConfig, run_ranks: Callable[..., Any]
) -> None:
    folder = checkpoint(kind)
    change_config(folder, output_attentions=True, output_hidden_states=True, return_dict=False, use_cache=True)
    finished = run_ranks(config_of(bert_config, folder, max_steps=2), 1)
    assert finished.exit_codes == (0,)
    assert (finished.output_dir / "model" / "model.safetensors").exists()


def test_a_padding_index_takes_positions(
    checkpoint: Callable[[str], Path], bert_config: TrainConfig, tmp_path: Path
) -> None:
    """RoBERTa counts positions from the padding index + 1: of 64 positions, 58 are left."""
    folder = checkpoint("roberta")
    change_config(folder, pad_token_id=5)
    config = config_of(bert_config, folder)
    built(dataclasses.replace(config, max_length=58), tmp_path)
    with pytest.raises(UserError, match=r"^max_length 59 is more than the model's 58 positions$"):
        built(dataclasses.replace(config, max_length=59), tmp_path)


def test_a_tokenizer_with_more_tokens_is_refused(
    checkpoint: Callable[[str], Path], bert_config: TrainConfig, tmp_path: Path
) -> None:
    folder, other = checkpoint("bert"), checkpoint("electra")
    change_config(other, vocab_size=200)
    words = " ".join(f"word{number}" for number in range(300))
    larger = PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer([words, "a film"], 600), pad_token="[PAD]", unk_token="[UNK]"
    )
    larger.save_pretrained(folder)
    (tmp_path / "train.csv").write_text(f"text,label\n{words},0\na film,1\n")
    config = config_of(bert_config, folder, dataset=str(tmp_path / "train.csv"), max_eval_examples=0)
    with pytest.raises(UserError) as caught:
        built(config, tmp_path)
    assert "but the model has embeddings for tokens 0 to 199 (the tokenizer and the weights" in str(caught.value)


def test_a_checkpoint_without_a_tokenizer_is_refused(
    checkpoint: Callable[[str], Path], bert_config: TrainConfig, tmp_path: Path
) -> None:
    folder = checkpoint("bert")
    for path in folder.glob("*token*"):
        path.unlink()
    with pytest.raises(UserError) as caught:
        built(config_of(bert_config, folder), tmp_path)
    assert str(caught.value).startswith(f"checkpoint '{folder}' ")
    assert "tokenizer" in str(caught.value)


@pytest.mark.parametrize(("unknown", "expected"), [(0, None), (10, "notice"), (40, "error")])
def test_unknown_tokens_are_counted(
    unknown: int, expected: str | None, checkpoint: Callable[[str], Path], bert_config: TrainConfig, tmp_path: Path
) -> None:
    folder = checkpoint("bert")
    rows = ["a film is dull,0"] * (50 - unknown) + ["ταινία είναι βαρετή πολύ,1"] * unknown + ["a film,1"]
    (tmp_path / "train.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    config = config_of(bert_config, folder, dataset=str(tmp_path / "train.csv"), max_eval_examples=0)
    if expected == "error":
        with pytest.raises(UserError, match=r"^checkpoint: the tokenizer does not know \d+ % of the tokens \(is it a "):
            built(config, tmp_path)
        return
    _, notices = built(config, tmp_path)
    found = [notice for notice in notices if notice.startswith("the tokenizer does not know ")]
    assert len(found) == (expected == "notice")


@pytest.mark.parametrize(
    ("names", "notice"),
    [
        (["LABEL_0", "LABEL_1"], None),
        (["0", "1"], None),
        (["1", "0"], "has its classes in the order 1, 0: its head was reordered to that of the data, 0, 1"),
        (["cat", "dog"], "has a trained head for the classes cat, dog: it starts as the head of 0, 1"),
    ],
)
def test_a_head_for_other_classes_has_a_notice(
    names: list[str],
    notice: str | None,
    checkpoint: Callable[[str], Path],
    bert_config: TrainConfig,
    tmp_path: Path,
) -> None:
    folder = checkpoint("bert")
    change_config(folder, id2label=dict(enumerate(names)), label2id={name: number for number, name in enumerate(names)})
    model, _ = built(config_of(bert_config, folder), tmp_path)
    expected = () if notice is None else (f"{folder} {notice}",)
    assert model.notices == expected


def test_code_in_a_checkpoint_is_not_run(
    checkpoint: Callable[[str], Path], bert_config: TrainConfig, tmp_path: Path
) -> None:
    folder = checkpoint("bert")
    (folder / "own.py").write_text(f"open({str(tmp_path / 'was_run')!r}, 'w')\n")
    change_config(
        folder,
        model_type="own",
        auto_map={"AutoConfig": "own.Config", "AutoModelForSequenceClassification": "own.Model"},
    )
    with pytest.raises(UserError) as caught:
        built(config_of(bert_config, folder), tmp_path)
    assert str(caught.value) == (
        f"checkpoint '{folder}' cannot be loaded: it needs code of its own, which is not run"
        " (give a checkpoint of a model that transformers has)"
    )
    assert not (tmp_path / "was_run").exists()


@pytest.mark.process
@pytest.mark.parametrize("kind", ["gpt2", "llama", "roberta"])
def test_the_models_padding_token_is_used(
    kind: str, checkpoint: Callable[[str], Path], bert_config: TrainConfig, texts: Path, run_ranks: Callable[..., Any]
) -> None:
    """These find the end of a text, or its positions, by the padding token of their config, not of the tokenizer."""
    folder = checkpoint(kind)
    change_config(folder, pad_token_id=4)
    finished = run_ranks(config_of(bert_config, folder, max_steps=2), 1)
    expected = loss_of_saved(finished.output_dir / "model", rows_of(texts / "dev.tsv"))
    assert finished.summary["eval_loss"] == pytest.approx(expected, rel=1e-4)


def test_a_tokenizer_without_padding_is_refused(
    checkpoint: Callable[[str], Path], bert_config: TrainConfig, tmp_path: Path
) -> None:
    folder = checkpoint("gpt2")
    change_config(folder, pad_token_id=None, eos_token_id=None)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in settings.items() if name != "pad_token"}))
    with pytest.raises(UserError, match=r"^checkpoint: the tokenizer has neither a padding token nor an end-of-text "):
        built(config_of(bert_config, folder), tmp_path)


@pytest.mark.process
@pytest.mark.parametrize("seed", range(3))
def test_layers_that_are_dropped_at_random(
    seed: int, checkpoint: Callable[[str], Path], bert_config: TrainConfig, run_ranks: Callable[..., Any]
) -> None:
    folder = checkpoint("bart")
    change_config(folder, encoder_layerdrop=0.5, decoder_layerdrop=0.5)
    assert run_ranks(config_of(bert_config, folder, max_steps=6, seed=seed), 2).exit_codes == (0, 0)


@pytest.mark.process
def test_a_run_does_not_resume_on_other_weights(
    checkpoint: Callable[[str], Path], bert_config: TrainConfig, run_ranks: Callable[..., Any]
) -> None:
    """The rows of tokens that do not occur are not in the checkpoint: they come from the pretrained weights."""
    folder = checkpoint("bert")
    config = config_of(bert_config, folder, max_steps=10, checkpoint_every=3)
    killed = run_ranks(config, 1, target=functools.partial(die_in, 8, 0))
    weights = load_file(folder / "model.safetensors")
    name = "bert.embeddings.word_embeddings.weight"
    save_file({**weights, name: weights[name] + 1}, folder / "model.safetensors", metadata={"format": "pt"})
    assert run_ranks(config, 1, killed.output_dir).exit_codes == (1,)
    failure = json.loads((killed.output_dir / "failure-rank00000.json").read_text())
    assert "pretrained weights differ from those with which it was saved" in failure["message"]
