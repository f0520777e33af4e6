"""Measures the memory of the ranks while they prepare a large table: python -m tests.benchmarks.start.memory --help."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import psutil
import typer

from tests.benchmarks import store, tables
from tests.benchmarks.cells import BenchmarkError
from tests.benchmarks.contenders import REPOSITORY
from tests.benchmarks.running import TIMEOUT_S, environment
from tests.gpu.processes import end_all

TITLE = "Memory and start with a large table"
RANKS = 2
FEW_ROWS = 1000  # what the ranks take besides the table
NOW = "this version"
_POLL_S = 0.02
_WORDS = ["film", "is", "a", "moving", "story", "of", "dull", "people", "and", "bright", "places", "that", "never"]
_TINY = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 200
}  # fmt: skip


@dataclass(frozen=True)
class Peak:
    """The largest memory of one rank, in MB (10^6 bytes)."""

    own_mb: float  # memory that no file backs, which the ranks do not share
    total_mb: float  # with the mapped files, which all ranks of a host share


@dataclass(frozen=True)
class Start:
    """One run to its second step."""

    version: str
    rows: int
    cache: str  # cold or warm
    peaks: tuple[Peak, ...]  # by rank


def benchmark(
    rows: Annotated[int, typer.Option(min=FEW_ROWS, help="Number of rows of the table.")] = 1_000_000,
    repeat: Annotated[int, typer.Option(min=1, help="Number of repetitions.")] = 3,
    before: Annotated[
        Path | None, typer.Option(help="A checkout of an earlier version, which is measured in the same way.")
    ] = None,
    before_name: Annotated[str, typer.Option(help="What the table calls that version.")] = "before",
    work: Annotated[Path, typer.Option(help="Folder for data, caches and logs.")] = Path("runs/benchmarks/memory"),
    out: Annotated[Path | None, typer.Option(help="The Markdown file to write.")] = None,
) -> None:
    """Measures a BERT of 2 layers on a csv file of texts, on two ranks, with an empty cache and with a filled one."""
    root = work.absolute()
    checkouts = {} if before is None else {before_name: before.absolute()}
    checkouts[NOW] = REPOSITORY
    try:
        starts = [
            start
            for number in range(repeat)
            for count in (FEW_ROWS, rows)
            for version, checkout in checkouts.items()
            for start in _cold_and_warm(version, checkout, count, root / str(number))
        ]
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
    tables.publish(TITLE, tables.facts("tests.benchmarks.start.memory", store.machine()), [grid(starts)], out)


def write_table(path: Path, rows: int) -> None:
    """A csv file of texts of 3 to 40 words in two classes, the same at each call."""
    random = np.random.default_rng(rows)
    texts = [" ".join(random.choice(_WORDS, size=random.integers(3, 41))) for _ in range(1000)]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        file.write("text,label\n")
        for row in range(rows):
            file.write(f"{texts[row % len(texts)]} {row},{row % 2}\n")


def _cold_and_warm(version: str, checkout: Path, rows: int, root: Path) -> list[Start]:
    shutil.rmtree(root, ignore_errors=True)
    data = root / "data.csv"
    write_table(data, rows)
    starts = []
    for cache in ("cold", "warm"):
        peaks = _measure(checkout, data, root, cache)
        starts.append(Start(version, rows, cache, peaks))
        own = ", ".join(f"{peak.own_mb:.0f}" for peak in peaks)
        print(f"{version}, {rows} rows, {cache}: own MB {own}", file=sys.stderr, flush=True)
    shutil.rmtree(root)
    return starts


def _measure(checkout: Path, data: Path, root: Path, cache: str) -> tuple[Peak, ...]:
    flags = {
        "dataset": data,
        "architecture": json.dumps(_TINY),
        "max_steps": 2,
        "max_eval_examples": 32,
        "max_length": 64,
        "start_check_s": 0,
        "save_model": "false",
        "device": "cpu",
        "output_dir": root / cache,
    }
    words = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={RANKS}"),
        str(checkout / "disttrain" / "bert.py"),
        *(part for flag, value in flags.items() for part in (f"--{flag}", str(value))),
    ]
    environ = {**environment(RANKS, root), "PYTHONPATH": str(checkout)}
    with (root / f"{cache}.txt").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(words, env=environ, cwd=checkout, stdout=log, stderr=log, start_new_session=True)
        try:
            peaks = _peaks(process, time.perf_counter() + TIMEOUT_S)
        finally:
            end_all(process)
    if process.returncode or len(peaks) < RANKS:
        raise BenchmarkError(f"a run failed: see {root / f'{cache}.txt'}")
    return peaks


def _peaks(process: subprocess.Popen[bytes], deadline_s: float) -> tuple[Peak, ...]:
    """The peaks of the ranks, which are read until the process ends."""
    peaks: dict[int, Peak] = {}
    ranks: dict[int, int] = {}  # the rank of each process
    while process.poll() is None and time.perf_counter() < deadline_s:
        for child in psutil.Process(process.pid).children():
            try:
                if child.pid not in ranks:
                    ranks[child.pid] = int(child.environ()["RANK"])
                own_mb, total_mb = _memory_mb(child.pid)
            except (psutil.Error, OSError, KeyError):
                continue  # it has ended, or does not run Python yet
            rank = ranks[child.pid]
            before = peaks.get(rank, Peak(0.0, 0.0))
            peaks[rank] = Peak(max(before.own_mb, own_mb), max(before.total_mb, total_mb))
        time.sleep(_POLL_S)
    return tuple(peaks[rank] for rank in sorted(peaks))


def _memory_mb(pid: int) -> tuple[float, float]:
    """The memory of a process now that no file backs, and its peak in all."""
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
        fields = dict(line.split(":", 1) for line in file)
    return tuple(int(fields[name].split()[0]) * 1024 / 1e6 for name in ("RssAnon", "VmHWM"))  # type: ignore[return-value]


def grid(starts: Sequence[Start]) -> tables.Grid:
    """The table: a row for each version, number of rows and state of the cache."""
    groups: dict[tuple[int, str, str], list[Start]] = {}
    for start in starts:
        groups.setdefault((start.rows, start.cache, start.version), []).append(start)
    rows = [
        (f"{count:,}", cache, version, str(len(group)), *_cells(group))
        for (count, cache, version), group in sorted(groups.items())
    ]
    note = (
        "A BERT of 2 layers of 32 on a csv file, two ranks on one host. Own is the largest memory of a rank that no"
        f" file backs (RssAnon, read every {_POLL_S * 1000:g} ms). Peak is its largest resident memory (VmHWM), with"
        " mapped files, which the ranks of a host share. Cold: nothing is cached. Warm: the same run once more. The"
        " page cache of the system is warm in both. Median over the repetitions [minimum to maximum]."
    )
    header = (
        *("rows", "cache", "version", "repetitions", "rank 0 own, MB", "rank 0 peak, MB"),
        *("rank 1 own, MB", "rank 1 peak, MB"),
    )
    return tables.Grid("Peak memory", note, header, tuple(rows))


def _cells(group: Sequence[Start]) -> list[str]:
    figures: Mapping[str, list[float]] = {
        f"{rank} {name}": [getattr(start.peaks[rank], name) for start in group]
        for rank in range(RANKS)
        for name in ("own_mb", "total_mb")
    }
    return [
        *(tables.spread(values, "{:.0f}") for values in figures.values()),
    ]


if __name__ == "__main__":
    typer.run(benchmark)
