"""The BERT family: texts as token ids, and a transformers model that classifies them."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
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
from disttrain.models.compact_embedding import compact
from disttrain.models.family import BuiltModel, EncodedSplits
from disttrain.models.first_token_layer import attend_from_first, trim
from disttrain.models.pretrained import (
    checkpoint_error,
    from_architecture,
    from_checkpoint,
    read_config,
    silence_transformers,
)

INPUT: InputKind = "text"
# Of a tokenizer made from the training text, where the architecture names none: enough for some 10^5 sentences.
DEFAULT_VOCAB_SIZE = 8000
_UNKNOWN = "[UNK]"
_MODEL_INPUTS = ["input_ids", "token_type_ids", "attention_mask"]  # of BERT
_SPECIAL_TOKENS = ["[PAD]", _UNKNOWN, "[CLS]", "[SEP]", "[MASK]"]  # ids 0 to 4


class TextClassifier(nn.Module):
    """A transformers model that takes a batch."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        # Some models tell two texts apart by the token between them alone, though their tokenizers give types.
        known = "token_type_ids" in inspect.signature(model.forward).parameters
        self.takes_types = known and getattr(model.config, "type_vocab_size", 2) > 1
        self.is_bert = model.config.model_type == "bert"

    def forward(self, batch: Batch) -> Tensor:
        mask = batch.get("attention_mask")
        if mask is not None and self.is_bert:
            # As attention takes it, (texts, 1, 1, tokens). Of a mask of two dimensions transformers asks whether it
            # masks anything, which makes the host wait for the GPU in every step.
            mask = mask[:, None, None, :].bool()
        inputs = {"input_ids": batch["input_ids"], "attention_mask": mask}
        if self.takes_types and "token_type_ids" in batch:
            inputs["token_type_ids"] = batch["token_type_ids"]
        logits: Tensor = self.model(**inputs).logits
        return logits


class FirstTokenLayer(BertLayer):  # type: ignore[misc]  # transformers is Any to mypy
    """A BERT layer that gives its first token alone."""

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
    """What turned the texts into tokens."""

    tokenizer: Any
    used: NDArray[np.int64] | None = None  # ids that occur, in order; None: all rows are trained


def encode(config: TrainConfig, splits: Splits, group: Group, work_dir: Path) -> EncodedSplits:
    """Both splits as token ids, by the checkpoint's tokenizer or by one made from the training text."""
    silence_transformers()
    notices: list[str] = []
    texts = {"train": _texts(splits.train, splits, "train")}
    if splits.eval is not None:
        texts["eval"] = _texts(splits.eval, splits, "eval")
    if config.checkpoint is None:
        of_train = [text for column in texts["train"].columns for text in column]
        tokenizer = _shared_tokenizer(config, of_train, group, work_dir / "tokenizer" / "tokenizer.json")
        notices.append(f"made a tokenizer of {len(tokenizer)} tokens from {len(of_train)} training texts")
    else:
        tokenizer = _checkpoint_tokenizer(config.checkpoint)
    tokenised = tokenize(tokenizer.backend_tokenizer, texts, config.max_length, group)
    if cut := sum(split.cut for split in tokenised.values()):
        what = "texts" if splits.pair_column is None else "pairs of texts"
        notices.append(f"cut {cut} of {sum(map(len, texts.values()))} {what} to {config.max_length} tokens")
    pad_id = _pad_id(tokenizer)
    used = None
    if config.compact_vocab and config.checkpoint is not None:
        used = np.unique(np.concatenate([*(split.occurring for split in tokenised.values()), [pad_id]]))
    typed = "token_type_ids" in tokenizer.model_input_names

    def examples(name: str, labels: NDArray[np.int64]) -> TextExamples:
        made = tokenised[name]
        first_lengths = made.first_lengths if typed else None
        return TextExamples(made.tokens, made.offsets, labels, pad_id, first_lengths, config.compile)

    train = examples("train", splits.train.labels)
    held_out = examples("eval", splits.eval.labels) if splits.eval is not None else None
    return EncodedSplits(train, held_out, splits.label_names, tuple(notices), TextReader(tokenizer, used))


def _pad_id(tokenizer: Any) -> int:
    """The token that texts are padded with; some models have none of their own, and end a text where it ends."""
    ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(token for token in ids if token is not None)


