"""The BERT family: encodes texts as token ids, and classifies them with a transformers model."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, BertConfig
from transformers.models.bert.modeling_bert import BertForSequenceClassification, BertLayer

from disttrain.config.train_config import TrainConfig
from disttrain.data.batches import Batch
from disttrain.data.sources import InputKind
from disttrain.data.splits import Split, Splits
from disttrain.data.texts import SplitTexts, TextExamples, Texts, tokenize
from disttrain.distributed.group import Group
from disttrain.errors import UserError
from disttrain.models.compact_embedding import compact, full_state
from disttrain.models.cpu_attention import use_cpu_attention
from disttrain.models.cpu_dropout import use_cpu_dropout
from disttrain.models.family import BuiltModel, EncodedSplits
from disttrain.models.first_token_layer import attend_from_first, trim
from disttrain.models.model_change import ModelChange, change_notices, changes_made
from disttrain.models.padding_mask import ShapeMask, as_given, bidirectional, padded_batches, proven_shape
from disttrain.models.pretrained import (
    from_architecture,
    from_checkpoint,
    hub_options,
    read_config,
    silence_transformers,
)
from disttrain.models.tokenizers import checkpoint_tokenizer, pad_id_of, shared_tokenizer, unknown_notices

INPUT: InputKind = "text"


class TextClassifier(nn.Module):
    """A transformers model whose input is a batch.

    Args:
        model: The model.
        shape_mask: The shape in which it gets the mask; by default as BERT does if it is a BERT encoder.
    """

    def __init__(self, model: Any, shape_mask: ShapeMask | None = None) -> None:
        super().__init__()
        self.model = model
        # Some models separate two texts only by the token between them, although their tokenizers give types.
        accepts_types = "token_type_ids" in inspect.signature(model.forward).parameters
        self.takes_types = accepts_types and getattr(model.config, "type_vocab_size", 2) > 1
        if shape_mask is None:
            shape_mask = bidirectional if _is_bert_encoder(model) else as_given
        self.shape_mask = shape_mask

    def forward(self, batch: Batch) -> Tensor:
        inputs = self.inputs(batch)
        if inputs["attention_mask"] is not None:
            inputs["attention_mask"] = self.shape_mask(inputs["attention_mask"])
        logits: Tensor = self.model(**inputs).logits
        return logits

    def inputs(self, batch: Batch) -> dict[str, Tensor | None]:
        """The inputs of the model, with the mask as it is in the batch."""
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch.get("attention_mask")}
        if self.takes_types and "token_type_ids" in batch:
            inputs["token_type_ids"] = batch["token_type_ids"]
        return inputs


def _is_bert_encoder(model: Any) -> bool:
    return model.config.model_type == "bert" and not model.config.is_decoder


class FirstTokenLayer(BertLayer):  # type: ignore[misc]  # transformers is Any to mypy
    """A BERT layer that returns its first token only."""

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
        first, attention = hidden_states[:, :1], self.attention.self
        attended = attend_from_first(
            attention.query(first),
            attention.key(hidden_states),
            attention.value(hidden_states),
            attention_mask,
            heads=attention.num_attention_heads,
            dropout=attention.dropout.p if self.training else 0.0,
            scale=attention.scaling,
        )
        output: Tensor = self.feed_forward_chunk(self.attention.output(attended, first))
        return output


@dataclasses.dataclass(frozen=True)
class TextReader:
    """The tokenizer of a run, and the tokens that it uses."""

    tokenizer: Any
    used: NDArray[np.int64] | None = None  # the ids that occur, sorted; None: all rows are trained


def encode(config: TrainConfig, splits: Splits, group: Group, work_dir: Path) -> EncodedSplits:
    """Both splits as token ids, by the checkpoint's tokenizer or by one made from the training texts."""
    silence_transformers()
    notices: list[str] = []
    texts = {"train": _texts(splits.train, splits, "train")}
    if splits.eval is not None:
        texts["eval"] = _texts(splits.eval, splits, "eval")
    if config.checkpoint is None:
        tokenizer = shared_tokenizer(config, texts["train"], group, work_dir / "tokenizer" / "tokenizer.json")
        number = sum(map(len, texts["train"].columns))
        notices.append(f"made a tokenizer of {len(tokenizer)} tokens from {number} training texts")
    else:
        tokenizer = checkpoint_tokenizer(config.checkpoint, **hub_options(config))
    tokenized = tokenize(tokenizer.backend_tokenizer, texts, config.max_length, group)
    notices += unknown_notices(tokenizer, tokenized)
    if cut := sum(split.cut for split in tokenized.values()):
        unit = "texts" if splits.pair_column is None else "pairs of texts"
        notices.append(f"cut {cut} of {sum(map(len, texts.values()))} {unit} to {config.max_length} tokens")
    pad_id = pad_id_of(tokenizer, None if config.checkpoint is None else _checkpoint_config(config, config.checkpoint))
    used = None
    if config.compact_vocab and config.checkpoint is not None:
        used = np.unique(np.concatenate([*(split.occurring for split in tokenized.values()), [pad_id]]))

    def examples(name: str, split: Split) -> TextExamples:
        ids = tokenized[name]
        first_lengths = None
        if "token_type_ids" in tokenizer.model_input_names:
            first_lengths = ids.first_lengths
        compiled_max_length = config.max_length if config.compile else None
        return TextExamples(ids.tokens, ids.offsets, split.labels, pad_id, first_lengths, compiled_max_length)

    train = examples("train", splits.train)
    held_out = None
    if splits.eval is not None:
        held_out = examples("eval", splits.eval)
    return EncodedSplits(train, held_out, splits.label_names, tuple(notices), TextReader(tokenizer, used))


