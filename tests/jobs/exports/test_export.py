"""The exports of a sweep, each opened by the reader of its tool."""

from __future__ import annotations

import dataclasses
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.exports.tensorboard_writer import open_writer
from jobs.exports.writer import ExportedRun, Target
from jobs.slurm.states import State
from jobs.storage.sweep_folder import SweepFolder
from tests.jobs.command import Sweep, note
from tests.jobs.exports.recorded import START_S, append, records_file, step, three_steps

pytestmark = pytest.mark.process

LOSSES = [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3)), (4, 0.25)]


@pytest.fixture
def recorded(submitted: SweepFolder) -> SweepFolder:
    """A sweep of which one run has done three steps."""
    append(records_file(submitted), three_steps())
    return submitted


def export_twice(sweep: Sweep, folder: SweepFolder, tool: str, *options: str) -> Path:
    """Exports during a run, after its end, and once more."""
    target = folder.path / "exports" / tool
    arguments = ("export", "s", "--to", tool, *options)
    first = sweep(*arguments)
    assert first.out == f"exported 5 new points of 1 run to {target}\n", first.err
    append(records_file(folder), [step(4)])
    note(folder, State.COMPLETED, State.CANCELLED)
    assert sweep(*arguments).out == f"exported 1 new points of 1 run to {target}\n"
    assert sweep(*arguments).out == f"exported 0 new points of 1 run to {target}\n"
    return target


def test_tensorboard_reads_its_files(sweep: Sweep, recorded: SweepFolder) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    target = export_twice(sweep, recorded, "tensorboard")
    events = EventAccumulator(str(target / "s" / "local" / "1x1"))
    events.Reload()
    losses = events.Scalars("train/loss")
    assert [(event.step, event.value) for event in losses] == LOSSES
    assert losses[0].wall_time == pytest.approx(START_S + 0.1)
    assert {"eval/accuracy", "phases/step_ms", "telemetry/host_cpu_percent"} <= set(events.Tags()["scalars"])
    (config,) = events.Tensors("config")
    assert json.loads(config.tensor_proto.string_val[0])["model"] == "bert"


def test_files_of_others_stay(sweep: Sweep, recorded: SweepFolder, tmp_path: Path) -> None:
    own = tmp_path / "logs" / "s" / "local" / "1x1" / "events.out.tfevents.1"
    own.parent.mkdir(parents=True)
    own.write_text("mine")
    output = sweep("export", "s", "--to", "tensorboard", "-o", str(tmp_path / "logs"))
    assert output.exit_code == 2
    assert "has files that this command did not write" in output.err
    assert [path.name for path in own.parent.iterdir()] == [own.name]


def test_a_run_with_a_new_label_stays_in_its_folder(tmp_path: Path) -> None:
    target, run = Target(tmp_path), ExportedRun("1x1-a", "1x1", "s", "local", {})
    first = open_writer(target, run, None)
    first.close(None)
    again = open_writer(target, dataclasses.replace(run, name="1x1 lr=0.5"), first.handle)
    again.close(True)
    assert [path.name for path in (tmp_path / "s" / "local").iterdir()] == ["1x1"]
    assert again.handle == first.handle


