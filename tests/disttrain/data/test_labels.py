"""Class names are the text of the file, and rows without a label are left out and counted."""

from __future__ import annotations

import unicodedata
from typing import Any

import pytest

from disttrain.data.files.columns import NUMBERS, TEXT, ListColumn
from disttrain.data.labels import read_labels
from disttrain.errors import UserError


def column(*values: Any, kind: str = TEXT, names: tuple[str, ...] | None = None) -> ListColumn:
    return ListColumn(values, kind, names)


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (["01", "1", "A1"], ("01", "1", "A1")),
        (["10", "9", "1.0", "01"], ("01", "1.0", "9", "10")),
        (["True", "False"], ("False", "True")),
        (["pos", "neg"], ("neg", "pos")),
    ],
)
def test_names_are_sorted_and_not_changed(values: list[str], names: tuple[str, ...]) -> None:
    labels = read_labels(column(*values), "label", "train")
    assert labels.names == names
    assert [labels.names[index] for index in labels.indices] == values
    assert labels.notices == ()


def test_blanks_and_unicode_forms_make_no_class() -> None:
    composed, decomposed = (unicodedata.normalize(form, "né") for form in ("NFC", "NFD"))
    labels = read_labels(column("pos", "pos ", composed, decomposed, " pos", "neg"), "label", "train")
    assert labels.names == ("neg", composed, "pos") if composed > "neg" else labels.names
    assert len(labels.names) == 3
    assert labels.indices.tolist() == [2, 2, 1, 1, 2, 0]
    assert labels.notices == (
        f"labels of 'train' that were changed (blanks at the ends, Unicode form NFC): ' pos', {decomposed!r}, 'pos '",
    )


def test_names_that_differ_in_case_only() -> None:
    labels = read_labels(column("Pos", "pos", "neg"), "label", "train")
    assert labels.names == ("Pos", "neg", "pos")
    assert labels.notices == ("classes that differ only in upper and lower case: 'Pos', 'pos'",)


LEFT_OUT = "left out 1 of 4 rows of 'train' without a label in column 'label'"
MINUS_1 = "; -1 counts as no label: if it is a class, write a word for it"


@pytest.mark.parametrize(
    ("values", "names", "notice"),
    [
        (["0", "1", "-1", "1"], ("0", "1"), LEFT_OUT + MINUS_1),
        (["1", "2", "-1", "2"], ("1", "2"), LEFT_OUT + MINUS_1),
        (["0", "7", "-1", "7"], ("0", "7"), LEFT_OUT + MINUS_1),
        (["0.0", "1.0", "-1.0", "1.0"], ("0.0", "1.0"), LEFT_OUT + MINUS_1),
        (["0", "1", "", "1"], ("0", "1"), LEFT_OUT),
        (["0", "1", None, "1"], ("0", "1"), LEFT_OUT),
        (["0", "1", " ", "1"], ("0", "1"), LEFT_OUT),
    ],
)
def test_rows_without_a_label_are_left_out(values: list[str | None], names: tuple[str, ...], notice: str) -> None:
    labels = read_labels(column(*values), "label", "train")
    assert (labels.names, labels.rows.tolist(), labels.indices.tolist()) == (names, [0, 1, 3], [0, 1, 1])
    assert labels.notices == (notice,)


@pytest.mark.parametrize("values", [["-1", "1"], ["-1", "yes"], ["-1", "-2", "0"]])
def test_minus_1_may_be_a_class(values: list[str]) -> None:
    labels = read_labels(column(*values), "label", "train")
    assert set(labels.names) == set(values)
    assert labels.notices == ("-1 is a class of 'train', because the other labels are not whole numbers from 0",)


@pytest.mark.parametrize("known", [("0", "1"), ("1", "2", "3"), ("no", "yes")])
def test_withheld_labels_are_none(known: tuple[str, ...]) -> None:
    assert len(read_labels(column("-1", "-1"), "label", "test", known).rows) == 0
    with pytest.raises(UserError, match="label '-2' in row 0"):
        read_labels(column("-2"), "label", "test", known)


def test_most_rows_must_have_a_label() -> None:
    with pytest.raises(UserError, match=r"3 of 5 rows of split 'train' have no label in column 'label' \("):
        read_labels(column("0", "1", "-1", "-1", "-1"), "label", "train")


def test_a_split_without_labels_has_no_rows() -> None:
    for hidden in (column("-1", "-1"), column(None, None), column(-1, -1, names=("x", "y"))):
        labels = read_labels(hidden, "label", "test", ("0", "1"))
        assert (labels.rows.tolist(), labels.indices.tolist()) == ([], [])


def test_classes_with_names_of_their_own() -> None:
    labels = read_labels(column(1, -1, 0, 1, names=("b", "a")), "label", "train")
    assert (labels.names, labels.rows.tolist(), labels.indices.tolist()) == (("b", "a"), [0, 2, 3], [1, 0, 1])
    with pytest.raises(UserError, match="label 2 in row 0 of split 'train' is out of range: there are 2 classes"):
        read_labels(column(2, names=("b", "a")), "label", "train")


def test_numbers_of_other_readers_are_names() -> None:
    assert read_labels(column(10, 9, kind=NUMBERS), "label", "train").names == ("9", "10")
    assert read_labels(column(1.0, float("nan"), 0.0, kind=NUMBERS), "label", "train").indices.tolist() == [1, 0]
    assert read_labels(column(True, False, kind="bool values"), "label", "train").names == ("False", "True")


@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [
        (["0.5", "0.7"], NUMBERS, "has no classes, but numbers such as 0.5 (use integers or words)"),
        ([0.5], NUMBERS, "has no classes, but numbers such as 0.5 (use integers or words)"),
        ([[0]], "lists", "has no classes, but lists (use integers or words)"),
    ],
)
def test_what_is_no_class(values: list[Any], kind: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        read_labels(column(*values, kind=kind), "label", "train")
    assert str(caught.value) == f"column 'label' of split 'train' {message}"


def test_other_splits_have_the_classes_of_training() -> None:
    labels = read_labels(column("1 ", "0"), "label", "test", ("0", "1"))
    assert labels.indices.tolist() == [1, 0]
    with pytest.raises(
        UserError, match="label '2' in row 1 of split 'test' is out of range: the training split does n"
    ):
        read_labels(column("1", "2"), "label", "test", ("0", "1"))
