"""`sweep doctor`: what it prints, its exit status, and its jobs on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.doctor.finding import Finding, Level
from tests.jobs.command import Sweep


def test_this_machine_is_checked_without_a_job(sweep: Sweep, tmp_path: Path) -> None:
    output = sweep("doctor", "--cluster", "local", "--no-job")
    assert (output.exit_code, output.err) == (0, "")
    locks, disk, _, end = output.out.splitlines()
    assert locks == f"ok    locks          locks hold in {tmp_path}/runs"
    assert disk.startswith(f"ok    disk           {tmp_path}/runs has ")
    assert end == "nothing would fail"
    assert list((tmp_path / "runs").iterdir()) == []


def test_sweep_that_does_not_fit_fails(sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.doctor.wanted._RECORDS_BYTES", 10**18)
    output = sweep("doctor", "s.yaml", "--cluster", "local", "--no-job", "--json")
    assert output.exit_code == 1
    answer = json.loads(output.out)
    assert answer["cluster"] == "local"
    (failed,) = (finding for finding in answer["findings"] if finding["level"] == "fail")
    assert failed["check"] == "disk"
    assert "the sweep writes about 2e+09 GB" in failed["text"]
    assert failed["fix"].startswith("choose another folder with --root")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--cluster", "debug"), "error: --cluster debug has nothing to check (choose local or a cluster profile)\n"),
        (
            ("--cluster", "slurm"),
            "error: cluster 'slurm' needs Slurm, and sbatch is not on PATH (submit from a login node, or try --cluster"
            " local)\n",
        ),
        (
            ("s.yaml", "4"),
            "error: '4' is not KEY=VALUE (after FILE, an argument sets a field under base: max_steps=3)\n",
        ),
    ],
)
def test_mistakes_are_one_line(sweep: Sweep, arguments: tuple[str, ...], message: str) -> None:
    output = sweep("doctor", *arguments)
    assert (output.exit_code, output.out, output.err) == (2, "", message)


def test_nodes_at_fault_are_one_line_at_the_end(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    findings = [
        Finding(Level.WARN, "clock", "the clock of n2 is late", "ask", ("n2",)),
        Finding(Level.WARN, "computing", "rank 3 is slow", "exclude it", ("n3",)),
    ]
    monkeypatch.setattr("jobs.doctor.diagnosis.diagnose", lambda *_, **__: iter(findings))
    output = sweep("doctor", "--cluster", "local")
    assert output.exit_code == 0  # nothing would fail
    assert output.out.splitlines() == [
        "warn  clock          the clock of n2 is late",
        "                     fix: ask",
        "warn  computing      rank 3 is slow",
        "                     fix: exclude it",
        "",
        "0 would fail, 2 to look at",
        'without these nodes: sbatch: {exclude: "n2,n3"}',
    ]


@pytest.mark.process
def test_jobs_on_this_machine(sweep: Sweep, tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text("name: two\nallocations: [2x1]\nbase: {model: bert, device: cpu, dataset: .}\n")
    output = sweep("doctor", "two.yaml", "checkpoint=.", "--cluster", "local")
    assert output.exit_code == 0, output
    (job,) = (line for line in output.out.splitlines() if " job 2x1 " in line)
    assert "; torch " in job
    assert " GB/s over one host" in job
    assert list((tmp_path / "runs" / ".doctor").iterdir()) == []