def test_mlflow_reads_its_files(sweep: Sweep, recorded: SweepFolder) -> None:
    from mlflow.tracking import MlflowClient

    target = export_twice(sweep, recorded, "mlflow")
    client = MlflowClient(tracking_uri=(target / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("s")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("1x1", "FINISHED")
    assert run.data.params["model"] == "bert"
    assert run.data.tags["cluster"] == "local"
    losses = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(metric.step, metric.value) for metric in losses] == LOSSES
    assert losses[0].timestamp == int((START_S + 0.1) * 1000)


def wandb_records(data: bytes) -> Iterator[bytes]:
    """The records of a file of wandb: the log format of LevelDB after a header of 7 bytes, in blocks of 32 KiB."""
    assert data.startswith(b":W&B")
    place, parts = 7, b""
    while place + 7 <= len(data):
        if 2**15 - place % 2**15 < 7:
            place += 2**15 - place % 2**15
        _, size, kind = struct.unpack_from("<IHB", data, place)
        parts += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # a complete record, or the last part of one
            yield parts
            parts = b""


def test_wandb_reads_its_offline_files(recorded: SweepFolder, sweep: Sweep) -> None:
    from wandb.proto.wandb_internal_pb2 import Record

    target = export_twice(sweep, recorded, "wandb")
    rows, names = [], set()
    for file in sorted(target.glob("wandb/offline-run-*/*.wandb")):
        for data in wandb_records(file.read_bytes()):
            record = Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "run":
                names.add((record.run.display_name, record.run.run_group))
            items = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
            rows.append({name: json.loads(value) for name, value in items.items()})
    losses = [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row]
    assert sorted(losses) == LOSSES
    assert names == {("1x1", "s")}
    assert any(row.get("_timestamp") == pytest.approx(START_S + 0.1) for row in rows)


def test_trackio_reads_its_database(recorded: SweepFolder, repository: Path) -> None:
    words = [sys.executable, "-m", "jobs", "export", str(recorded.path), "--to", "trackio"]
    environ = {**os.environ, "PYTHONPATH": str(repository), "HF_HUB_OFFLINE": "1"}
    for _ in range(2):
        subprocess.run(words, env=environ, check=True, capture_output=True)
    read = (
        "import json; from trackio.sqlite_storage import SQLiteStorage as S;"
        "print(json.dumps([S.get_runs('s'), S.get_logs('s', S.get_runs('s')[0])]))"
    )
    environ["TRACKIO_DIR"] = str(recorded.path / "exports" / "trackio")
    shown = subprocess.run([sys.executable, "-c", read], env=environ, check=False, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    runs, logs = json.loads(shown.stdout)
    assert runs == ["1x1"]
    assert [(row["step"], row["train/loss"]) for row in logs if "train/loss" in row] == LOSSES[:3]
    assert len(logs) == 5


@pytest.mark.parametrize("tool", ["tensorboard", "wandb", "trackio", "mlflow"])
def test_the_home_folder_stays_empty(recorded: SweepFolder, repository: Path, tmp_path: Path, tool: str) -> None:
    home = tmp_path / "home"
    home.mkdir()
    own = ("WANDB_", "TRACKIO_", "MLFLOW_", "HF_", "XDG_", "PYTEST_", "CI")  # mlflow reports nothing of a test
    environ = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    environ |= {"PYTHONPATH": str(repository), "HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    words = [sys.executable, "-m", "jobs", "export", str(recorded.path), "--to", tool]
    done = subprocess.run(words, env=environ, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [str(path) for path in home.rglob("*")] == []


def test_follow_ends_with_the_runs(sweep: Sweep, recorded: SweepFolder) -> None:
    note(recorded, State.COMPLETED, State.CANCELLED)
    assert sweep("export", "s", "--to", "tensorboard", "--follow").out.startswith("exported 5 new points of 1 run")


def test_a_run_that_was_done_again_is_not_mixed_with_the_earlier_one(sweep: Sweep, recorded: SweepFolder) -> None:
    assert sweep("export", "s", "--to", "tensorboard").err == ""
    records = records_file(recorded)
    again = records.read_text(encoding="utf-8").replace(str(START_S), str(START_S + 60), 1)
    records.unlink()
    records.write_text(again, encoding="utf-8")
    output = sweep("export", "s", "--to", "tensorboard")
    assert "is not exported: it was done again since its last export (export to another folder" in output.err
    assert "exported 5 new points" in sweep("export", "s", "--to", "tensorboard", "-o", "elsewhere").out


def test_a_damaged_run_is_left_out(sweep: Sweep, recorded: SweepFolder) -> None:
    append(records_file(recorded, 1), [{"kind": "other"}])
    output = sweep("export", "s", "--to", "tensorboard")
    assert output.exit_code == 0
    assert output.err.startswith("note: run 2x1 is not exported: ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--to", "other"], "'other' is none of tensorboard, wandb, trackio, mlflow"),
        (["--to", "mlflow", "--online"], "--online: mlflow has no online mode here"),
        (["--to", "wandb", "--tracking-uri", "x"], "--tracking-uri: wandb has no tracking server"),
    ],
)
def test_a_wrong_option_is_an_error(sweep: Sweep, recorded: SweepFolder, options: list[str], message: str) -> None:
    output = sweep("export", "s", *options)
    assert (output.exit_code, message in output.err) == (2, True), output.err


def test_a_missing_tool_names_its_extra(sweep: Sweep, recorded: SweepFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    output = sweep("export", "s", "--to", "wandb")
    assert output.exit_code == 2
    assert "pip install '.[wandb]'" in output.err


def test_a_sweep_without_records_is_an_error(sweep: Sweep, submitted: SweepFolder) -> None:
    output = sweep("export", "s", "--to", "tensorboard")
    assert (output.exit_code, "no run has records" in output.err) == (2, True)
