"""The tokenizers of text models: that of a checkpoint, or one made from the training texts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from disttrain.config.train_config import TrainConfig
from disttrain.data.texts import TokenizedSplit
from disttrain.distributed.group import Group
from disttrain.errors import UserError
from disttrain.models.pretrained import checkpoint_error

# The vocabulary of a tokenizer made from the training texts, if the architecture sets no other size. It is enough for
# about 10^5 sentences.
DEFAULT_VOCAB_SIZE = 8000
_UNKNOWN = "[UNK]"
# The shares of unknown tokens from which there is a notice, and an error.
_FEW_UNKNOWN, _MOST_UNKNOWN = 0.05, 0.5
_MODEL_INPUTS = ["input_ids", "token_type_ids", "attention_mask"]  # the inputs of BERT
_SPECIAL_TOKENS = ["[PAD]", _UNKNOWN, "[CLS]", "[SEP]", "[MASK]"]  # ids 0 to 4


def pad_id_of(tokenizer: Any, config: Any = None) -> int:
    """The id of the padding token.

    It is that of the model, if its config has one: some models find the end of a text, or its positions, by this token.
    A tokenizer without a padding token pads with its end-of-text token.

    Raises:
        UserError: There is neither.
    """
    ids = (getattr(config, "pad_token_id", None), tokenizer.pad_token_id, tokenizer.eos_token_id)
    for token in ids:
        if isinstance(token, int) and token >= 0:
            return token
    hint = "set pad_token in its tokenizer_config.json"
    raise UserError("the tokenizer has neither a padding token nor an end-of-text token", where="checkpoint", hint=hint)


def checkpoint_tokenizer(checkpoint: str, **options: Any) -> Any:
    """The tokenizer of a checkpoint; the options are those of `hub_options`."""
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint, **{"trust_remote_code": False, **options})
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise checkpoint_error(checkpoint, error) from error
    if not tokenizer.is_fast:
        raise UserError(f"checkpoint {checkpoint!r} has no tokenizer.json", hint="slow tokenizers are not supported")
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        # Without files, transformers makes a tokenizer to which every word is unknown.
        message = f"checkpoint {checkpoint!r} has no tokenizer: only {len(tokenizer)} special tokens are known"
        raise UserError(message, hint="copy the tokenizer's files, such as tokenizer.json, next to the weights")
    return tokenizer


def unknown_notices(tokenizer: Any, tokenized: Mapping[str, TokenizedSplit]) -> list[str]:
    """A notice if the tokenizer does not know some of the words.

    Raises:
        UserError: It knows less than half of them.
    """
    unknown = tokenizer.unk_token_id
    if unknown is None:
        return []
    special = [token for token in tokenizer.all_special_ids if token != unknown]
    total = sum(int(split.counts[~np.isin(split.occurring, special)].sum()) for split in tokenized.values())
    count = sum(int(split.counts[split.occurring == unknown].sum()) for split in tokenized.values())
    share = count / max(1, total)
    text = f"the tokenizer does not know {100 * share:.0f} % of the tokens"
    if share > _MOST_UNKNOWN:
        raise UserError(text, where="checkpoint", hint="is it a tokenizer of the language of the texts?")
    return [text] if share > _FEW_UNKNOWN else []


def shared_tokenizer(config: TrainConfig, texts: Iterable[str], group: Group, path: Path) -> Any:
    """The tokenizer of some texts, made by rank 0 and read by the other ranks."""
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
        texts: The texts from which the vocabulary is made. They are read twice, so that they need not be in memory.
        vocab_size: The maximum number of tokens. The vocabulary is larger if the characters alone, at the start of a
            word and within words, need more.
    """
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
