"""A finding of `sweep doctor`: what is right or wrong, and how to fix it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any


class Level(IntEnum):
    """How bad a finding is: a run would fail, a run would be slow or wrong, or only something to know."""

    OK = 0
    NOTE = 1
    WARN = 2
    FAIL = 3


@dataclass(frozen=True)
class Finding:
    """One result of one check.

    Attributes:
        level: How bad it is.
        check: What was checked, in one or two words.
        text: What was found.
        fix: What to do; None if nothing is to be done.
        nodes: The nodes at fault, which a job can exclude.
    """

    level: Level
    check: str
    text: str
    fix: str | None = None
    nodes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON types."""
        return {
            "level": self.level.name.lower(),
            "check": self.check,
            "text": self.text,
            "fix": self.fix,
            "nodes": list(self.nodes),
        }


def ok(check: str, text: str) -> Finding:
    """A finding that is right."""
    return Finding(Level.OK, check, text)


def note(check: str, text: str, fix: str | None = None) -> Finding:
    """A finding that changes nothing."""
    return Finding(Level.NOTE, check, text, fix)


def warn(check: str, text: str, fix: str, nodes: Iterable[str] = ()) -> Finding:
    """A finding with which runs would be slow, or something would be missing."""
    return Finding(Level.WARN, check, text, fix, tuple(nodes))


def fail(check: str, text: str, fix: str, nodes: Iterable[str] = ()) -> Finding:
    """A finding with which runs would fail."""
    return Finding(Level.FAIL, check, text, fix, tuple(nodes))


def excluded_nodes(findings: Sequence[Finding]) -> tuple[str, ...]:
    """The nodes at fault, each once.

    Example:
        >>> excluded_nodes([warn("speed", "slow", "exclude it", ["n2"]), fail("torch", "wrong", "exclude it", ["n2"])])
        ('n2',)
    """
    return tuple(dict.fromkeys(node for finding in findings for node in finding.nodes))


def exclude_line(nodes: Sequence[str], already: str | None = None) -> str:
    """The line of a profile that excludes nodes, and those that it excludes already.

    Example:
        >>> exclude_line(["node17", "node18"], "n[1,3],m[1,3]")
        'sbatch: {exclude: "n[1,3],m[1,3],node17,node18"}'
    """
    names = [*([already] if already else ()), *dict.fromkeys(nodes)]
    return f'sbatch: {{exclude: "{",".join(names)}"}}'


def would_fail(findings: Iterable[Finding]) -> bool:
    """Whether a run would fail."""
    return any(finding.level is Level.FAIL for finding in findings)
