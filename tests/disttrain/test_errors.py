"""The errors of one line: their copies, long texts in them, and the hint for an unknown name."""

from __future__ import annotations

import pickle

import pytest

from disttrain.errors import FieldsError, UserError, shorten, suggest_name


@pytest.mark.parametrize(
    "error",
    [
        UserError("lr is 'fast', not a number", where="sweep.yaml:7", hint="write lr: 2e-5"),
        FieldsError(("lr",), "lr is 'fast', not a number", hint="write lr: 2e-5"),
    ],
)
def test_a_pickled_error_has_all_its_parts(error: UserError) -> None:
    """A data worker passes its errors to its rank in a pickle."""
    copy = pickle.loads(pickle.dumps(error))
    assert isinstance(copy, UserError)
    assert (copy.message, copy.where, copy.hint, str(copy)) == (error.message, error.where, error.hint, str(error))


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("acount", "did you mean account?"),
        ("max", "did you mean max_running_jobs?"),
        ("cpus", "the keys are listed"),  # the start of two keys
        ("c", "the keys are listed"),
        ("colour", "the keys are listed"),
    ],
)
def test_a_hint_names_only_the_one_name_meant(name: str, hint: str) -> None:
    known = ("account", "max_running_jobs", "cpus_per_gpu_and_rank", "cpus_per_node_and_rank")
    assert suggest_name(name, known, "the keys are listed") == hint


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("n[1-2]", "n[1-2]"),
        ("a\nb\x1b[0m\0", "a\\nb\\x1b[0m\\x00"),
        ("C:\\films caf\u00e9 '", "C:\\films caf\u00e9 '"),
        (repr("a\n"), r"'a\n'"),
        ("9" * 200, "9" * 200),
        ("a" * 150 + "b" * 151, "a" * 99 + "..." + "b" * 98),
    ],
)
def test_a_text_in_a_message_is_short_and_printable(text: str, shown: str) -> None:
    assert shorten(text) == shown
