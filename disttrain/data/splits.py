"""Chooses the splits, columns and classes of a dataset that a run uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, Value
from numpy.typing import NDArray

from disttrain.config.train_config import TrainConfig
from disttrain.data.sources import open_source
from disttrain.errors import UserError

InputKind = Literal["text", "image"]

EVAL_SPLITS = ("validation", "valid", "val", "dev", "eval", "test")
LABEL_COLUMNS = ("label", "labels")
TEXT_COLUMNS = ("text", "sentence", "content", "review")
# Part of the seed of each random draw in this module, so that the draws differ.
_HOLD_OUT, _TRAIN_SUBSET, _EVAL_SUBSET = 1, 2, 3


@dataclass(frozen=True)
class Split:
    """The examples of one split."""

    rows: Dataset  # the input columns only, images not yet decoded
    labels: NDArray[np.int64]  # indices into the label names
    name: str  # the dataset's name of the split
    numbers: NDArray[np.int64]  # the row numbers in that split, from 0

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: NDArray[np.int64]) -> Split:
        rows = self.rows.select(indices, keep_in_memory=True)
        return Split(rows, self.labels[indices], self.name, self.numbers[indices])


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
    source = open_source(config.dataset, config.dataset_config)
    train_name, eval_name = choose_splits(tuple(source), config)
    rows = source[train_name]
    columns = _choose_columns(rows.features, config, kind)
    train, names = _read_split(rows, train_name, columns, None)
    if len(names) < 2:
        raise UserError(
            f"column {columns.label!r} of split {train_name!r} has only one class, {names[0]!r}",
            where=config.dataset,
        )
    held_out: Split | None = None
    notices: list[str] = []
    if config.max_eval_examples == 0:
        pass
    elif eval_name is None:
        train, held_out = _hold_out(train, train_name, config.seed)
        notices.append(f"{config.dataset} has no evaluation split: held out {len(held_out)} examples of {train_name!r}")
    else:
        held_out, _ = _read_split(source[eval_name], eval_name, columns, names)
    return Splits(
        train=_subset(train, config.max_train_examples, config.seed, _TRAIN_SUBSET),
        eval=held_out and _subset(held_out, config.max_eval_examples, config.seed, _EVAL_SUBSET),
        input_column=columns.input,
        label_names=names,
        notices=tuple(notices),
        pair_column=columns.pair,
    )


def choose_splits(names: Sequence[str], config: TrainConfig) -> tuple[str, str | None]:
    """The names of the training split and the evaluation split; the latter is None if the dataset has none.

    Raises:
        UserError: The dataset does not have a split that the config names.

    Example:
        >>> choose_splits(["train", "test", "dev"], TrainConfig(model="bert"))
        ('train', 'dev')
    """
    train = config.train_split
    if train == "train" and train not in names and len(names) == 1:
        train = names[0]
    for field, name in (("train_split", train), ("eval_split", config.eval_split)):
        if name is not None and name not in names:
            have = ", ".join(names)
            raise UserError(f"split {name!r} is not in {config.dataset}", where=field, hint=f"it has: {have}")
    others = [name for name in EVAL_SPLITS if name in names and name != train]
    return train, config.eval_split or next(iter(others), None)


def _choose_columns(features: Features, config: TrainConfig, kind: InputKind) -> _Columns:
    label = _label_column(features, config)
    pair = _pair_column(features, config, kind, label)
    return _Columns(kind, _input_column(features, config, kind, label, pair), pair, label)


def _pair_column(features: Features, config: TrainConfig, kind: InputKind, label_column: str) -> str | None:
    field, name = "text_pair_column", config.text_pair_column
    if name is None:
        return None
    if kind != "text":
        raise UserError(f"{name!r} is set, but model {config.model!r} takes {kind}s", where=field, hint="drop it")
    return _named_column(features, field, name, text_column=config.text_column, label_column=label_column)


def _label_column(features: Features, config: TrainConfig) -> str:
    if config.label_column is not None:
        return _named_column(features, "label_column", config.label_column)
    named = [name for name in LABEL_COLUMNS if name in features]
    classes = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    return _only_column(features, "label_column", named[:1] or classes)


def _input_column(
    features: Features, config: TrainConfig, kind: InputKind, label_column: str, pair_column: str | None
) -> str:
    field = f"{kind}_column"
    wanted: str | None = getattr(config, field)
    if wanted is not None:
        _named_column(features, field, wanted, label_column=label_column)
        feature = features[wanted]
        if kind == "image" and not (_is_image(feature) or _is_text(feature)):  # a text may be the path of an image
            raise UserError(f"column {wanted!r} contains {_type(feature)}, not images or their paths", where=field)
        return wanted
    has_kind = _is_text if kind == "text" else _is_image
    others = (label_column, pair_column)
    candidates = [name for name, feature in features.items() if name not in others and has_kind(feature)]
    usual = [name for name in TEXT_COLUMNS if name in candidates]
    return _only_column(features, field, usual[:1] or candidates)


def _is_text(feature: object) -> bool:
    return isinstance(feature, Value) and feature.dtype in ("string", "large_string")


def _is_image(feature: object) -> bool:
    if isinstance(feature, dict):
        return set(feature) == {"bytes", "path"}  # how other libraries read a file written by `datasets`
    return isinstance(feature, Image) or (isinstance(feature, Value) and feature.dtype in ("binary", "large_binary"))


def _type(feature: object) -> str:
    if isinstance(feature, Value):
        dtype: str = feature.dtype
        return dtype
    return type(feature).__name__


def _named_column(features: Features, field: str, name: str, **others: str | None) -> str:
    """The column that a config field names; `others` are the columns of other fields, by field."""
    for other, column in others.items():
        if name == column:
            raise UserError(f"{name!r} is also the {other}", where=field, hint="name another column")
    if name not in features:
        raise UserError(f"column {name!r} is not in the dataset", where=field, hint=f"it has: {', '.join(features)}")
    return name


def _only_column(features: Features, field: str, candidates: Sequence[str]) -> str:
    if len(candidates) == 1:
        return candidates[0]
    problem = "the dataset has no column for it"
    if candidates:
        problem = f"the dataset has {', '.join(map(repr, candidates))}"
    raise UserError(problem, where=field, hint=f"set {field} to one of: {', '.join(features)}")


def _read_split(
    rows: Dataset, split: str, columns: _Columns, names: tuple[str, ...] | None
) -> tuple[Split, tuple[str, ...]]:
    """One split and its class names; `names` are those of the training split, which other splits must use too."""
    for field, column in columns.by_field().items():
        if column not in rows.features:
            have = ", ".join(rows.features)
            raise UserError(f"column {column!r} is not in split {split!r}", where=field, hint=f"it has: {have}")
    if len(rows) == 0:
        raise UserError(f"split {split!r} of the dataset is empty")
    feature = rows.features[columns.label]
    values = rows[columns.label][:]
    if isinstance(feature, ClassLabel):
        values = _class_names(values, feature, split)
        names = names or tuple(feature.names)
    names = names or _distinct(values, split, columns.label)
    labels = _label_indices(values, names, split, columns.label)
    inputs = rows.select_columns([column for field, column in columns.by_field().items() if field != "label_column"])
    if columns.kind == "image":
        inputs = inputs.cast_column(columns.input, Image(decode=False))
    return Split(inputs, labels, split, np.arange(len(labels))), names


def _class_names(values: Sequence[int | None], feature: ClassLabel, split: str) -> list[str | None]:
    count = len(feature.names)
    for row, value in enumerate(values):
        if value is not None and not 0 <= value < count:
            raise UserError(
                f"label {value} in row {row} of split {split!r} is out of range: there are {count} classes",
                hint="-1 marks a split whose labels are withheld" if value == -1 else None,
            )
    return [None if value is None else feature.names[value] for value in values]


def _distinct(values: Sequence[Any], split: str, column: str) -> tuple[str, ...]:
    """The class names of a column of plain values: numbers in numeric order, words in alphabetical order."""
    if any(isinstance(value, float | list | dict | bytes) for value in values):
        raise UserError(f"column {column!r} of split {split!r} has no classes", hint="use integers or words")
    distinct = {value for value in values if value is not None}
    return tuple(str(value) for value in sorted(distinct, key=lambda value: (isinstance(value, str), value)))


def _label_indices(values: Sequence[Any], names: tuple[str, ...], split: str, column: str) -> NDArray[np.int64]:
    index = {name: position for position, name in enumerate(names)}
    for row, value in enumerate(values):
        if value is None or value == "":
            raise UserError(f"row {row} of split {split!r} has no label in column {column!r}")
        if str(value) not in index:
            raise UserError(
                f"label {value!r} in row {row} of split {split!r} is out of range: the training split does not have it"
            )
    return np.array([index[str(value)] for value in values], dtype=np.int64)


def _hold_out(split: Split, name: str, seed: int) -> tuple[Split, Split]:
    """Divides a split at random, by the seed, into nine tenths and one tenth."""
    if len(split) < 2:
        raise UserError(
            f"split {name!r} has {len(split)} example, which is too few to hold one out for evaluation",
            hint="set max_eval_examples: 0 to train without evaluation",
        )
    order = np.random.default_rng([seed, _HOLD_OUT]).permutation(len(split))
    size = max(1, len(split) // 10)
    return split.select(np.sort(order[size:])), split.select(np.sort(order[:size]))


def _subset(split: Split, max_examples: int | None, seed: int, draw: int) -> Split:
    if max_examples is None or max_examples >= len(split):
        return split
    return split.select(np.random.default_rng([seed, draw]).permutation(len(split))[:max_examples])
