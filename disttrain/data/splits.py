"""Chooses the splits, columns and classes of a dataset that a run uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from disttrain.config.recipe import Purpose, stream_seed
from disttrain.config.train_config import TrainConfig
from disttrain.data.array_cache import cache_notices
from disttrain.data.files.columns import BYTES, IMAGES, NUMBERS, TEXT, ImageValues, Table
from disttrain.data.files.folders import EVAL_SPLITS
from disttrain.data.labels import Labels, read_labels
from disttrain.data.sources import InputKind, Source, open_source
from disttrain.errors import UserError

LABEL_COLUMNS = ("label", "labels")
TEXT_COLUMNS = ("text", "sentence", "content", "review")
_MOST_COLUMNS = 10


@dataclass(frozen=True)
class Split:
    """The examples of one split."""

    rows: Table  # the input columns only, images not yet decoded
    labels: NDArray[np.int64]  # indices into the label names
    name: str  # the dataset's name of the split
    numbers: NDArray[np.int64]  # the row numbers in that split, from 0

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: NDArray[np.int64]) -> Split:
        return Split(self.rows.select(indices), self.labels[indices], self.name, self.numbers[indices])


@dataclass(frozen=True)
class Splits:
    """The examples that a run uses for training and evaluation."""

    train: Split
    eval: Split | None  # None: the config disables evaluation
    input_column: str
    label_names: tuple[str, ...]
    notices: tuple[str, ...]
    pair_column: str | None = None  # the column of the second texts, if an example has two


@dataclass(frozen=True)
class _Columns:
    """The columns that a run uses."""

    kind: InputKind
    input: str
    pair: str | None
    label: str

    def by_field(self) -> dict[str, str]:
        """The columns by the config field that names each of them."""
        columns = {f"{self.kind}_column": self.input, "text_pair_column": self.pair, "label_column": self.label}
        return {field: column for field, column in columns.items() if column is not None}


def load_splits(config: TrainConfig, kind: InputKind) -> Splits:
    """The training and evaluation examples of a run, the same on every rank.

    Args:
        config: A resolved config.
        kind: The kind of the inputs.

    Raises:
        UserError: The dataset, a split, a column or a label is missing or invalid.
    """
    assert config.dataset is not None
    wanted = [config.train_split, *filter(None, [config.eval_split])]
    source = open_source(config.dataset, config.dataset_config, kind, wanted, config.dataset_revision)
    train_name, eval_names = choose_splits(tuple(source.splits), config)
    columns = _choose_columns(source.splits[train_name], config, kind)
    train, labels = _read_split(source, train_name, columns, None)
    notices = [*cache_notices(), *source.notices, *labels.notices]
    if len(labels.names) < 2:
        raise UserError(
            f"column {columns.label!r} of split {train_name!r} has only one class, {labels.names[0]!r}",
            where=config.dataset,
        )
    held_out: Split | None = None
    if config.max_eval_examples != 0:
        held_out, eval_notices = _first_with_labels(source, eval_names, columns, labels.names, config)
        notices += eval_notices
        if held_out is None:
            train, held_out = _hold_out(train, train_name, config.split_seed)
            notices.append(
                f"{config.dataset} has no evaluation split: held out {len(held_out)} examples of {train_name!r}"
            )
    return Splits(
        train=_subset(train, config.max_train_examples, config.split_seed, "train subset"),
        eval=held_out and _subset(held_out, config.max_eval_examples, config.split_seed, "eval subset"),
        input_column=columns.input,
        label_names=labels.names,
        notices=tuple(notices),
        pair_column=columns.pair,
    )


def _first_with_labels(
    source: Source, names: Sequence[str], columns: _Columns, known: tuple[str, ...], config: TrainConfig
) -> tuple[Split | None, list[str]]:
    """The first of some splits that has labels, and notices. The labels of a test split are often withheld."""
    notices: list[str] = []
    for name in names:
        if config.eval_split is None and columns.label not in source.splits[name]:
            notices.append(f"split {name!r} has no column {columns.label!r}: it is not used")
            continue
        split, labels = _read_split(source, name, columns, known)
        if len(split):
            return split, [*notices, *labels.notices]
        message = f"split {name!r} has no labels in column {columns.label!r}"
        if config.eval_split is not None:
            raise UserError(message, where="eval_split", hint="name another split, or drop eval_split")
        notices.append(f"{message}: it is not used")
    return None, notices


def choose_splits(names: Sequence[str], config: TrainConfig) -> tuple[str, tuple[str, ...]]:
    """The name of the training split, and those of the splits that may be evaluated, the best first.

    Raises:
        UserError: The dataset does not have a split that the config names.

    Example:
        >>> choose_splits(["train", "test", "dev"], TrainConfig(model="bert"))
        ('train', ('dev', 'test'))
    """
    train = config.train_split
    if train == "train" and train not in names and len(names) == 1:
        train = names[0]
    for field, name in (("train_split", train), ("eval_split", config.eval_split)):
        if name is not None and name not in names:
            message = f"split {name!r} is not in {config.dataset}"
            raise UserError(message, where=field, hint=f"it has: {_list_of(names)}")
    if config.eval_split is not None:
        return train, (config.eval_split,)
    return train, tuple(name for name in EVAL_SPLITS if name in names and name != train)


def _choose_columns(table: Table, config: TrainConfig, kind: InputKind) -> _Columns:
    label = _label_column(table, config)
    pair = _pair_column(table, config, kind, label)
    return _Columns(kind, _input_column(table, config, kind, label, pair), pair, label)


def _pair_column(table: Table, config: TrainConfig, kind: InputKind, label_column: str) -> str | None:
    field, name = "text_pair_column", config.text_pair_column
    if name is None:
        return None
    if kind != "text":
        raise UserError(f"{name!r} is set, but model {config.model!r} takes {kind}s", where=field, hint="drop it")
    return _named_column(table, field, name, text_column=config.text_column, label_column=label_column)


def _label_column(table: Table, config: TrainConfig) -> str:
    field = "label_column"
    if config.label_column is not None:
        return _named_column(table, field, config.label_column)
    named = [name for name in LABEL_COLUMNS if name in table]
    candidates = named[:1] or [name for name, column in table.columns.items() if column.class_names is not None]
    if len(candidates) == 1:
        return candidates[0]
    raise _no_only_column(table, field, "the dataset has no column for it", candidates)


def _input_column(
    table: Table, config: TrainConfig, kind: InputKind, label_column: str, pair_column: str | None
) -> str:
    field = f"{kind}_column"
    wanted: str | None = getattr(config, field)
    if wanted is not None:
        _named_column(table, field, wanted, label_column=label_column)
        holds = table[wanted].kind
        accepted = (TEXT, NUMBERS) if kind == "text" else (TEXT, IMAGES, BYTES)  # a text may be the path of an image
        if holds not in accepted:
            expected = "text" if kind == "text" else "images or their paths"
            raise UserError(f"column {wanted!r} contains {holds}, not {expected}", where=field)
        return wanted
    others = (label_column, pair_column)
    kinds = (TEXT,) if kind == "text" else (IMAGES, BYTES)
    candidates = [name for name, column in table.columns.items() if name not in others and column.kind in kinds]
    if kind == "text":
        texts = [name for name in TEXT_COLUMNS if name in table and name not in others]
        candidates = [name for name in texts if table[name].kind in (TEXT, NUMBERS)][:1] or candidates
    if len(candidates) == 1:
        return candidates[0]
    holds_what = ", ".join(f"{name!r} holds {table[name].kind}" for name in list(table.columns)[:_MOST_COLUMNS])
    raise _no_only_column(table, field, f"no column of the dataset holds {kinds[0]}: {holds_what}", candidates)


def _named_column(table: Table, field: str, name: str, **others: str | None) -> str:
    """The column that a config field names; `others` are the columns of other fields, by field."""
    for other, column in others.items():
        if name == column:
            raise UserError(f"{name!r} is also the {other}", where=field, hint="name another column")
    if name not in table:
        have = _list_of(list(table.columns))
        raise UserError(f"column {name!r} is not in the dataset", where=field, hint=f"it has: {have}")
    return name


def _no_only_column(table: Table, field: str, problem: str, candidates: Sequence[str]) -> UserError:
    """The error for a column that the config must name, because several are possible, or none."""
    if candidates:
        problem = f"the dataset has {_list_of(candidates)}"
    return UserError(problem, where=field, hint=f"set {field} to one of: {_list_of(list(table.columns))}")


def _list_of(names: Sequence[str]) -> str:
    listed = ", ".join(map(repr, names[:_MOST_COLUMNS]))
    if len(names) > _MOST_COLUMNS:
        listed += ", ..."
    return listed


def _read_split(source: Source, split: str, columns: _Columns, known: tuple[str, ...] | None) -> tuple[Split, Labels]:
    """One split and its labels; `known` are the class names of the training split, which other splits must use too."""
    table = source.splits[split]
    for field, column in columns.by_field().items():
        if column not in table:
            have = _list_of(list(table.columns))
            raise UserError(f"column {column!r} is not in split {split!r}", where=field, hint=f"it has: {have}")
    if len(table) == 0:
        raise UserError(f"split {split!r} of the dataset is empty")
    labels = read_labels(table[columns.label], columns.label, split, known)
    if known is None and not len(labels.rows):
        raise UserError(f"no row of split {split!r} has a label in column {columns.label!r}", where="label_column")
    rows = table.only([column for field, column in columns.by_field().items() if field != "label_column"])
    if columns.kind == "image":
        rows = Table({columns.input: ImageValues(rows[columns.input], rows.folder)})
    if len(labels.rows) < len(table):
        rows = rows.select(labels.rows)
    return Split(rows, labels.indices, split, labels.rows), labels


def _hold_out(split: Split, name: str, seed: int) -> tuple[Split, Split]:
    """Divides a split at random, by split_seed, into nine tenths and one tenth."""
    if len(split) < 2:
        raise UserError(
            f"split {name!r} has {len(split)} example, which is too few to hold one out for evaluation",
            hint="set max_eval_examples: 0 to train without evaluation",
        )
    order = np.random.default_rng(stream_seed(seed, "held-out")).permutation(len(split))
    size = max(1, len(split) // 10)
    return split.select(np.sort(order[size:])), split.select(np.sort(order[:size]))


def _subset(split: Split, max_examples: int | None, seed: int, purpose: Purpose) -> Split:
    if max_examples is None or max_examples >= len(split):
        return split
    return split.select(np.random.default_rng(stream_seed(seed, purpose)).permutation(len(split))[:max_examples])
