"""Texts as token ids: tokenised once for all processes, and padded when a batch is made."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import chain
from typing import Any, overload

import numpy as np
import tokenizers
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from disttrain.data.array_cache import Append, Arrays, arrays_in_memory, content_key, mapped_arrays
from disttrain.data.batches import Batch, Indices
from disttrain.data.splits import Split
from disttrain.distributed.group import Group
from disttrain.errors import UserError

# The version of the arrays that this module makes. Increase it with every change of them, so that arrays cached before
# are not found.
VERSION = 2
# The texts that are tokenised in one call, in parallel. Bounds the memory of the encodings, some kB for each text.
_CHUNK = 2000
# The token ids of a split with at least this many characters are cached. For 100,000 characters, about 1000 sentences,
# tokenising takes 20 to 50 ms on two cores, and reading the cache 5 to 10 ms.
_CACHED_FROM = 100_000
# The tokens of a mask that a compiled kernel reads at a time on a GPU.
_VECTOR = 8


class SplitTexts(Sequence[str]):
    """The texts of a column, read when they are used: all of them as Python strings take several times their size.

    Args:
        split: The split.
        column: The column.
        name: The name of the split in messages.
    """

    def __init__(self, split: Split, column: str, name: str) -> None:
        self._split = split
        self._column = column
        self._name = name

    def __len__(self) -> int:
        return len(self._split)

    @overload
    def __getitem__(self, row: int) -> str: ...

    @overload
    def __getitem__(self, row: slice) -> list[str]: ...

    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, int):
            return self[row : row + 1][0]
        values: list[Any] = self._split.rows[self._column][row]
        for index, (number, value) in enumerate(zip(self._split.numbers[row], values, strict=True)):
            if isinstance(value, int | float) and not isinstance(value, bool):
                values[index] = str(value)  # of a column of numbers that the config names
            elif not isinstance(value, str):
                place = f"row {number} of {self._name}"
                raise UserError(f"{place} has no text in column {self._column!r}, but {value!r}")
        return values

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _CHUNK):
            yield from self[start : start + _CHUNK]


@dataclasses.dataclass(frozen=True)
class Texts:
    """The texts of a split, or its pairs of texts."""

    first: Sequence[str]
    second: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.first)

    def __iter__(self) -> Iterator[str]:
        """Every text: the first ones, then the second ones."""
        return chain.from_iterable(self.columns)

    @property
    def columns(self) -> tuple[Sequence[str], ...]:
        if self.second is None:
            return (self.first,)
        return (self.first, self.second)

    def part(self, part: slice) -> list[str] | list[tuple[str, str]]:
        """Input for a tokenizer: texts, or pairs of texts."""
        if self.second is None:
            return list(self.first[part])
        return list(zip(self.first[part], self.second[part], strict=True))


@dataclasses.dataclass(frozen=True)
class TextExamples:
    """Token ids of all texts in one flat array: 4 bytes a token, and no Python object for each text."""

    tokens: NDArray[np.int32]
    offsets: NDArray[np.int64]  # text i is tokens[offsets[i]:offsets[i + 1]]
    labels: NDArray[np.int64]
    pad_id: int
    first_lengths: NDArray[np.int64] | None = None  # for pairs: the number of tokens before the second text
    compiled_max_length: int | None = None  # the largest width, if the model is compiled; else None
    in_memory = True

    @property
    def lengths(self) -> Indices:
        return np.diff(self.offsets)

    @property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        """Everything that a batch is made of."""
        parts = (self.tokens, self.offsets, self.labels, self.first_lengths)
        return tuple(part for part in parts if part is not None)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Sequence[int] | Indices) -> Batch:
        """The texts, padded to the longest one, with a mask if any text is padded; a mask makes attention slower.

        A compiled model always gets a mask, and a width that is a multiple of 8. Otherwise a second graph, without the
        mask or for widths that fill the vectors of a GPU, would be compiled during training (docs/gpu.md).
        """
        chosen = np.asarray(indices)
        starts = self.offsets[chosen]
        lengths = self.offsets[chosen + 1] - starts
        width = max(1, int(lengths.max()))  # without special tokens, an empty text has no tokens
        if self.compiled_max_length is not None:
            width = min(-(-width // _VECTOR) * _VECTOR, self.compiled_max_length)
        is_token = np.arange(width) < lengths[:, None]
        ids = np.full(is_token.shape, self.pad_id, dtype=np.int64)
        for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
            ids[row, :length] = self.tokens[start : start + length]
        batch = {"input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(self.labels[chosen])}
        if self.compiled_max_length is not None or not is_token.all():
            batch["attention_mask"] = torch.from_numpy(is_token.astype(np.int64))
        if self.first_lengths is not None:
            second = (np.arange(width) >= self.first_lengths[chosen, None]) & is_token
            batch["token_type_ids"] = torch.from_numpy(second.astype(np.int64))
        return batch


@dataclasses.dataclass(frozen=True)
class TokenizedSplit:
    """The texts, or pairs of texts, of one split as token ids."""

    tokens: NDArray[np.int32]
    offsets: NDArray[np.int64]  # text i is tokens[offsets[i]:offsets[i + 1]]
    occurring: NDArray[np.int64]  # the token ids that occur, sorted
    counts: NDArray[np.int64]  # how often each of them occurs
    cut: int  # the number of texts that were longer than max_length
    first_lengths: NDArray[np.int64] | None  # for pairs: the number of tokens before the second text


def tokenize(
    tokenizer: Tokenizer, splits: Mapping[str, Texts], max_length: int, group: Group
) -> dict[str, TokenizedSplit]:
    """The token ids of each split; the ids of a large split are read from the cache or written to it.

    Args:
        tokenizer: The tokenizer; this function sets it to cut texts and not to pad them.
        splits: The texts by the name of their split; the same on every rank.
        max_length: The maximum number of tokens of a text or a pair, with special tokens. In a pair the longer text is
            cut first.
        group: The ranks; all of them call this function. The other ranks read what rank 0 has made and cached.

    Raises:
        UserError: max_length leaves no room for a text, or the tokenizer marks the texts of a pair in an unknown way.
    """
    _check_room(tokenizer, splits.values(), max_length)
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    characters = {name: sum(len(text) for column in texts.columns for text in column) for name, texts in splits.items()}
    keys = {name: _key(tokenizer, texts) for name, texts in splits.items() if characters[name] >= _CACHED_FROM}
    with group.main_first() if keys else nullcontext():
        return {name: _tokenize_split(tokenizer, name, texts, keys.get(name), group) for name, texts in splits.items()}


def _tokenize_split(tokenizer: Tokenizer, name: str, texts: Texts, key: str | None, group: Group) -> TokenizedSplit:
    def make(append: Append) -> None:
        parts = group.parts(len(texts), _CHUNK, f"tokenising {{}} of {{}} texts of {name}")
        _append_tokens(tokenizer, texts, parts, append)

    arrays: Arrays = arrays_in_memory(make) if key is None else mapped_arrays(key, make)
    cut = int(arrays["cut"][0])
    return TokenizedSplit(
        arrays["tokens"],
        arrays["offsets"],
        arrays["occurring"],
        arrays["counts"],
        cut,
        arrays.get("first_lengths"),
    )


def _check_room(tokenizer: Tokenizer, splits: Iterable[Texts], max_length: int) -> None:
    special = tokenizer.num_special_tokens_to_add(any(texts.second is not None for texts in splits))
    if max_length < special:  # the tokenizer would then cut nothing
        raise UserError(f"max_length {max_length} is less than the {special} special tokens of an input")


def _append_tokens(tokenizer: Tokenizer, texts: Texts, parts: Iterator[slice], append: Append) -> None:
    lengths = [0]
    counts = np.zeros(0, dtype=np.int64)
    cut = 0
    for part in parts:
        encodings = tokenizer.encode_batch(texts.part(part))
        tokens = np.concatenate([np.array(encoding.ids, dtype=np.int32) for encoding in encodings])
        append("tokens", tokens)
        if texts.second is not None:
            append("first_lengths", np.array([_first_length(encoding.type_ids) for encoding in encodings]))
        lengths += [len(encoding.ids) for encoding in encodings]
        # Counts tokens; np.unique sorts them, which takes seconds for 10^7 tokens.
        more = np.bincount(tokens, minlength=len(counts))
        more[: len(counts)] += counts
        counts = more
        cut += sum(bool(encoding.overflowing) for encoding in encodings)
    append("offsets", np.cumsum(lengths))
    occurring = np.flatnonzero(counts)
    append("occurring", occurring)
    append("counts", counts[occurring])
    append("cut", np.array([cut]))


def _first_length(type_ids: list[int]) -> int:
    """The number of tokens of the first text; the second text follows it, so no type per token is stored."""
    length = type_ids.count(0)
    if any(type_ids[:length]) or sum(type_ids) != len(type_ids) - length:
        problem = "the checkpoint's tokenizer marks the two texts of a pair in a way that is not BERT's"
        raise UserError(problem, where="text_pair_column", hint="use another checkpoint")
    return length


def _key(tokenizer: Tokenizer, texts: Texts) -> str:
    """The key of everything that the token ids depend on; the tokenizer's settings include the maximum length."""

    def content() -> Iterator[bytes]:
        yield f"texts {VERSION} {tokenizers.__version__} {tokenizer.to_str()}".encode()
        for column in texts.columns:
            for start in range(0, len(column), _CHUNK):
                chunk = column[start : start + _CHUNK]
                yield np.array([len(text) for text in chunk]).tobytes()
                yield "".join(chunk).encode("utf-8", "surrogatepass")
            yield b"end of column"

    return content_key(content())
