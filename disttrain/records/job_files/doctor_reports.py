"""What a job of `sweep doctor` is asked, and what each of its ranks reports; both are JSON files in one folder."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from disttrain.records.atomic_write import write_text
from disttrain.records.json_values import damaged, to_json
from disttrain.records.record_files import from_json, read_as

REQUEST_NAME = "request.json"

# The stages of a rank, in their order. A rank that hangs shows by its stage where.
Stage = Literal["starting", "importing", "waiting", "connecting", "computing", "exchanging", "done"]


def report_name(rank: int) -> str:
    """The name of the file with a rank's report.

    Example:
        >>> report_name(3)
        'rank00003.json'
    """
    return f"rank{rank:05d}.json"


@dataclass(frozen=True, kw_only=True)
class DoctorRequest:
    """What the ranks of a job check.

    Attributes:
        device: The device on which they compute: auto, cuda or cpu.
        models: The hub ids of the models and tokenizers that a run needs.
        datasets: The hub ids of the data sets that a run needs.
        pinned: The commit that `sweep prefetch` has pinned, by hub id.
    """

    device: str = "auto"
    models: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    pinned: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RankReport:
    """What one rank has found so far. It writes its report again at each stage. What it has not measured is None.

    Attributes:
        rank: Its rank.
        host: The name of its host.
        time_s: The time of its host's clock when it wrote this report, in seconds since 1970.
        stage: The stage that it began last.
        python: Its Python interpreter.
        versions: The versions of Python and of the packages.
        variables: The variables of its environment that may change the run, by name.
        hub: What is known of each hub id: cached, reachable, or why it cannot be had.
        import_s: The time of `import torch`.
        missing_ranks: The ranks whose files it did not see.
        device: The GPU or CPU with which it computed.
        device_error: Why it has no GPU although it should have one.
        clock_ahead_s: The clock of its host minus that of rank 0.
        product_ms: The time of a matrix product in each round.
        product_gflop: The operations of one product.
        wrong: The operations with a wrong result.
        backend: nccl or gloo.
        transport: What the ranks exchange data over.
        interface: The network interface towards the other hosts.
        interface_mbits: The active network interfaces and their speed in Mbit/s.
        ib_gbits: The adapters of InfiniBand or RoCE with an active port, and their rate in Gbit/s.
        latency_ms: The time of the smallest all-reduce.
        link_gb_per_s: The bus bandwidth of the largest all-reduce, in 10^9 bytes/s.
        error: Why it ended early.
    """

    rank: int
    host: str
    time_s: float
    stage: Stage = "starting"
    python: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    hub: dict[str, str] = field(default_factory=dict)
    import_s: float | None = None
    missing_ranks: tuple[int, ...] = ()
    device: str | None = None
    device_error: str | None = None
    clock_ahead_s: float | None = None
    product_ms: tuple[float, ...] = ()
    product_gflop: float | None = None
    wrong: tuple[str, ...] = ()
    backend: str | None = None
    transport: str | None = None
    interface: str | None = None
    interface_mbits: dict[str, int] = field(default_factory=dict)
    ib_gbits: dict[str, float] = field(default_factory=dict)
    latency_ms: float | None = None
    link_gb_per_s: float | None = None
    error: str | None = None


def write_request(folder: Path, request: DoctorRequest) -> None:
    """Writes the request of a job."""
    write_text(folder / REQUEST_NAME, to_json(dataclasses.asdict(request)))


def read_request(folder: Path) -> DoctorRequest:
    """The request of a job.

    Raises:
        DamagedFile: It is missing or cannot be used.
    """
    request = read_as(folder / REQUEST_NAME, lambda values: from_json(DoctorRequest, values))
    if request is None:
        raise damaged(folder / REQUEST_NAME, "it does not exist")
    return request


def write_report(folder: Path, report: RankReport) -> None:
    """Writes the report of a rank."""
    write_text(folder / report_name(report.rank), to_json(dataclasses.asdict(report)))


def read_report(folder: Path, rank: int) -> RankReport | None:
    """The report of a rank; None if there is none.

    Raises:
        DamagedFile: It cannot be used.
    """
    return read_as(folder / report_name(rank), lambda values: from_json(RankReport, values))
