"""The log files of a job, and what is appended to them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

_CHUNK_BYTES = 2**20


def log_files(logs: Path, job_id: str, rank: int) -> list[Path]:
    """The log files of a rank that exist: first that of stdout, then that of stderr.

    Slurm has one log folder for all jobs, the local executor has one for each job. Each attempt of a job appends to the
    same files.

    Args:
        logs: The folder of the sweep's logs.
        job_id: The id of the job.
        rank: The rank.
    """
    found: list[Path] = []
    for stream in ("out", "err"):
        for pattern in (f"{job_id}_{rank}_log.{stream}", f"{job_id}/*_{rank}_log.{stream}"):
            found += sorted(logs.glob(pattern))
    return found


class LogPrinter:
    """Prints files from their beginning, and later what was appended.

    Args:
        output: Where it prints. The bytes of a log stay as they are.
        headings: Whether a heading names each file, as with tail.
    """

    def __init__(self, output: BinaryIO, *, headings: bool = True) -> None:
        self._output = output
        self._headings = headings
        self._positions: dict[Path, int] = {}
        self._last: Path | None = None  # the file that was printed last
        self._in_line = False

    @property
    def is_empty(self) -> bool:
        """Whether nothing was printed."""
        return self._last is None

    def print_new(self, paths: Sequence[Path]) -> None:
        """Prints what these files have and was not printed before.

        Raises:
            OSError: A file cannot be read, or the output cannot be written.
        """
        for path in paths:
            # Opened again each time: a shared file system shows what another host has written when a file is opened.
            with path.open("rb") as file:
                file.seek(self._positions.get(path, 0))
                while chunk := file.read(_CHUNK_BYTES):
                    self._begin(path)
                    self._output.write(chunk)
                    self._in_line = not chunk.endswith(b"\n")
                self._positions[path] = file.tell()
        self._output.flush()

    def _begin(self, path: Path) -> None:
        """Prints the heading of a file, unless its lines were the last ones."""
        if path == self._last:
            return
        if self._headings and self._last is not None:
            self._output.write(b"\n\n" if self._in_line else b"\n")
        if self._headings:
            self._output.write(f"==> {path} <==\n".encode(errors="surrogateescape"))
        self._last = path
