"""sweep collect --group and --sort, and sweep best, as a user sees them."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from jobs.slurm.states import State
from jobs.storage import ledger
from jobs.storage.sweep_folder import SweepFolder
from tests.jobs.command import Sweep, note

SEEDS = """\
name: s
allocations: [1x1]
base: {model: bert, max_steps: 3}
axes: {lr: [1e-5, 2e-5]}
seeds: [1, 2, 3]
"""
ACCURACIES = (0.80, 0.82, 0.81, 0.90, 0.92, None)

pytestmark = pytest.mark.process


@pytest.fixture
def seeds(sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SweepFolder:
    """The folder of a sweep of two learning rates and three seeds, of which the last run failed."""
    (tmp_path / "s.yaml").write_text(SEEDS)
    monkeypatch.setattr("jobs.schedulers.local_scheduler.send_to_local", lambda *_, **__: None)
    assert sweep("submit", "s.yaml", "--cluster", "local").exit_code == 0
    folder = SweepFolder(tmp_path / "runs" / "s" / "local")
    runs = [run["run_id"] for run in folder.planned_runs()]
    ledger.intend(folder.path, runs, 1.0)
    ledger.record(folder.path, {run_id: f"local-1-{index}" for index, run_id in enumerate(runs)}, 1.0)
    note(folder, *(State.COMPLETED if value else State.FAILED for value in ACCURACIES))
    for run_id, value in zip(runs, ACCURACIES, strict=True):
        if value:
            summary = {"steps": 3, "eval_accuracy": value, "eval_loss": 1 - value, "samples_per_s": 100 * value}
            (folder.run(run_id) / "summary.json").write_text(json.dumps(summary))
    return folder


def test_groups_as_table_and_files(sweep: Sweep, seeds: SweepFolder, tmp_path: Path) -> None:
    lines = sweep("collect", "--group").out.splitlines()
    assert lines[0] == "s on local: 6 runs in 2 groups of equal configs"
    assert "0.81 [0.7852, 0.8348]" in lines[4]
    assert lines[4].split()[:2] == ["1x1", "lr=1e-05"]
    assert lines[5].split()[2:5] == ["3", "2", "1"]  # runs, completed, failed
    first, second = csv.DictReader(io.StringIO(sweep("collect", "--group", "--csv").out))
    assert (first["eval_accuracy.count"], second["eval_accuracy.count"], second["eval_accuracy.low"]) == ("3", "2", "")
    groups = json.loads(sweep("collect", "--group", "--json").out)["groups"]
    assert [group["seeds"] for group in groups] == [["1", "2", "3"]] * 2
    assert sweep("collect", "--group", "-o", "g.parquet").out.splitlines()[0] == "wrote g.parquet"
    assert (tmp_path / "g.parquet").read_bytes()[:4] == b"PAR1"


def test_sorted_rows(sweep: Sweep, seeds: SweepFolder) -> None:
    plain = [row["eval_accuracy"] for row in csv.DictReader(io.StringIO(seeds_csv(sweep)))]
    assert plain == ["0.8", "0.82", "0.81", "0.9", "0.92", ""]
    for order, expected in (("eval_accuracy", ["0.8", "0.81", "0.82", "0.9", "0.92", ""]),
                            ("-eval_accuracy", ["0.92", "0.9", "0.82", "0.81", "0.8", ""])):  # fmt: skip
        rows = csv.DictReader(io.StringIO(seeds_csv(sweep, "--sort", order)))
        assert [row["eval_accuracy"] for row in rows] == expected
    assert [row["eval_accuracy"] for row in csv.DictReader(seeds.results_file.open())] == plain
    groups = json.loads(sweep("collect", "--group", "--sort", "-eval_accuracy", "--json").out)["groups"]
    assert [group["lr"] for group in groups] == [2e-5, 1e-5]
    refused = sweep("collect", "--sort", "eval_acuracy")
    assert (refused.exit_code, refused.err) == (
        2, "error: --sort: unknown column 'eval_acuracy' (did you mean eval_accuracy?)\n",
    )  # fmt: skip


def seeds_csv(sweep: Sweep, *options: str) -> str:
    return sweep("collect", "--csv", *options).out


def test_best_group(sweep: Sweep, seeds: SweepFolder) -> None:
    lines = sweep("best", "s", "--by", "eval_accuracy").out.splitlines()
    assert lines[0] == "eval_accuracy, the largest first: 2 of 2 places"
    assert lines[4].split() == ["1", "1x1", "lr=2e-05", "0.91", "2", "of", "3"]
    assert lines[5].split() == ["2", "1x1", "lr=1e-05", "0.81", "0.7852", "to", "0.8348", "3", "of", "3"]
    failed = seeds.planned_runs()[-1]["run_id"]
    assert lines[-1].startswith("without eval_accuracy: FAILED: ")
    assert lines[-1].endswith(f": {failed} (1x1 lr=2e-05 seed=3)")
    only = json.loads(sweep("best", "--by", "eval_loss", "-n", "1", "--json").out)
    assert (only["is_smallest"], [place["label"] for place in only["places"]]) == (True, ["1x1 lr=2e-05"])
    assert sweep("best", "--by", "eval_accuracy", "--min").out.splitlines()[4].split()[2] == "lr=1e-05"


def test_mistakes(sweep: Sweep, seeds: SweepFolder) -> None:
    assert sweep("best", "--by", "lr", "--min", "--max").err == "error: --min and --max are both given (choose one)\n"
    assert sweep("best", "--by", "stat").err.startswith("error: --by: unknown column 'stat' (")
    assert sweep("best").exit_code == 2
    assert sweep("best", "--by", "train_s").out.splitlines()[0] == "no run has train_s"
    refused = sweep("collect", "--group", "--all-columns")
    assert refused.err == "error: --all-columns and --group are both given (a group has the fields that vary)\n"
