"""Proof: on the real Slurm, a rank that is held back is named as slow in every run, and in even runs nobody is."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from disttrain.records.record_files import SUMMARY_NAME, from_json, metrics_name, read_records
from disttrain.records.record_types import CheckRecord
from disttrain.records.summary_types import Summary
from tests.proofs.sweeping import cluster_environ, run_sweep

RUNS = 10
# Of the ranks of one node, in turn: so they have half of their time.
STOPPED_S, RUNNING_S = 0.01, 0.01
SLOW_RANK, SLOW_NODE = 1, "node2"
AT_START = f"rank {SLOW_RANK} on {SLOW_NODE} is slow at the start: "
IN_TRAINING = f"rank {SLOW_RANK} on {SLOW_NODE} is slow: "
_LOOK_AGAIN = 20  # turns


@dataclass(frozen=True)
class Seen:
    """What one run said about its ranks."""

    check: CheckRecord
    summary: Summary

    @property
    def detailed(self) -> bool:
        return self.summary.exposed_comm_ms is not None

    @property
    def accusations(self) -> tuple[str, ...]:
        return tuple(notice for notice in self.summary.notices if " is slow" in notice)


def prove() -> str:
    """Ten even runs, and ten of the same with the rank on one node held back."""
    return told(observe(held_back=False), observe(held_back=True))


def observe(*, held_back: bool) -> list[Seen]:
    """The sweep once, a run at a time."""
    environ = cluster_environ()
    with tempfile.TemporaryDirectory() as folder:
        profile = Path(folder) / "one_by_one.yaml"
        profile.write_text(f"{Path(environ['SWEEP_CLUSTER']).read_text(encoding='utf-8')}\nmax_running: 1\n")
        with hindered(SLOW_NODE) if held_back else contextlib.nullcontext():
            rows, _ = run_sweep(
                "../tests/proofs/slow_rank.yaml", Path(folder), {**environ, "SWEEP_CLUSTER": str(profile)}
            )
        (runs,) = Path(folder).glob("slow-rank/*/runs")
        return [_seen(runs / row["run_id"]) for row in rows]


def told(even: list[Seen], slowed: list[Seen]) -> str:
    """What came out, which must be what is claimed."""
    assert len(even) == len(slowed) == RUNS
    accused = [notice for run in even for notice in run.accusations]
    assert not accused, f"in an even run: {accused[0]}"
    for run in slowed:
        named = (run.check.slowest_rank, run.summary.slowest_rank, run.summary.slowest_host)
        assert named == (SLOW_RANK, SLOW_RANK, SLOW_NODE), f"another is named: {run}"
        for words in (AT_START, IN_TRAINING):
            assert any(notice.startswith(words) for notice in run.accusations), f"nobody is told of {words!r}: {run}"
    rows = "\n".join(_row(name, runs) for name, runs in (("even", even), ("held back", slowed)))
    return f"""\
`tests/proofs/slow_rank.yaml` on the two-node test cluster, one rank on each node, half of the runs with
`detailed_timing`: as they are, and with the processes of the run on {SLOW_NODE} stopped for {STOPPED_S * 1000:.0f} ms,
left running for {RUNNING_S * 1000:.0f} ms, and so on. Of the slowest rank's time over the other's, the lowest, the
highest and the median: of the matrix product at the start, and of a step's own work. The rank on {SLOW_NODE} must be
named by both in every run in which it is held back, and nobody in an even one.

| | runs | at the start | own work, detailed | own work, without | runs that accuse |
|---|---|---|---|---|---|
{rows}"""


def _row(name: str, runs: list[Seen]) -> str:
    at_start = _range([run.check.slowest_ratio for run in runs])
    detailed, without = (
        _range([run.summary.slowest_ratio for run in runs if run.detailed == detailed]) for detailed in (True, False)
    )
    accusing = sum(bool(run.accusations) for run in runs)
    return f"| {name} | {len(runs)} | {at_start} | {detailed} | {without} | {accusing} |"


def _range(ratios: list[float | None]) -> str:
    found = [ratio for ratio in ratios if ratio is not None]
    return f"{min(found):.2f} to {max(found):.2f}, {statistics.median(found):.2f}"


def _seen(run_dir: Path) -> Seen:
    (check,) = (each for each in read_records(run_dir / metrics_name(0)) if isinstance(each, CheckRecord))
    summary = from_json(Summary, json.loads((run_dir / SUMMARY_NAME).read_text(encoding="utf-8")))
    return Seen(check, summary)


@contextmanager
def hindered(node: str) -> Iterator[None]:
    """Stops the ranks on a node of the test cluster again and again while the block runs."""
    over = threading.Event()
    thread = threading.Thread(target=_hinder, args=(Path("/run/netns") / f"sweeptest-{node}", over))
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _hinder(network: Path, over: threading.Event) -> None:
    while not over.is_set():
        ranks = _ranks_in(network)
        for _ in range(_LOOK_AGAIN):
            _signal(ranks, signal.SIGSTOP)
            over.wait(STOPPED_S)
            _signal(ranks, signal.SIGCONT)
            over.wait(RUNNING_S)


def _ranks_in(network: Path) -> list[int]:
    """The processes in a network namespace that submitit has started on a node."""
    wanted, found = network.stat().st_ino, []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            words = (process / "cmdline").read_bytes().split(b"\0")
            if b"submitit.core._submit" in words and (process / "ns" / "net").stat().st_ino == wanted:
                found.append(int(process.name))
    return found


def _signal(processes: list[int], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)
