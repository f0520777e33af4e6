"""Proof: on the real Slurm, a slowed rank is named as slow in every run, and no rank is named in unslowed runs."""

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

from disttrain.records.record_files import SUMMARY_NAME, metrics_name, read_records, summary_from_json
from disttrain.records.record_types import CheckRecord
from disttrain.records.summary_types import Summary
from tests.proofs.sweeping import cluster_environ, run_sweep

RUNS = 10
# The ranks of one node are stopped and continued alternately: they run half of the time.
STOPPED_S, RUNNING_S = 0.01, 0.01
SLOW_RANK, SLOW_NODE = 1, "node2"
AT_START = f"rank {SLOW_RANK} on {SLOW_NODE} is slow at the start: "
IN_TRAINING = f"rank {SLOW_RANK} on {SLOW_NODE} is slow: "
_TURNS_PER_SEARCH = 20  # stops between two searches for new ranks


@dataclass(frozen=True)
class RankReport:
    """The start check and the summary of one run."""

    check: CheckRecord
    summary: Summary

    @property
    def detailed(self) -> bool:
        return self.summary["exposed_comm_ms"] is not None

    @property
    def slow_notices(self) -> tuple[str, ...]:
        return tuple(notice for notice in self.summary["notices"] if " is slow" in notice)


def prove() -> str:
    """Ten unslowed runs, and ten of the same runs with a slowed rank on one node."""
    return report(observe(slowed=False), observe(slowed=True))


def observe(*, slowed: bool) -> list[RankReport]:
    """Runs the sweep, one run at a time."""
    environ = cluster_environ()
    with tempfile.TemporaryDirectory() as folder:
        profile = Path(folder) / "one_by_one.yaml"
        profile.write_text(f"{Path(environ['SWEEP_CLUSTER']).read_text(encoding='utf-8')}\nmax_running: 1\n")
        with slowed_node(SLOW_NODE) if slowed else contextlib.nullcontext():
            rows, _ = run_sweep(
                "../tests/proofs/slow_rank.yaml", Path(folder), {**environ, "SWEEP_CLUSTER": str(profile)}
            )
        (runs,) = Path(folder).glob("slow-rank/*/runs")
        return [_read(runs / row["run_id"]) for row in rows]


def report(unslowed: list[RankReport], slowed: list[RankReport]) -> str:
    """Checks the results and describes them."""
    assert len(unslowed) == len(slowed) == RUNS
    notices = [notice for run in unslowed for notice in run.slow_notices]
    assert not notices, f"in an unslowed run: {notices[0]}"
    for run in slowed:
        named = (run.check.slowest_rank, run.summary["slowest_rank"], run.summary["slowest_host"])
        assert named == (SLOW_RANK, SLOW_RANK, SLOW_NODE), f"another rank is named: {run}"
        for text in (AT_START, IN_TRAINING):
            assert any(notice.startswith(text) for notice in run.slow_notices), f"no notice says {text!r}: {run}"
    rows = "\n".join(_row(name, runs) for name, runs in (("unslowed", unslowed), ("slowed", slowed)))
    return f"""\
`tests/proofs/slow_rank.yaml` runs on the two-node test cluster, with one rank on each node. Half of the runs use
`detailed_timing`. The unslowed runs are not changed. In the slowed runs, the processes on {SLOW_NODE} are stopped for
{STOPPED_S * 1000:.0f} ms and continued for {RUNNING_S * 1000:.0f} ms, alternately. The table has the time of the
slowest rank divided by that of the other rank: minimum to maximum, and median. It has this ratio for the matrix product
at the start, and for a step's own work. Both checks must name the rank on {SLOW_NODE} in every slowed run, and no
rank in an unslowed run.

| | runs | at the start | own work, detailed | own work, not detailed | runs with a notice |
|---|---|---|---|---|---|
{rows}"""


def _row(name: str, runs: list[RankReport]) -> str:
    at_start = _range([run.check.slowest_ratio for run in runs])
    detailed, without = (
        _range([run.summary["slowest_ratio"] for run in runs if run.detailed == detailed]) for detailed in (True, False)
    )
    with_notice = sum(bool(run.slow_notices) for run in runs)
    return f"| {name} | {len(runs)} | {at_start} | {detailed} | {without} | {with_notice} |"


def _range(ratios: list[float | None]) -> str:
    known = [ratio for ratio in ratios if ratio is not None]
    return f"{min(known):.2f} to {max(known):.2f}, {statistics.median(known):.2f}"


def _read(run_dir: Path) -> RankReport:
    records = read_records(run_dir / metrics_name(0))
    (check,) = (record for record in records if isinstance(record, CheckRecord))
    summary = summary_from_json(json.loads((run_dir / SUMMARY_NAME).read_text(encoding="utf-8")))
    return RankReport(check, summary)


@contextmanager
def slowed_node(node: str) -> Iterator[None]:
    """Stops and continues the ranks on a node of the test cluster repeatedly while the block runs."""
    finished = threading.Event()
    thread = threading.Thread(target=_stop_and_continue, args=(Path("/run/netns") / f"sweeptest-{node}", finished))
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()


def _stop_and_continue(network: Path, finished: threading.Event) -> None:
    while not finished.is_set():
        ranks = _ranks_in(network)
        for _ in range(_TURNS_PER_SEARCH):
            _signal(ranks, signal.SIGSTOP)
            finished.wait(STOPPED_S)
            _signal(ranks, signal.SIGCONT)
            finished.wait(RUNNING_S)


def _ranks_in(network: Path) -> list[int]:
    """The processes in a network namespace that submitit started on a node."""
    namespace, ranks = network.stat().st_ino, []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # the process has ended
            arguments = (process / "cmdline").read_bytes().split(b"\0")
            if b"submitit.core._submit" in arguments and (process / "ns" / "net").stat().st_ino == namespace:
                ranks.append(int(process.name))
    return ranks


def _signal(processes: list[int], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)
