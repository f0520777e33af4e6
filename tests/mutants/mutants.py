"""A mutant: one line of the code, changed into a plausible mistake. The lists of mutants are YAML files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
LISTS = sorted(Path(__file__).parent.glob("*.yaml"))


@dataclass(frozen=True)
class Mutant:
    """One change of one line, and the tests that should notice it."""

    module: str  # the path of the file from the root of the repository
    before: str  # part of one line; it occurs once in the file
    after: str
    tests: tuple[str, ...]  # test modules, as paths from the root of the repository

    def __str__(self) -> str:
        return f"{self.module}: `{self.before}` -> `{self.after}`"

    def source(self, original: str) -> str:
        """The source of the file with the change.

        Raises:
            ValueError: The text does not occur once, or the changed file is no Python.
        """
        count = original.count(self.before)
        if count != 1 or "\n" in self.before or self.before == self.after:
            raise ValueError(f"{self}: the text occurs {count} times; it must occur once, and change")
        changed = original.replace(self.before, self.after)
        try:
            compile(changed, self.module, "exec")
        except SyntaxError as error:
            raise ValueError(f"{self}: {error.msg}") from error
        return changed


def read_mutants(lists: Iterable[Path], only: str = "") -> list[Mutant]:
    """The mutants of the lists.

    A list maps each module to `mutants`, a mapping of what is changed to what it becomes, and `tests`, the names of
    more test modules than that of the module itself.

    Args:
        lists: The YAML files.
        only: Part of the paths of the modules whose mutants are read.

    Raises:
        ValueError: A mutant does not fit its file, or has no test.
    """
    mutants = []
    for path in lists:
        for module, entry in yaml.safe_load(path.read_text(encoding="utf-8")).items():
            if only not in module:
                continue
            own = f"tests/{Path(module).parent}/test_{Path(module).stem}.py"
            tests = tuple(test for test in (own, *entry.get("tests", ())) if (REPOSITORY / test).exists())
            if len(tests) < len(entry.get("tests", ())) or not tests:
                raise ValueError(f"{module} of {path.name}: a test module is missing: {own}, {entry.get('tests')}")
            original = (REPOSITORY / module).read_text(encoding="utf-8")
            for before, after in entry["mutants"].items():
                mutants.append(Mutant(module, before, after, tests))
                mutants[-1].source(original)
    return mutants