def build(config: TrainConfig, encoded: EncodedSplits) -> BuiltModel:
    """The classifier, from the checkpoint or from the architecture."""
    silence_transformers()
    reader: TextReader = encoded.reader
    built = _transformers_model(config, encoded)
    model: Any = built.model
    changes: list[ModelChange] = []
    if reader.used is not None:
        changes.append(compact(model, reader.used))
    # The heads of other models may read more than the first token, and a decoder's first token attends to itself only.
    if config.trim_last_layer and type(model) is BertForSequenceClassification and not model.config.is_decoder:
        changes.append(trim(model, FirstTokenLayer))

    def save(folder: Path) -> None:
        model.save_pretrained(folder, state_dict=full_state(model))
        reader.tokenizer.save_pretrained(folder)

    notices = (*built.notices, *change_notices(changes))
    classifier = TextClassifier(model)
    on_gpu = config.device != "cpu" and torch.cuda.is_available()
    if not on_gpu and not config.compile:
        use_cpu_dropout(model)
        if _is_bert_encoder(model):
            use_cpu_attention(model)
    # Only a GPU makes the host wait for a mask, and the proof takes time.
    if on_gpu and not _is_bert_encoder(model):
        classifier.shape_mask = proven_shape(model, map(classifier.inputs, padded_batches(encoded.train)))
    return BuiltModel(classifier, notices, save, changes_made(changes), _skips_parameters(model))


def _skips_parameters(model: Any) -> bool | None:
    """Whether a step may give some parameters no gradient; None if the first pass shows it."""
    if type(model) is BertForSequenceClassification:
        return False
    drops = (value for name, value in vars(model.config).items() if name.endswith("layerdrop"))
    return True if any(drops) else None


def _transformers_model(config: TrainConfig, encoded: EncodedSplits) -> BuiltModel:
    """The transformers model, before any change to it.

    Raises:
        UserError: The model cannot be made, or max_length is more than it supports.
    """
    tokenizer = encoded.reader.tokenizer
    if config.checkpoint is None:
        architecture = {name: value for name, value in (config.architecture or {}).items() if name != "vocab_size"}
        built = from_architecture(
            BertConfig,
            BertForSequenceClassification,
            architecture,
            encoded.label_names,
            vocab_size=len(tokenizer),
            pad_token_id=0,
        )
        hf_config: Any = built.model.config
        positions = getattr(hf_config, "max_position_embeddings", config.max_length)
    else:
        hf_config = _checkpoint_config(config, config.checkpoint)
        pad_id = pad_id_of(tokenizer, hf_config)
        hf_config.pad_token_id = pad_id
        built = from_checkpoint(
            AutoModelForSequenceClassification,
            config.checkpoint,
            hf_config,
            encoded.label_names,
            **hub_options(config),
        )
        positions = min(_positions(built.model, config.max_length), tokenizer.model_max_length)
        _check_token_ids(built.model, encoded, pad_id)
    if config.max_length > positions:
        raise UserError(f"max_length {config.max_length} is more than the model's {positions} positions")
    return built


def _checkpoint_config(config: TrainConfig, checkpoint: str) -> Any:
    return read_config(AutoConfig, checkpoint, **hub_options(config))


def _positions(model: Any, default: int) -> int:
    """The number of tokens for which a model has positions.

    RoBERTa and its relatives count positions from the padding index + 1: they have fewer than their config says.
    """
    positions: int = getattr(model.config, "max_position_embeddings", default)
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            reserved = 0 if module.padding_idx is None else module.padding_idx + 1
            positions = min(positions, module.num_embeddings - reserved)
    return positions


def _check_token_ids(model: Any, encoded: EncodedSplits, pad_id: int) -> None:
    """Checks that the model has an embedding for every token.

    Raises:
        UserError: It has not: the tokenizer is that of another model.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    splits = [split for split in (encoded.train, encoded.eval) if isinstance(split, TextExamples)]
    largest = max(pad_id, *(int(split.tokens.max(initial=0)) for split in splits))
    if largest >= rows:
        raise UserError(
            f"the tokenizer gives token {largest}, but the model has embeddings for tokens 0 to {rows - 1}",
            hint="the tokenizer and the weights of the checkpoint do not belong together",
        )


def _texts(split: Split, splits: Splits, name: str) -> Texts:
    first = SplitTexts(split, splits.input_column, name)
    if splits.pair_column is None:
        return Texts(first)
    return Texts(first, SplitTexts(split, splits.pair_column, name))
