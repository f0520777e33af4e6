"""The summary of a run that is the user's script, from the reports of all ranks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from disttrain.analysis.run_summary import Sums, summarise
from disttrain.command.report import RankFigures, Report
from disttrain.records.record_types import Record
from disttrain.records.script_metrics import merge_ranks
from disttrain.records.start_types import StartRecord
from disttrain.records.summary_types import Summary


def summarise_reports(records: Sequence[Record], reports: Mapping[int, Report], num_nodes: int) -> Summary:
    """The summary of a run whose scripts have all ended.

    Args:
        records: All records of rank 0.
        reports: The report of each process, by its rank.
        num_nodes: The number of nodes of the allocation.
    """
    ranks = [rank for _, report in sorted(reports.items()) for rank in report.ranks]
    starts = [rank.start for rank in ranks]
    hosts = tuple(start.host for start in starts)
    shared_gpu = len(_boards(starts)) < sum(start.gpu_uuid is not None for start in starts)
    summary = summarise(
        [_noting_shared_gpus(record, shared_gpu=shared_gpu) for record in records],
        _sum(ranks),
        [[] for _ in hosts],
        startups=[],
        hosts=hosts,
        num_nodes=num_nodes,
        warmup_steps=0,
        starts=starts,
        telemetry=[rank.telemetry for rank in ranks],
    )
    metrics = merge_ranks({rank: report.metrics for rank, report in reports.items()})
    notices = (*summary["notices"], *metrics.notices())
    if any(report.warned for report in reports.values()):
        notices += ("the script ended with status 0 after the warning of the end of its job: 85 would resume it",)
    return {**summary, **metrics.figures(len(ranks)), "notices": notices}


def _boards(starts: Sequence[StartRecord]) -> set[tuple[str, str]]:
    return {(start.host, start.gpu_uuid) for start in starts if start.gpu_uuid is not None}


def _noting_shared_gpus(record: Record, *, shared_gpu: bool) -> Record:
    if isinstance(record, StartRecord) and shared_gpu:
        return dataclasses.replace(record, shared_gpu=True)
    return record


def _sum(ranks: Sequence[RankFigures]) -> Sums:
    """The sums over all ranks; the energy of a GPU that several ranks use counts once."""
    energy_j, known, counted = 0.0, 0.0, set()
    for rank in ranks:
        board = (rank.start.host, rank.start.gpu_uuid)
        if board in counted:
            known += 1.0
            continue
        if rank.start.gpu_uuid is not None:
            counted.add(board)
        energy_j += rank.sums.energy_j
        known += rank.sums.energy_ranks
    return Sums(0.0, 0.0, 0.0, energy_j=energy_j, energy_ranks=known)
