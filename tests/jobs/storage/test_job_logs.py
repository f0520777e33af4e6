"""The log files of a job, for Slurm and for the local executor."""

from __future__ import annotations

import io
from pathlib import Path

from jobs.storage.job_logs import LogPrinter, log_files


def test_files_of_one_rank(tmp_path: Path) -> None:
    """Neither those of rank 11, nor those of another task or job."""
    for name in ("7_1_log.out", "7_1_log.err", "7_11_log.out", "7_1_1_log.out", "17_1_log.out", "7_1_result.pkl"):
        (tmp_path / name).touch()
    assert [path.name for path in log_files(tmp_path, "7", 1)] == ["7_1_log.out", "7_1_log.err"]
    assert [path.name for path in log_files(tmp_path, "7_1", 1)] == ["7_1_1_log.out"]
    assert log_files(tmp_path, "8", 0) == []


def test_files_of_a_local_job(tmp_path: Path) -> None:
    (tmp_path / "local-1-0").mkdir()
    for name in ("4321_1_log.err", "4321_1_log.out", "4321_11_log.out"):
        (tmp_path / "local-1-0" / name).touch()
    assert [path.name for path in log_files(tmp_path, "local-1-0", 1)] == ["4321_1_log.out", "4321_1_log.err"]


def test_only_new_bytes_are_printed(tmp_path: Path) -> None:
    out, err, output = tmp_path / "out", tmp_path / "err", io.BytesIO()
    printer = LogPrinter(output)
    out.touch()
    printer.print_new([out])
    assert printer.is_empty
    out.write_bytes(b"one\n\xff")
    err.write_bytes(b"wrong\n")
    printer.print_new([out, err])
    printer.print_new([out, err])
    with err.open("ab") as file:
        file.write(b"again\n")
    printer.print_new([out, err])
    heading = f"==> {out} <==\none\n".encode() + b"\xff\n\n" + f"==> {err} <==\n".encode()
    assert output.getvalue() == heading + b"wrong\nagain\n"
