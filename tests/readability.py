"""Counts what makes the repository hard to read: `python -m tests.readability [CHECKOUT]`.

The word list is the table "Words" of CONTRIBUTING.md.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
CODE_FOLDERS = ("jobs", "disttrain", "tests")
# The log quotes what was measured on its day, and is not rewritten.
LEFT_OUT = ("docs/LOG.md",)
_CONDITIONALS = (ast.IfExp,)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def main(checkout: Path) -> None:
    """Prints every count of a checkout, each against its bound."""
    words = word_list((REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    files, folder = widest_folder(checkout)
    print(f"widest folder: {files} files in {folder} (at most 17)")
    print(f"conditional expressions: {conditionals_per_1000_lines(checkout):.1f} per 1,000 lines (at most 12)")
    for name, texts in (("code", code_texts(checkout)), ("pages", page_texts(checkout))):
        found, total = count_words(texts, words)
        rate = sum(found.values()) * 10_000 / total
        common = ", ".join(f"{word} {count}" for word, count in found.most_common(8))
        print(f"listed words in {name}: {rate:.1f} per 10,000 words (at most 12): {common}")
    readme = (checkout / "README.md").read_text(encoding="utf-8")
    print(f"README: {len(readme.splitlines())} lines (at most 120)")
    print(f"README: {words_per_sentence(readme):.1f} words a sentence (at most 15)")


def word_list(contributing: str) -> list[str]:
    """The words and phrases of the table under "## Words", one or more in the first cell of a row.

    Example:
        >>> word_list("## Words\\n\\n| write not | but |\\n|---|---|\\n| behind; so many | after |\\n")
        ['behind', 'so many']
    """
    section = contributing.partition("\n## Words")[2] or contributing.partition("## Words")[2]
    rows = re.findall(r"^\| *([^|]+?) *\|", section.partition("\n## ")[0], flags=re.MULTILINE)
    return [word.strip() for row in rows[2:] for word in row.split(";")]


def count_words(texts: Iterator[str], words: list[str]) -> tuple[Counter[str], int]:
    """How often each word of the list occurs, and the number of all words."""
    pattern = re.compile(r"\b(" + "|".join(re.escape(word).replace(r"\ ", r"\s+") for word in words) + r")\b", re.I)
    found: Counter[str] = Counter()
    total = 0
    for text in texts:
        total += len(re.findall(r"[A-Za-z][A-Za-z'-]*", text))
        found.update(" ".join(match.lower().split()) for match in pattern.findall(text))
    return found, max(total, 1)


def code_texts(checkout: Path) -> Iterator[str]:
    """The comments, docstrings, messages and names of tests of all code."""
    for path in python_files(checkout):
        source = path.read_text(encoding="utf-8")
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type in (tokenize.COMMENT, tokenize.STRING) or token.type in _F_STRING_PARTS:
                yield token.string
            elif token.type == tokenize.NAME and token.string.startswith("test_"):
                yield token.string.replace("_", " ")


_F_STRING_PARTS = tuple(getattr(tokenize, name) for name in ("FSTRING_MIDDLE",) if hasattr(tokenize, name))


def page_texts(checkout: Path) -> Iterator[str]:
    """The Markdown pages, and the comments and texts of YAML files, without the word list itself."""
    for path in tracked(checkout, "*.md", "*.yaml", "*.yml"):
        if str(path.relative_to(checkout)) in LEFT_OUT:
            continue
        text = path.read_text(encoding="utf-8")
        head, listed, rest = text.partition("\n## Words\n")
        yield head + rest.partition("\n## ")[2] if listed else text


def widest_folder(checkout: Path) -> tuple[int, str]:
    """The number of files of the folder that has most, and its name; `__init__.py` and data do not count."""
    counts = Counter(
        str(path.parent.relative_to(checkout)) for path in python_files(checkout) if path.name != "__init__.py"
    )
    folder, files = counts.most_common(1)[0]
    return files, folder


def conditionals_per_1000_lines(checkout: Path) -> float:
    """Conditional expressions (`a if b else c`) of the product's code."""
    found = lines = 0
    for path in python_files(checkout, "jobs", "disttrain"):
        source = path.read_text(encoding="utf-8")
        lines += len(source.splitlines())
        found += sum(isinstance(node, _CONDITIONALS) for node in ast.walk(ast.parse(source)))
    return found * 1000 / lines


def functions_with_conditionals(checkout: Path, more_than: int) -> list[str]:
    """The functions of the product with more than this many conditional expressions."""
    return [
        f"{path.relative_to(checkout)}: {node.name}"
        for path in python_files(checkout, "jobs", "disttrain")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, _FUNCTIONS) and sum(isinstance(part, _CONDITIONALS) for part in ast.walk(node)) > more_than
    ]


def words_per_sentence(page: str) -> float:
    """The mean over the sentences of a Markdown page; code blocks, tables, headings and links' addresses do not count.

    Example:
        >>> words_per_sentence("# Title\\n\\nOne two three. Four five.\\n")
        2.5
    """
    text = re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^(#|\||!\[).*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"`[^`]*`", "code", text)
    # A line break ends no sentence; an empty line and the next item of a list do.
    blocks = re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )", text)
    sentences = [part for block in blocks for part in re.split(r"(?<=[.!?:])\s+", block.strip())]
    counts = [len(re.findall(r"[A-Za-z0-9][\w'%.-]*", sentence)) for sentence in sentences]
    counted = [count for count in counts if count]
    return sum(counted) / len(counted)


def python_files(checkout: Path, *folders: str) -> list[Path]:
    """The Python files of the folders, by default of all code."""
    return tracked(checkout, *(f"{folder}/*.py" for folder in folders or CODE_FOLDERS))


def tracked(checkout: Path, *patterns: str) -> list[Path]:
    """The files of a checkout that git tracks, or would track."""
    command = ["git", "-C", str(checkout), "ls-files", "--cached", "--others", "--exclude-standard", *patterns]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [checkout / name for name in sorted(set(names)) if (checkout / name).is_file()]


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else REPOSITORY)
