"""The lists of mutants fit the code, and a mutant that changes nothing or breaks the syntax is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutants.mutants import LISTS, REPOSITORY, Mutant, read_mutants

SOURCE = "limit = 3\nif count < limit:\n    limit = count\n"


def mutant(before: str, after: str) -> Mutant:
    return Mutant("limits.py", before, after, ("tests/test_limits.py",))


def test_every_mutant_fits_its_module() -> None:
    mutants = read_mutants(LISTS)
    assert len(mutants) >= 150
    assert all((REPOSITORY / test).exists() for mutant in mutants for test in mutant.tests)


def test_a_mutant_changes_one_line() -> None:
    assert mutant("count < limit", "count <= limit").source(SOURCE) == SOURCE.replace("<", "<=")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param("count > limit", "count >= limit", id="text that does not occur"),
        pytest.param("limit", "limits", id="text that occurs three times"),
        pytest.param("= 3", "= 3", id="no change"),
        pytest.param("limit = 3\nif", "limit = 4\nif", id="two lines"),
        pytest.param("if count", "if if count", id="no Python"),
    ],
)
def test_a_wrong_mutant_is_refused(before: str, after: str) -> None:
    with pytest.raises(ValueError, match=r"^limits\.py: "):
        mutant(before, after).source(SOURCE)


def test_a_module_without_tests_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "list.yaml"
    path.write_text("jobs/__main__.py: {mutants: {a: b}}\n")
    with pytest.raises(ValueError, match="a test module is missing"):
        read_mutants([path])
    assert read_mutants([path], only="jobs/cli") == []
