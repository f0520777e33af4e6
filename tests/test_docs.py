"""The Markdown pages: links, paths and quoted messages exist, and no placeholder is left."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.results.result import COLUMNS

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md"), REPOSITORY / "tests" / "slurm_cluster" / "README.md"]
CONTRIBUTING = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
TROUBLESHOOTING = (REPOSITORY / "docs" / "troubleshooting.md").read_text(encoding="utf-8")

_SUFFIX = r"\.(?:py|md|yaml|txt|cfg|toml)"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page_is_complete(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"@[A-Z]+@|TODO|FIXME", text)
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / link).exists(), link


def test_paths_in_contributing_exist() -> None:
    """A text in backticks is a path if it has a slash or a known suffix, and no space."""
    quoted = re.findall(r"`([^`\s]+)`", re.sub(r"^```.*?^```", "", CONTRIBUTING, flags=re.MULTILINE | re.DOTALL))
    paths = [text for text in quoted if "/" in text or re.search(rf"{_SUFFIX}$", text)]
    assert len(paths) > 40
    assert [path for path in paths if not list(REPOSITORY.glob(path.rstrip("/")))] == []


def test_names_in_contributing_exist() -> None:
    """A name that is followed by its file in parentheses, or by `in` and its file, occurs in that file."""
    pairs = re.findall(rf"`(\w+)`\s+(?:\(|in\s+)`([\w/]+{_SUFFIX})`", CONTRIBUTING)
    assert len(pairs) > 6
    for name, path in pairs:
        assert re.search(rf"\b{name}\b", (REPOSITORY / path).read_text(encoding="utf-8")), f"{name} in {path}"


def test_quoted_messages_exist() -> None:
    """Every message of docs/troubleshooting.md is printed by jobs or disttrain, apart from values in it."""
    first_cells = re.findall(r"^\| (.+?) \|", TROUBLESHOOTING, re.MULTILINE)
    messages = [text for cell in first_cells for text in re.findall(r"`([^`]+ [^`]+)`", cell)]
    assert len(messages) > 8
    patterns = list(_message_patterns())
    assert [message for message in messages if not any(_is_made_by(message, pattern) for pattern in patterns)] == []


def _is_made_by(message: str, pattern: list[str]) -> bool:
    """Whether the code prints this message: values replace `.+`, and the constant parts are at least half of it."""
    constant = sum(len(part) for part in pattern)
    regex = ".+".join(re.escape(part) for part in pattern) + r"(: \.\.\.)?"
    return constant >= len(message) / 2 and bool(re.fullmatch(regex, message))


def _message_patterns() -> Iterator[list[str]]:
    """The constant parts of every string in the code of jobs and disttrain; a value is between two parts."""
    for folder in ("jobs", "disttrain"):
        for path in (REPOSITORY / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    yield _constant_parts(node)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield [node.value]


def _constant_parts(string: ast.JoinedStr) -> list[str]:
    parts = [""]
    for value in string.values:
        if isinstance(value, ast.Constant):
            parts[-1] += str(value.value)
        else:
            parts.append("")
    return parts


def test_readme_explains_every_column_of_the_table() -> None:
    lines = (REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()
    explained = {name.strip() for line in lines if line.startswith("| ") for name in line.split("|")[1].split(",")}
    shown = {figure.name for figure in COLUMNS.values() if figure.table_rank is not None}
    assert shown - explained == set()
