"""The formats of the results: one schema, and the same DataFrame from the sweep and from each file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from disttrain.errors import UserError
from jobs.analysis.group_output import groups_to_csv, groups_to_json
from jobs.analysis.seeds import group_by_seed, group_rows
from jobs.exports.data_frame import data_frame
from jobs.exports.parquet import parquet_bytes, read_parquet
from jobs.exports.results_file import read_results
from jobs.exports.schema import Kind, kind_of_type, typed
from jobs.results import load_results
from jobs.results.result import COLUMNS, Result
from jobs.results.tables import to_csv, to_json
from jobs.slurm.states import State
from jobs.storage.sweep_folder import SweepFolder
from tests.jobs.command import Sweep, note
from tests.jobs.results.rows import make_result

pandas = pytest.importorskip("pandas")
NAN = float("nan")


def run(lr: float, seed: int, **columns: Any) -> Result:
    varied = {"lr": lr, "seed": seed, "model": "a,b", "freeze": seed == 1, "head": {"size": seed}, "note": None}
    return make_result(f"1x1-{lr}{seed}", f"1x1 lr={lr} seed={seed}", varied=varied, state="COMPLETED", **columns)


ROWS = [
    run(
        0.1, 1, elapsed_s=10, samples_per_s=1 / 3, hosts=("n1", "n2"), model_changes=(), comparable=True,
        versions={"torch": "2.8"}, not_comparable=("ranks shared a GPU",), reason='"quoted", and\na line',
        metrics={"loss": {"last": 0.25, "best": 0.125, "mean": 1e-300}},
    ),
    run(0.2, 2, elapsed_s=None, samples_per_s=NAN, hosts=("n3",), comparable=False, gpu_hours=0.1),
]  # fmt: skip


def written(rows: list[Result], folder: Path) -> list[Path]:
    """The rows in each format."""
    (folder / "r.csv").write_text(to_csv(rows))
    (folder / "r.json").write_text(to_json(rows, "s", "c"))
    (folder / "r.parquet").write_bytes(parquet_bytes(typed([row.columns() for row in rows])))
    return [folder / "r.csv", folder / "r.json", folder / "r.parquet"]


def test_schema_of_the_three_formats_agrees(tmp_path: Path) -> None:
    expected = typed([row.columns() for row in ROWS])
    for path in written(ROWS, tmp_path):
        table = read_parquet(path) if path.suffix == ".parquet" else read_results(path)
        kinds, rows = dict(table.kinds), [dict(row) for row in table.rows]
        if path.suffix == ".csv":  # it does not say that a text is JSON
            assert kinds["head"] is Kind.TEXT
            kinds["head"] = Kind.JSON
        assert list(kinds) == list(expected.kinds)
        assert kinds == dict(expected.kinds), path.suffix
        assert rows == [dict(row) for row in expected.rows], path.suffix


def test_every_column_has_the_type_of_its_definition() -> None:
    kinds = typed([row.columns() for row in ROWS]).kinds
    assert {name: kinds[name] for name in COLUMNS} == {
        figure.name: kind_of_type(figure.type) for figure in COLUMNS.values()
    }
    assert {name: kinds[name].value for name in ("lr", "seed", "model", "freeze", "head", "metrics.loss")} == {
        "lr": "float64", "seed": "int64", "model": "string", "freeze": "bool", "head": "JSON text",
        "metrics.loss": "float64",
    }  # fmt: skip
    assert {kinds["elapsed_s"], kinds["hosts"], kinds["versions"]} == {Kind.INT, Kind.TEXTS, Kind.JSON}


def test_files_give_equal_frames(tmp_path: Path) -> None:
    frames = [load_results(path) for path in written(ROWS, tmp_path)]
    assert str(frames[0]["elapsed_s"].dtype) == "Int64"
    assert frames[0]["samples_per_s"].tolist()[0] == 1 / 3
    assert frames[0]["hosts"].tolist() == [["n1", "n2"], ["n3"]]
    for frame in frames[:2]:
        pandas.testing.assert_frame_equal(frame, frames[2])


def test_other_readers_open_parquet(tmp_path: Path) -> None:
    *_, path = written(ROWS, tmp_path)
    frame = pandas.read_parquet(path)
    assert list(frame["run_id"]) == [row.run_id for row in ROWS]
    assert (frame["lr"].dtype, list(frame["hosts"][0])) == ("float64", ["n1", "n2"])
    assert json.loads(frame["versions"][0]) == {"torch": "2.8"}


def test_groups_have_one_schema_too(tmp_path: Path) -> None:
    rows = group_rows(group_by_seed([run(0.1, seed, elapsed_s=seed, eval_loss=0.5) for seed in (1, 2, 3)]))
    (tmp_path / "g.csv").write_text(groups_to_csv(rows))
    (tmp_path / "g.json").write_text(groups_to_json(rows, "s", "c"))
    (tmp_path / "g.parquet").write_bytes(parquet_bytes(typed(rows)))
    frames = [load_results(tmp_path / f"g.{ending}") for ending in ("csv", "json", "parquet")]
    assert (frames[0]["elapsed_s"].dtype, str(frames[0]["elapsed_s.count"].dtype)) == ("float64", "Int64")
    for frame in frames[:2]:
        pandas.testing.assert_frame_equal(frame, frames[2])


@pytest.mark.process
def test_frame_of_a_sweep(sweep: Sweep, submitted: SweepFolder, tmp_path: Path) -> None:
    note(submitted, State.COMPLETED, State.FAILED)
    frame = load_results("s")
    assert frame["state"].tolist() == ["COMPLETED", "FAILED"]
    assert frame["steps"].tolist()[0] == 3
    pandas.testing.assert_frame_equal(frame, load_results("s", cluster="local", root=tmp_path / "runs", ask=True))
    assert sweep("collect", "s", "-o", "all.parquet").out.splitlines()[0] == "wrote all.parquet"
    pandas.testing.assert_frame_equal(frame, load_results("all.parquet"))
    assert sweep("collect", "s", "-o", "all.csv").exit_code == 0
    pandas.testing.assert_frame_equal(frame, load_results("all.csv"))


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.csv", "x,y\n1,2\n"), ("a.csv", ""), ("a.csv", "run_id,steps\na,no\n"), ("a.json", "[]"), ("a.json", "{}"),
     ("a.parquet", "PAR1"), ("a.csv", "run_id,steps\na\n")],
)  # fmt: skip
def test_other_files_are_refused(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=name):
        load_results(tmp_path / name)


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match=r"needs pandas.*pip install '\.\[report\]'"):
        data_frame(typed([]))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"needs pyarrow.*pip install '\.\[report\]'"):
        parquet_bytes(typed([]))


@pytest.mark.process
def test_no_module_of_jobs_loads_pandas() -> None:
    code = (
        "import importlib, pkgutil, sys, jobs, jobs.results\n"
        "assert callable(jobs.results.load_results)\n"
        "for module in pkgutil.walk_packages(jobs.__path__, 'jobs.'):\n"
        "    if module.name != 'jobs.__main__': importlib.import_module(module.name)\n"
        "print(sorted({'pandas', 'pyarrow', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_value_of_a_varied_field_fits() -> None:
    table = typed([{"run_id": "a", "big": 2**70, "path": "x\udc80"}, {"run_id": "b", "big": 1, "path": "y"}])
    frame = data_frame(table)
    assert parquet_bytes(table)
    assert list(frame["big"]) == [str(2**70), "1"]
    assert list(frame["path"]) == [r"x\udc80", "y"]


@pytest.mark.parametrize(("name", "text"), [("r.csv", ""), ("r.json", '{"runs": [1]}'), ("r.json", "[]")])
def test_a_file_of_something_else_is_an_error(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match="cannot be read as results"):
        load_results(tmp_path / name)
