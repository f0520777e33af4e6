"""The BERT family: encodes texts as token ids, and classifies them with a transformers model."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.bert.modeling_bert import BertForSequenceClassification, BertLayer

from disttrain.config.train_config import TrainConfig
from disttrain.data.batches import Batch
from disttrain.data.splits import InputKind, Split, Splits
from disttrain.data.texts import TextExamples, Texts, tokenize
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
    checkpoint_error,
    from_architecture,
    from_checkpoint,
    read_config,
    silence_transformers,
)

INPUT: InputKind = "text"
# The vocabulary of a tokenizer made from the training texts, if the architecture sets no other size. It is enough for
# about 10^5 sentences.
DEFAULT_VOCAB_SIZE = 8000
_UNKNOWN = "[UNK]"
_MODEL_INPUTS = ["input_ids", "token_type_ids", "attention_mask"]  # the inputs of BERT
_SPECIAL_TOKENS = ["[PAD]", _UNKNOWN, "[CLS]", "[SEP]", "[MASK]"]  # ids 0 to 4


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
        training_texts = [text for column in texts["train"].columns for text in column]
        tokenizer = _shared_tokenizer(config, training_texts, group, work_dir / "tokenizer" / "tokenizer.json")
        notices.append(f"made a tokenizer of {len(tokenizer)} tokens from {len(training_texts)} training texts")
    else:
        tokenizer = _checkpoint_tokenizer(config.checkpoint)
    tokenized = tokenize(tokenizer.backend_tokenizer, texts, config.max_length, group)
    if cut := sum(split.cut for split in tokenized.values()):
        unit = "texts" if splits.pair_column is None else "pairs of texts"
        notices.append(f"cut {cut} of {sum(map(len, texts.values()))} {unit} to {config.max_length} tokens")
    pad_id = _pad_id(tokenizer)
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


def _pad_id(tokenizer: Any) -> int:
    """The id of the padding token; a tokenizer without one pads with its end-of-text token."""
    ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(token for token in ids if token is not None)


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
    return BuiltModel(classifier, notices, save, changes_made(changes))


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
        hf_config = read_config(AutoConfig, config.checkpoint)
        if hf_config.pad_token_id is None:
            hf_config.pad_token_id = _pad_id(tokenizer)
        built = from_checkpoint(AutoModelForSequenceClassification, config.checkpoint, hf_config, encoded.label_names)
        positions = getattr(hf_config, "max_position_embeddings", config.max_length)
        # RoBERTa reserves two of its positions, and only its tokenizer gives the usable number.
        positions = min(positions, tokenizer.model_max_length)
    if config.max_length > positions:
        raise UserError(f"max_length {config.max_length} is more than the model's {positions} positions")
    return built


def _texts(split: Split, splits: Splits, name: str) -> Texts:
    first = _column(split, splits.input_column, name)
    if splits.pair_column is None:
        return Texts(first)
    return Texts(first, _column(split, splits.pair_column, name))


def _column(split: Split, column: str, name: str) -> list[str]:
    values: list[Any] = split.rows[column][:]
    for row, value in enumerate(values):
        if not isinstance(value, str):
            place = f"row {split.numbers[row]} of {name}"
            raise UserError(f"{place} has no text in column {column!r}, but {value!r}")
    return values


def _checkpoint_tokenizer(checkpoint: str) -> Any:
    """The tokenizer of a checkpoint."""
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise checkpoint_error(checkpoint, error) from error
    if not tokenizer.is_fast:
        raise UserError(f"checkpoint {checkpoint!r} has no tokenizer.json", hint="slow tokenizers are not supported")
    return tokenizer


def _shared_tokenizer(config: TrainConfig, texts: Sequence[str], group: Group, path: Path) -> Any:
    """The tokenizer, made by rank 0 and read by the other ranks."""
    with group.main_first():
        if group.is_main:
            vocab_size = (config.architecture or {}).get("vocab_size", DEFAULT_VOCAB_SIZE)
            if type(vocab_size) is not int or vocab_size < len(_SPECIAL_TOKENS):
                raise UserError(f"architecture.vocab_size is {vocab_size!r}", hint="give an integer of at least 5")
            path.parent.mkdir(parents=True, exist_ok=True)
            train_tokenizer(texts, vocab_size).save(str(path))
    if not path.exists():
        raise UserError(f"{path}, written by rank 0, does not exist", hint="all nodes must see output_dir")
    names = {f"{token.strip('[]').lower()}_token": token for token in _SPECIAL_TOKENS}  # pad_token: [PAD]
    names["unk_token"] = _UNKNOWN
    return PreTrainedTokenizerFast(
        tokenizer_file=str(path), model_max_length=config.max_length, model_input_names=_MODEL_INPUTS, **names
    )


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A lower-case WordPiece tokenizer (Schuster and Nakajima 2012), the same in every process.

    Args:
        texts: The texts from which the vocabulary is made.
        vocab_size: The maximum number of tokens. The vocabulary is larger if the characters alone, at the start of a
            word and within words, need more.
    """
    texts = list(texts)
    tokenizer = _empty_tokenizer(models.WordPiece(unk_token=_UNKNOWN))
    normalise = tokenizer.normalizer.normalize_str
    characters = sorted({char for text in texts for char in normalise(text) if not char.isspace()})
    # The trainer numbers characters within words in the order of a hash map that differs between processes, and breaks
    # ties by these numbers. As special tokens they have a fixed order; they are not special in the final tokenizer.
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=[*_SPECIAL_TOKENS, *(f"##{char}" for char in characters)],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    trained = _empty_tokenizer(models.WordPiece(tokenizer.get_vocab(), unk_token=_UNKNOWN))
    trained.add_special_tokens(_SPECIAL_TOKENS)
    trained.decoder = decoders.WordPiece()
    ids = {token: index for index, token in enumerate(_SPECIAL_TOKENS)}
    trained.post_processor = processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    return trained


def _empty_tokenizer(model: models.WordPiece) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer
