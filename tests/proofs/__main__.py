"""``make proofs``: runs every proof, or those that are named, and writes what came out to docs/proofs.md."""

from __future__ import annotations

import os
import platform
import re
import sys
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from tests.proofs import accuracy, propagation, resume, same_losses, slow_rank, timeline

PROOFS = {
    "accuracy": accuracy.prove,
    "same-losses": same_losses.prove,
    "resume": resume.prove,
    "propagation": propagation.prove,
    "timeline": timeline.prove,
    "slow-rank": slow_rank.prove,
}
PAGE = Path(__file__).resolve().parents[2] / "docs" / "proofs.md"
HEAD = """# Proofs

What takes too long for `make test`, which has a short cut of each. Written by `make proofs`, or
`python -m tests.proofs NAME` for one.
"""


def main(names: list[str]) -> None:
    """Runs the proofs; a failed one is written down as such, and the exit status is 1."""
    unknown = sorted(set(names) - set(PROOFS))
    if unknown:
        sys.exit(f"no proof {unknown[0]!r}; there are: {', '.join(PROOFS)}")
    sections = read_sections(PAGE.read_text(encoding="utf-8") if PAGE.exists() else "")
    failed = False
    for name in names or PROOFS:
        print(f"proof {name} ...", flush=True)
        start = time.monotonic()
        try:
            outcome = PROOFS[name]()
        except AssertionError as error:
            failed = True
            outcome = f"FAILED: {error}"
        sections[name] = f"{outcome.strip()}\n\n{made(time.monotonic() - start)}"
        PAGE.write_text(render(sections), encoding="utf-8")
        print(outcome, flush=True)
    sys.exit(failed)


def made(elapsed_s: float) -> str:
    """When, where and with what: a figure without them says nothing."""
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers", "submitit"))
    cores = len(os.sched_getaffinity(0))
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {elapsed_s:.0f} s on {cores} cores ({platform.machine()}, no GPU),"
        f" Python {platform.python_version()}, {packages}."
    )


def read_sections(page: str) -> dict[str, str]:
    """The text of each proof of a page, by name."""
    parts = re.split(r"^## (.+)$", page, flags=re.MULTILINE)[1:]
    return {name.strip(): text.strip() for name, text in zip(parts[::2], parts[1::2], strict=True)}


def render(sections: dict[str, str]) -> str:
    """The page, in the order of the proofs."""
    return "\n".join([HEAD, *(f"## {name}\n\n{sections[name]}\n" for name in PROOFS if name in sections)])


if __name__ == "__main__":
    main(sys.argv[1:])
