"""`make proofs`: runs all proofs, or the named ones, and writes the results to docs/proofs.md."""

from __future__ import annotations

import os
import platform
import re
import sys
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from tests.proofs import accuracy, propagation, random_inputs, resume, same_losses, slow_rank, slurm_releases, timeline

PROOFS = {
    "accuracy": accuracy.prove,
    "same-losses": same_losses.prove,
    "resume": resume.prove,
    "propagation": propagation.prove,
    "timeline": timeline.prove,
    "slow-rank": slow_rank.prove,
    "random-inputs": random_inputs.prove,
    "slurm-releases": slurm_releases.prove,
}
PAGE = Path(__file__).resolve().parents[2] / "docs" / "proofs.md"
HEAD = """# Proofs

These checks take too long for `make test`, which runs a short version of each. `make proofs` writes this page;
`python -m tests.proofs NAME` writes the section of one proof.
"""


def main(names: list[str]) -> None:
    """Runs the proofs. A failed proof is written to the page too, and the exit status is 1."""
    unknown = sorted(set(names) - set(PROOFS))
    if unknown:
        sys.exit(f"unknown proof {unknown[0]!r}; known proofs: {', '.join(PROOFS)}")
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
        sections[name] = f"{outcome.strip()}\n\n{environment_line(time.monotonic() - start)}"
        PAGE.write_text(render(sections), encoding="utf-8")
        print(outcome, flush=True)
    sys.exit(failed)


def environment_line(elapsed_s: float) -> str:
    """The date, the duration, the machine and the versions; a figure is only valid for these."""
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers", "submitit"))
    cores = len(os.sched_getaffinity(0))
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {elapsed_s:.0f} s on {cores} cores ({platform.machine()}, no GPU),"
        f" Python {platform.python_version()}, {packages}."
    )


def read_sections(page: str) -> dict[str, str]:
    """The sections of a page, by the name of the proof."""
    parts = re.split(r"^## (.+)$", page, flags=re.MULTILINE)[1:]
    return {name.strip(): text.strip() for name, text in zip(parts[::2], parts[1::2], strict=True)}


def render(sections: dict[str, str]) -> str:
    """The page, in the order of the proofs."""
    return "\n".join([HEAD, *(f"## {name}\n\n{sections[name]}\n" for name in PROOFS if name in sections)])


if __name__ == "__main__":
    main(sys.argv[1:])
