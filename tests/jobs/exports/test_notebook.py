"""The example notebook runs as it is, on a sweep that has results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.slurm.states import State
from jobs.storage.sweep_folder import SweepFolder
from tests.jobs.command import note

NOTEBOOK = Path(__file__).parents[3] / "docs" / "notebooks" / "results.ipynb"

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")


@pytest.mark.process
def test_notebook_runs(submitted: SweepFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    note(submitted, State.COMPLETED, State.COMPLETED)
    for speed, run in enumerate(submitted.planned_runs(), start=100):
        summary = {"steps": 3, "samples_per_s": float(speed), "eval_accuracy": 0.5}
        (submitted.run(run["run_id"]) / "summary.json").write_text(json.dumps(summary))
    monkeypatch.setenv("NOTEBOOK_SWEEP", str(submitted.path))
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[2]))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert all(not cell.outputs for cell in notebook.cells if cell.cell_type == "code")
    client = nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    texts = [output["data"]["text/plain"] for cell in notebook.cells for output in cell.get("outputs", ())]
    assert "100.0" in texts[0]
    assert "2x1" in texts[1]
    assert (tmp_path / "samples_per_s.svg").read_text().startswith("<?xml")
