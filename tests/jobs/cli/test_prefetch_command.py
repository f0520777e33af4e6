"""sweep prefetch: its options, and what it does where no download is needed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.jobs.command import Sweep


def test_options_of_a_job_need_one(sweep: Sweep) -> None:
    output = sweep("prefetch", "s.yaml", "--here", "--partition", "cpu")
    assert (output.exit_code, output.out) == (2, "")
    assert output.err == "error: --partition cpu changes a job, and --here needs none (leave one of them out)\n"
    output = sweep("prefetch", "s.yaml", "--cluster", "local", "--time", "10")
    assert output.err == "error: cluster 'local' has no Slurm, so --time 10 would change nothing (leave it out)\n"
    output = sweep("prefetch", "s.yaml", "--cluster", "debug")
    assert output.err == "error: --cluster debug does not use prefetched inputs (choose another cluster)\n"


def test_what_a_script_reads_is_not_known(sweep: Sweep, tmp_path: Path) -> None:
    (tmp_path / "train.py").touch()
    (tmp_path / "c.yaml").write_text("name: c\nallocations: [1x1]\ncommand: python train.py\naxes: {lr: [1, 2]}\n")
    output = sweep("prefetch", "c.yaml", "--cluster", "local")
    assert (output.exit_code, output.out) == (0, "nothing to fetch: no run trains a model of ours\n")
    assert output.err == "note: 2 runs of a command skipped: sweep prefetch cannot know what your script reads\n"
    assert not (tmp_path / "runs").exists()


@pytest.mark.process
def test_the_interpreter_of_the_ranks_fetches(sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the lines of setup, on this host; a process that ends without an outcome is an error."""
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    python = tmp_path / "python"
    outcome = tmp_path / "runs" / "s" / "site" / "prefetch" / "outcome.json"
    lines = [f'echo "$A $*" > {tmp_path}/asked', '[ -z "$B" ] || exit 3', f"echo '{{\"fetched\": 1}}' > {outcome}"]
    python.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    python.chmod(0o755)
    (tmp_path / "site.yaml").write_text(f"python: {python}\nsetup: [export A=set]\n")
    output = sweep("prefetch", "s.yaml", "--cluster", "./site.yaml", "--here")
    assert output.exit_code == 0, output.err
    assert (tmp_path / "asked").read_text() == f"set -P -u -m disttrain.prefetch_run {tmp_path}/runs/s/site\n"
    assert output.out.splitlines() == [
        "1 input of 2 runs: model google-bert/bert-base-uncased, dataset stanfordnlp/imdb",
        "all inputs are complete and the revisions are pinned: sweep submit sends runs that do not ask the hub",
    ]
    monkeypatch.setenv("B", "broken")
    output = sweep("prefetch", "s.yaml", "--cluster", "./site.yaml", "--here")
    assert output.exit_code == 2
    assert output.err.startswith("error: the process that fetches ended with status 3 (its error is above")