def build(config: TrainConfig, encoded: EncodedSplits) -> BuiltModel:
    """The classifier, from the checkpoint or from the architecture."""
    silence_transformers()
    if config.checkpoint is not None:
        hf_config = read_config(AutoConfig, config.checkpoint)
        if hf_config.pad_token_id is None:
            hf_config.pad_token_id = _pad_id(encoded.reader.tokenizer)
        built = from_checkpoint(AutoModelForSequenceClassification, config.checkpoint, hf_config, encoded.label_names)
    else:
        architecture = {name: value for name, value in (config.architecture or {}).items() if name != "vocab_size"}
        built = from_architecture(
            BertConfig,
            BertForSequenceClassification,
            architecture,
            encoded.label_names,
            vocab_size=len(encoded.reader.tokenizer),
            pad_token_id=0,
        )
        hf_config = built.model.config
    positions = getattr(hf_config, "max_position_embeddings", config.max_length)
    if config.checkpoint is not None:
        # RoBERTa keeps two of its positions to itself, which only its tokenizer tells.
        positions = min(positions, encoded.reader.tokenizer.model_max_length)
    if config.max_length > positions:
        raise UserError(f"max_length {config.max_length} is more than the model's {positions} positions")
    model: Any = built.model
    reader: TextReader = encoded.reader
    notices = list(built.notices)
    compacted = None if reader.used is None else compact(model, reader.used)
    if reader.used is not None and compacted is None:
        notices.append("compact_vocab: all rows are trained, of an embedding that is of another kind or has other uses")
    # The heads of other models may read more than the first token, and a decoder's first token sees itself alone.
    if config.trim_last_layer and type(model) is BertForSequenceClassification and not hf_config.is_decoder:
        notices += trim(model, FirstTokenLayer)

    def save(folder: Path) -> None:
        state = model.state_dict()
        if compacted is not None:
            name, embedding = compacted
            state = {**state, name: embedding.whole_weight()}
        model.save_pretrained(folder, state_dict=state)
        reader.tokenizer.save_pretrained(folder)

    return BuiltModel(TextClassifier(model), tuple(notices), save)


def _texts(split: Split, splits: Splits, name: str) -> Texts:
    first = _column(split, splits.input_column, name)
    return Texts(first, None if splits.pair_column is None else _column(split, splits.pair_column, name))


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
        raise UserError(f"checkpoint {checkpoint!r} has no tokenizer.json", hint="slow tokenizers are not known here")
    return tokenizer


def _shared_tokenizer(config: TrainConfig, texts: Sequence[str], group: Group, path: Path) -> Any:
    """The tokenizer that rank 0 makes and the others read."""
    with group.main_first():
        if group.is_main:
            vocab_size = (config.architecture or {}).get("vocab_size", DEFAULT_VOCAB_SIZE)
            if type(vocab_size) is not int or vocab_size < len(_SPECIAL_TOKENS):
                raise UserError(f"architecture.vocab_size is {vocab_size!r}", hint="give a whole number from 5")
            path.parent.mkdir(parents=True, exist_ok=True)
            train_tokenizer(texts, vocab_size).save(str(path))
    if not path.exists():
        raise UserError(f"{path} is not there, which rank 0 wrote", hint="all nodes must see output_dir")
    names = {f"{token.strip('[]').lower()}_token": token for token in _SPECIAL_TOKENS}  # pad_token: [PAD]
    names["unk_token"] = _UNKNOWN
    return PreTrainedTokenizerFast(
        tokenizer_file=str(path), model_max_length=config.max_length, model_input_names=_MODEL_INPUTS, **names
    )


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A WordPiece tokenizer of these texts (Schuster and Nakajima 2012), lower case, the same in every process.

    Args:
        texts: What it is made from.
        vocab_size: Tokens at most, but never fewer than the characters that occur, at a word's start and within it.
    """
    texts = list(texts)
    tokenizer = _empty_tokenizer(models.WordPiece(unk_token=_UNKNOWN))
    normalise = tokenizer.normalizer.normalize_str
    characters = sorted({char for text in texts for char in normalise(text) if not char.isspace()})
    # The trainer numbers characters within words in the order of a hash map that differs between processes, and breaks
    # ties by these numbers. Given as special tokens they come in our order; the final tokenizer keeps none of them so.
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
