"""The raw results as JSON lines: appended after each run, and read again so that no run is measured twice."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.contenders import REPOSITORY, Contender
from tests.benchmarks.work import Result, Work

_PACKAGES = ("torch", "torchvision", "transformers", "datasets", "tokenizers", "accelerate", "lightning-fabric")
_SOURCES = ("disttrain/**/*.py", "tests/benchmarks/peers/*.py", "tests/benchmarks/limit/*.py")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One run."""

    cell: str
    contender: str
    flags: tuple[str, ...]
    repetition: int  # from 0
    session: str  # id of a call of the benchmark; only complete repetitions of one session count
    fingerprint: str  # hash of machine, versions and sources
    started_s: float  # seconds since 1970
    load: float  # load average of the machine before the run, from other processes
    work: dict[str, Any]
    result: Result


def machine() -> dict[str, str]:
    """The machine and the software of the measurements: CPU, cores, GPU, versions."""
    models = (line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name"))
    facts = {"CPU": next(models, platform.machine()), "cores": str(len(os.sched_getaffinity(0)))}
    gpu = _gpu_name()
    if gpu is not None:
        facts["GPU"] = gpu
    facts["Python"] = platform.python_version()
    for package in _PACKAGES:
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return facts


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def _gpu_name() -> str | None:
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def fingerprint(facts: Mapping[str, str]) -> str:
    """A hash of what makes results comparable: the machine, the versions, and the sources of all contenders."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for path in source_files():
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def source_files() -> list[Path]:
    """The source files of all contenders, without their tests."""
    paths = [path for pattern in _SOURCES for path in sorted(REPOSITORY.glob(pattern))]
    return [path for path in paths if not path.name.startswith("test_")]


def append(path: Path, entry: Entry | Mapping[str, Any]) -> None:
    """Adds one line; it is on disk when this returns."""
    line = json.dumps(dataclasses.asdict(entry) if isinstance(entry, Entry) else dict(entry))
    path.parent.mkdir(parents=True, exist_ok=True)
    cut_short = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
    with path.open("a", encoding="utf-8") as file:
        file.write(("\n" if cut_short else "") + line + "\n")
        file.flush()
        os.fsync(file.fileno())


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """All complete lines. An incomplete line of a killed process is skipped, and its run is repeated."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue


def read(path: Path, wanted_fingerprint: str) -> list[Entry]:
    """The entries that were measured on this machine with these sources."""
    return [
        Entry(**{**line, "flags": tuple(line["flags"]), "result": Result(**line["result"])})
        for line in lines(path)
        if line["fingerprint"] == wanted_fingerprint
    ]


def complete(
    entries: Iterable[Entry], cell: str, work: Work, contenders: Sequence[Contender]
) -> dict[int, dict[str, Result]]:
    """The repetitions of a cell that have results of all contenders from one session: results by contender.

    Results of other contenders are ignored. The number of a repetition is also the seed of its runs.
    """
    by_session: dict[tuple[int, str], dict[tuple[str, tuple[str, ...]], Result]] = {}
    expected = dataclasses.asdict(work)
    for entry in entries:
        if entry.cell == cell and entry.work == expected | {"seed": entry.repetition}:
            key = (entry.contender, entry.flags)
            by_session.setdefault((entry.repetition, entry.session), {})[key] = entry.result
    repetitions: dict[int, dict[str, Result]] = {}
    for (repetition, _), results in by_session.items():
        if all((contender.name, contender.flags) in results for contender in contenders):
            repetitions[repetition] = {
                contender.name: results[(contender.name, contender.flags)] for contender in contenders
            }
    return dict(sorted(repetitions.items()))
