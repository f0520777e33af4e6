"""The notices in the summary of a run."""

from __future__ import annotations

from collections.abc import Sequence

from disttrain.analysis.straggler import Straggler
from disttrain.records.record_types import CheckpointRecord, Record, StartRecord, StepRecord, TelemetryRecord


def run_notices(records: Sequence[Record]) -> tuple[str, ...]:
    """The notices of the start records, each once, and the problems that did not end the run.

    Args:
        records: All records of one rank.
    """
    starts = [record for record in records if isinstance(record, StartRecord)]
    return (
        *dict.fromkeys(notice for start in starts for notice in start.notices),
        *_divergence(records),
        *_failed_checkpoints(records),
        *_incomplete_samples(records),
    )


def _divergence(records: Sequence[Record]) -> tuple[str, ...]:
    for record in records:
        if isinstance(record, StepRecord) and record.examples and record.loss is None:
            return (f"the training loss is not finite from step {record.step} on",)
    return ()


def _failed_checkpoints(records: Sequence[Record]) -> tuple[str, ...]:
    failed = [record for record in records if isinstance(record, CheckpointRecord) and record.error is not None]
    if not failed:
        return ()
    last = failed[-1]
    return (f"{len(failed)} checkpoints could not be written; the last one, at step {last.step}: {last.error}",)


def _incomplete_samples(records: Sequence[Record]) -> tuple[str, ...]:
    failed = [record for record in records if isinstance(record, TelemetryRecord) and record.error is not None]
    if not failed:
        return ()
    return (f"telemetry: {len(failed)} samples are incomplete; the last error: {failed[-1].error}",)


def slow_rank_notices(straggler: Straggler | None, hosts: tuple[str, ...]) -> tuple[str, ...]:
    """A notice if a rank is slow.

    Args:
        straggler: The rank whose own work takes longest.
        hosts: The host of each rank, by rank.
    """
    if straggler is None or not straggler.is_slow:
        return ()
    return (
        f"rank {straggler.rank} on {hosts[straggler.rank]} is slow:"
        f" its own work takes {straggler.ratio:.2f} times as long as that of the others",
    )
