"""What a rank reports to rank 0 at the end of its script."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from disttrain.analysis.run_summary import Sums
from disttrain.errors import STOPPED_STATUS
from disttrain.records.rank_types import RankTelemetry
from disttrain.records.record_files import from_json
from disttrain.records.script_metrics import ScriptMetrics
from disttrain.records.start_types import StartRecord


@dataclass(frozen=True)
class RankFigures:
    """What a rank contributes to the summary.

    Attributes:
        start: The record of its start.
        sums: Its part of the sums over all ranks.
        telemetry: The figures of its GPU.
    """

    start: StartRecord
    sums: Sums
    telemetry: RankTelemetry


@dataclass(frozen=True)
class Report:
    """The end of one script.

    Attributes:
        status: Its exit status, negative for a signal.
        warned: Whether it was warned of the end of the job.
        terminated: Whether it was asked to end.
        ranks: The figures of its ranks: one, or all of a node if torchrun has started them.
        metrics: What it has logged.
    """

    status: int
    warned: bool
    terminated: bool
    ranks: tuple[RankFigures, ...] = ()
    metrics: ScriptMetrics = field(default_factory=ScriptMetrics)

    @property
    def stopped(self) -> bool:
        """Whether the script has saved its state, and asks to be started again."""
        return self.status == STOPPED_STATUS

    @property
    def failed(self) -> bool:
        """Whether the run has failed by this report alone.

        A script that Slurm has asked to end, and that had nothing to save, has not: another rank may be saving.
        """
        if self.terminated and self.status in (-signal.SIGTERM, 128 + signal.SIGTERM):
            return False
        return self.status not in (0, STOPPED_STATUS)

    def to_message(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {"kind": "report", **dataclasses.asdict(self)}

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> Report:
        """The report in a message of the same release."""
        return cls(
            status=message["status"],
            warned=message["warned"],
            terminated=message["terminated"],
            ranks=tuple(
                RankFigures(
                    from_json(StartRecord, rank["start"]),
                    Sums(**rank["sums"]),
                    RankTelemetry(**rank["telemetry"]),
                )
                for rank in message["ranks"]
            ),
            metrics=ScriptMetrics(**message["metrics"]),
        )
