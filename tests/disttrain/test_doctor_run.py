"""Ranks of the doctor's job: they report each stage, and do not wait for a rank that cannot come."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from disttrain import doctor_run
from disttrain.doctor_run import run_doctor
from disttrain.environment.rank_env import RankEnv
from disttrain.records.job_files.doctor_reports import (
    DoctorRequest,
    RankReport,
    read_report,
    write_report,
    write_request,
)

Ranks = Callable[..., list[RankReport | None]]


@pytest.fixture
def ranks(forks: Any, tmp_path: Path) -> Ranks:
    """Runs a target for each of these ranks, and returns the reports."""

    def start(
        *numbers: int, world_size: int = 2, target: Callable[..., object] = run_doctor
    ) -> list[RankReport | None]:
        write_request(tmp_path, DoctorRequest(device="cpu"))
        job_id = uuid.uuid4().hex
        processes = [
            forks.Process(
                target=target,
                args=(
                    tmp_path,
                    RankEnv(
                        rank=rank, world_size=world_size, local_rank=rank, local_world_size=world_size, job_id=job_id,
                        launcher="submitit-local",
                    ),
                    3.0,
                ),
            )
            for rank in numbers
        ]  # fmt: skip
        for process in processes:
            process.start()
        for process in processes:
            process.join(60.0)
            assert process.exitcode == 0
        return [read_report(tmp_path, rank) for rank in numbers]

    return start


def other_torch(folder: Path, env: RankEnv, seen_within_s: float) -> None:
    """A rank that finds another torch, if it is rank 1."""
    import torch

    if env.rank == 1:
        torch.__version__ = "2.0.0"  # type: ignore[assignment]
    run_doctor(folder, env, seen_within_s)


def broken_torch(folder: Path, env: RankEnv, seen_within_s: float) -> None:
    """A rank that cannot import torch, if it is rank 1."""

    def fail(_: Any) -> None:
        raise ImportError("libcudart.so.99: cannot open shared object file")

    if env.rank == 1:
        doctor_run._import_torch = fail  # type: ignore[assignment]
    run_doctor(folder, env, seen_within_s)


def test_two_ranks_measure(ranks: Ranks) -> None:
    first, second = ranks(0, 1)
    assert first is not None
    assert second is not None
    for report in (first, second):
        assert (report.stage, report.error, report.wrong, report.missing_ranks) == ("done", None, (), ())
        assert (report.backend, report.transport, report.interface) == ("gloo", "one host", None)
        assert report.import_s is not None
        assert len(report.product_ms) == 8
        assert report.product_gflop == pytest.approx(0.268, rel=0.01)
        assert report.link_gb_per_s is not None
        assert abs(report.clock_ahead_s or 0.0) < 1
    assert first.versions == second.versions
    assert "torch" in first.versions


def test_one_rank_has_no_link(ranks: Ranks) -> None:
    (report,) = ranks(0, world_size=1)
    assert report is not None
    assert (report.stage, report.backend, report.link_gb_per_s) == ("done", None, None)
    assert len(report.product_ms) == 1


def test_rank_that_does_not_come_is_named(ranks: Ranks) -> None:
    (report,) = ranks(0)
    assert report is not None
    assert (report.missing_ranks, report.error) == ((1,), "it did not see the files of these ranks within 3 s: (1,)")


def test_ranks_with_another_torch_do_not_connect(ranks: Ranks) -> None:
    first, second = ranks(0, 1, target=other_torch)
    assert first is not None
    assert second is not None
    assert (first.stage, second.stage, second.versions["torch"]) == ("waiting", "waiting", "2.0.0")


def test_failed_import_is_reported_by_its_rank(ranks: Ranks) -> None:
    first, second = ranks(0, 1, target=broken_torch)
    assert first is not None
    assert second is not None
    assert second.error == "ImportError: libcudart.so.99: cannot open shared object file"
    assert (second.stage, first.stage, first.error) == ("importing", "waiting", None)


def test_gpu_that_torch_does_not_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_request(tmp_path, DoctorRequest(device="cuda"))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    run_doctor(tmp_path, RankEnv())
    report = read_report(tmp_path, 0)
    assert report is not None
    assert report.device_error is not None
    assert report.device_error.startswith("device is 'cuda', but torch ")
    assert report.stage == "done"


def test_secret_variables_are_not_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("NCCL_IB_DISABLE", "1")
    report = doctor_run._first_report(RankEnv(), {"HF_TOKEN": "secret", "NCCL_IB_DISABLE": "1"})
    assert report.variables == {"NCCL_IB_DISABLE": "1"}
    write_report(tmp_path, report)
    assert read_report(tmp_path, 0) == report
