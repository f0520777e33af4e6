"""The repository stays readable: bounds on words, sentences, folders and conditional expressions."""

from __future__ import annotations

import pytest

from tests import readability
from tests.readability import REPOSITORY

WORDS_PER_10_000 = 12
FILES_OF_A_FOLDER = 17
CONDITIONALS_PER_1000_LINES = 12
CONDITIONALS_OF_A_FUNCTION = 5
README_LINES = 120
README_WORDS_A_SENTENCE = 15

WORDS = readability.word_list((REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8"))


@pytest.mark.process
def test_listed_words_are_rare() -> None:
    assert len(WORDS) > 30
    for texts in (readability.code_texts(REPOSITORY), readability.page_texts(REPOSITORY)):
        found, total = readability.count_words(texts, WORDS)
        assert sum(found.values()) * 10_000 / total <= WORDS_PER_10_000, found.most_common(10)


def test_words_are_counted() -> None:
    found, total = readability.count_words(iter(["It goes  on behind it.", "Nobody."]), ["goes on", "behind", "nobody"])
    assert (dict(found), total) == ({"goes on": 1, "behind": 1, "nobody": 1}, 6)


@pytest.mark.process
def test_folders_are_narrow() -> None:
    files, folder = readability.widest_folder(REPOSITORY)
    assert files <= FILES_OF_A_FOLDER, folder


@pytest.mark.process
def test_conditional_expressions_are_rare() -> None:
    assert readability.conditionals_per_1000_lines(REPOSITORY) <= CONDITIONALS_PER_1000_LINES
    assert readability.functions_with_conditionals(REPOSITORY, CONDITIONALS_OF_A_FUNCTION) == []


def test_the_readme_is_short() -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= README_LINES
    assert readability.words_per_sentence(readme) <= README_WORDS_A_SENTENCE


def test_sentences_are_counted() -> None:
    prose = "# Title\n\nOne two three. Four\nfive.\n\n- six\n- seven `x y z`\n"
    page = prose + "\n| a | table |\n\n```\ncode is no prose\n```\n"
    assert readability.words_per_sentence(page) == (3 + 2 + 1 + 2) / 4
