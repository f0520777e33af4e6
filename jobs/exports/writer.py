"""What the writer of a tool is, and which tools there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from disttrain.errors import UserError
from jobs.exports.points import Point


class Tool(StrEnum):
    """A tool to which runs are exported; the extra of the same name installs it."""

    TENSORBOARD = "tensorboard"
    WANDB = "wandb"
    TRACKIO = "trackio"
    MLFLOW = "mlflow"


@dataclass(frozen=True)
class ExportedRun:
    """A run as a tool has it.

    Attributes:
        run_id: The id of the run.
        name: Its label, and its id if another run has the same label.
        sweep: The name of its sweep, which is its group.
        cluster: The name of the cluster.
        config: The values of its config.
    """

    run_id: str
    name: str
    sweep: str
    cluster: str
    config: Mapping[str, Any]

    @property
    def tags(self) -> dict[str, str]:
        return {"sweep": self.sweep, "cluster": self.cluster, "run_id": self.run_id}


@dataclass(frozen=True)
class Target:
    """Where an export goes.

    Attributes:
        folder: The folder of the tool's files.
        online: Whether wandb sends to its server.
        tracking_uri: The address of an mlflow server; None for files in the folder.
    """

    folder: Path
    online: bool = False
    tracking_uri: str | None = None


class Writer(Protocol):
    """Writes the points of one run for a tool.

    Attributes:
        handle: What names the run in the tool the next time; None if its own id does.
    """

    handle: str | None

    def write(self, points: Sequence[Point]) -> None:
        """Writes some points; they are stored when it returns, or when the writer is closed."""

    def close(self, succeeded: bool | None, /) -> None:
        """Ends the export of the run.

        Args:
            succeeded: Whether the run ended with success; None if it has not ended.
        """


# Opens the writer of a run: its target, the run, and its handle from an earlier export.
OpenWriter = Callable[[Target, ExportedRun, str | None], Writer]


def writer_of(tool: Tool) -> OpenWriter:
    """The function that opens a writer of a tool. The tool is loaded when a writer is opened.

    Raises:
        UserError: The tool is not installed.
    """
    if find_spec(tool.value) is None:
        hint = f"in the checkout: pip install '.[{tool}]'"
        raise UserError(f"{tool} is not installed", where="--to", hint=hint)
    opened: OpenWriter = import_module(f"jobs.exports.{tool}_writer").open_writer
    return opened
