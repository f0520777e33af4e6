"""The results of runs of a user's own script: their records, reasons, columns and tables."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disttrain.records.record_files import write_json
from disttrain.records.script_metrics import ScriptMetrics, summarise_file
from disttrain.records.summary_types import SUMMARY_FIGURES, Failure
from jobs.results.comparability import with_reasons
from jobs.results.failures.failure_reason import explain
from jobs.results.failures.job_log import Tasks, parse_log_end
from jobs.results.result import COLUMNS, Result, column_name
from jobs.results.run_records import RunRecords, read_run
from jobs.results.tables import results_report, to_csv, to_json
from jobs.results.text_table import TextTable
from jobs.results.watch import change_line
from jobs.slurm.attempts import AccountingRow
from jobs.slurm.states import State
from jobs.storage.ledger import Job, Ledger
from jobs.storage.plan_check import check_plan
from jobs.storage.run_facts import read_facts
from tests.jobs.results.rows import joined, make_result
from tests.jobs.results.test_comparability import H100
from tests.jobs.results.test_tables import rendered
from tests.jobs.script_runs import log, script_run

METRICS: dict[str, dict[str, float | None]] = {
    "loss": {"last": 0.5, "mean": 1.0, "best": 0.25, "min": 0.25, "max": 2.0, "count": 9},
    "eval/accuracy": {"last": 0.75, "mean": 0.5, "best": 0.875, "min": 0.0, "max": 0.875, "count": 3},
}


def script_row(number: int = 0, metrics: Mapping[str, Any] | None = METRICS, **columns: Any) -> Result:
    row = make_result(f"1x1-{number:012x}", f"1x1 lr={number}", **{"state": "COMPLETED", "steps": 40, **columns})
    figures = {**row.figures, "metrics": metrics, "comparable": True}
    return dataclasses.replace(row, figures=figures, config={"command": "python train.py"}, is_command=True)


# Records.


def test_records_of_a_script_that_runs(tmp_path: Path) -> None:
    """Its checkpoints are its own, whatever they are called."""
    assert read_run(tmp_path) == RunRecords()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "attempt-00001-step-000000005.json").touch()
    log(tmp_path, [])
    assert read_run(tmp_path) == RunRecords(last_step=0)
    log(tmp_path, [{"step": 7, "loss": 1.0}], rank=2)
    assert read_run(tmp_path) == RunRecords(last_step=7)
    write_json(tmp_path / "summary.json", {"steps": 9, "metrics": METRICS})
    records = read_run(tmp_path)
    assert records.summary is not None
    assert (records.summary["metrics"], records.last_step) == (METRICS, None)


def test_what_a_script_logs_is_a_sign_of_life(tmp_path: Path) -> None:
    assert read_facts(tmp_path).wrote_s is None
    path = log(tmp_path, [{"loss": 1.0}])
    assert read_facts(tmp_path).wrote_s == path.stat().st_mtime


# Reasons.


RANKS, NODES = Tasks(4, run_script=True), Tasks(2, are_ranks=False, run_script=True)


def failure(error: str, message: str, rank: int = 2) -> Failure:
    return Failure(rank=rank, host="node1", time_s=1.0, error=error, message=message, traceback="", user_error=False)


def test_tasks_that_srun_counts() -> None:
    assert Tasks.of(script_run("2x2-0")) == RANKS
    assert Tasks.of(script_run("2x2-0", launcher="torchrun --max-restarts 2")) == NODES
    ours = {"world_size": 4, "train": {"model": "bert", "command": "x"}}
    assert Tasks.of(ours) == Tasks(4)


@pytest.mark.parametrize(
    ("failed", "step", "tasks", "kind", "text"),
    [
        (failure("ValueError", "boom"), 40, RANKS, "exception", "rank 2 on node1: ValueError: boom (step 40)"),
        (failure("ValueError", "boom"), 0, RANKS, "exception", "rank 2 on node1: ValueError: boom"),
        (failure("ValueError", "boom", 1), 40, NODES, "exception", "torchrun on node1: ValueError: boom (step 40)"),
        (
            failure("OutOfMemoryError", "CUDA out of memory"), 0, RANKS, "GPU memory",
            "rank 2 on node1: OutOfMemoryError: CUDA out of memory",
        ),
        (
            failure("SIGKILL", "the script was ended by SIGKILL"), 40, RANKS, "signal",
            "rank 2 on node1: SIGKILL: the script was ended by SIGKILL (step 40)"
            ": from outside, or because its node had no memory left",
        ),
        (
            failure("DistBackendError", "Connection closed by peer", 0), 40, NODES, "communication",
            "torchrun on node1: DistBackendError: Connection closed by peer (step 40); no error from node 1, killed?",
        ),
        (
            failure("NotResumed", "time limit: stopped after step 40, with a checkpoint; requeue is off", 0), 40, RANKS,
            "time limit", "time limit: stopped after step 40, with a checkpoint; requeue is off",
        ),
    ],
)  # fmt: skip
def test_the_failure_of_a_script(failed: Failure, step: int, tasks: Tasks, kind: str, text: str) -> None:
    records = RunRecords(failures=(failed,), last_step=step)
    reason = explain(State.FAILED, AccountingRow("7", state=State.FAILED), records, tasks, parse_log_end("", tasks))
    assert (reason.kind, reason.text) == (kind, text)


def test_a_script_that_used_too_much_memory() -> None:
    attempt = AccountingRow("7", state=State.FAILED, max_rss_bytes=3 * 2**30, requested_memory_bytes=2**31)
    records = RunRecords(failures=(failure("SIGKILL", "the script was ended by SIGKILL"),))
    reason = explain(State.FAILED, attempt, records, RANKS, parse_log_end("", RANKS))
    assert reason.kind == "host memory"
    assert "a rank used 3.00 GiB" in reason.text


@pytest.mark.parametrize(
    ("state", "step", "text"),
    [
        (State.TIMEOUT, 40, "time limit reached at step 40; sweep submit starts the script again"),
        (State.TIMEOUT, None, "time limit reached; sweep submit starts the script again"),
        (State.PREEMPTED, 0, "preempted; sweep submit starts the script again"),
    ],
)
def test_a_script_may_have_checkpoints_of_its_own(state: State, step: int | None, text: str) -> None:
    attempt, records = AccountingRow("7", state=state), RunRecords(last_step=step)
    reason = explain(state, attempt, records, RANKS, parse_log_end("", RANKS))
    assert reason.text == text


def test_the_tasks_of_torchrun_are_nodes() -> None:
    log_text = "srun: error: node2: task 1: Killed\nsrun: error: node1: task 0: Terminated\n"
    reason = explain(State.FAILED, AccountingRow("7"), RunRecords(last_step=0), NODES, parse_log_end(log_text, NODES))
    assert reason.text.startswith("torchrun on node2 was killed by SIGKILL: from outside")
    assert parse_log_end("srun: error: node2: task 3: Killed\n", NODES).first is None


def test_rows_of_scripts() -> None:
    """One is done, one failed, and one has logged nothing: it has its row from the scheduler."""
    runs = [script_run(f"1x2-{number:012x}", lr=number, model="x", device=3) for number in range(3)]
    attempts = {
        f"7_{number}": [AccountingRow(f"7_{number}", state=state, elapsed_s=60, exit_code=0, submit_s=1, start_s=2)]
        for number, state in enumerate((State.COMPLETED, State.FAILED, State.COMPLETED))
    }
    summary = dict.fromkeys(SUMMARY_FIGURES) | {"steps": 9, "metrics": METRICS}
    records = {
        runs[0]["run_id"]: RunRecords(summary),
        runs[1]["run_id"]: RunRecords(failures=(failure("ValueError", "boom", 1),), last_step=5),
        runs[2]["run_id"]: RunRecords(summary | {"steps": 0, "metrics": {}}),
    }
    jobs = {run["run_id"]: (Job(run["run_id"], f"7_{number}", 1.0),) for number, run in enumerate(runs)}
    rows = joined(runs, Ledger(jobs, ()), attempts, records)
    assert [row.is_command for row in rows] == [True] * 3
    assert [row.state for row in rows] == [State.COMPLETED, State.FAILED, State.COMPLETED]
    assert rows[1].scheduled.reason == "rank 1 on node1: ValueError: boom (step 5)"
    assert [row.columns()["steps"] for row in rows] == [9, 5, 0]
    assert rows[0].columns()["metrics.loss.best"] == 0.25
    assert rows[2].columns()["elapsed_s"] == 60
    assert rows[0].config == {"command": "python train.py", "lr": 0, "model": "x", "device": 3}
    assert change_line(rows[0]).endswith("COMPLETED")


# Comparability.


def test_the_users_fields_are_not_ours() -> None:
    """A model named link, a device and a recipe that a script does not have decide nothing."""
    ours = [
        make_result(f"1x1-{number:012x}", state="COMPLETED", comparable=True, recipe_version=3, device_name="H100")
        for number in range(2)
    ]
    ours = [dataclasses.replace(row, config={"model": "bert", "device": "auto"}) for row in ours]
    script = dataclasses.replace(
        script_row(9, device_name="A100"), config={"command": "c", "model": "link", "device": "cpu"}
    )
    rows = with_reasons([*ours, script])
    assert [row.figures["not_comparable"] for row in rows] == [(), (), ("device differs: A100 instead of H100",)]


# Columns and tables.


def test_columns_of_metrics() -> None:
    columns = script_row().columns()
    assert {name: value for name, value in columns.items() if name.startswith("metrics")} == {
        "metrics": METRICS,
        "metrics.loss": 0.5, "metrics.loss.best": 0.25, "metrics.loss.mean": 1.0,
        "metrics.eval/accuracy": 0.75, "metrics.eval/accuracy.best": 0.875, "metrics.eval/accuracy.mean": 0.5,
    }  # fmt: skip


NAMES = st.sampled_from(["loss", "loss.best", "loss.last", "loss.best.last", "best", "", "a,b c", 'é"\n', ".last"])


@given(st.lists(NAMES, unique=True))
def test_no_two_figures_have_one_column(names: list[str]) -> None:
    metrics = {name: {"last": float(number), "best": -1.0, "mean": -2.0} for number, name in enumerate(names)}
    columns = script_row(metrics=metrics).columns()
    assert len(columns) == len(COLUMNS) + 3 * len(names)
    rows = list(csv.DictReader(io.StringIO(to_csv([script_row(metrics=metrics), script_row(1, None)]), newline="")))
    assert [sum(value == str(float(number)) for value in rows[0].values()) for number in range(len(names))] == [
        1
    ] * len(names)
    assert {rows[1][name] for name in columns if name.startswith("metrics.")} <= {""}


@given(st.lists(st.sampled_from(["lr", "steps", "config.steps", "metrics", "metrics.loss", "config", "config.config"])))
def test_no_two_keys_have_one_column(fields: list[str]) -> None:
    taken = {column_name(field) for field in fields}
    assert len(taken) == len(set(fields))
    assert not taken & (COLUMNS.keys() | {"config", "metrics.loss"})


def test_outputs_of_different_scripts() -> None:
    """Every row has every column: a metric that a run does not have is empty in CSV, and null in JSON."""
    rows = [script_row(0), script_row(1, {"f1": {"last": None, "count": 2}}), make_result("1x1-aaaaaaaaaaaa")]
    runs = json.loads(to_json(rows, "s", "site"))["runs"]
    assert [run["metrics.loss"] for run in runs] == [0.5, None, None]
    assert [run["metrics.f1"] for run in runs] == [None] * 3
    assert runs[0]["metrics"]["loss"]["count"] == 9
    assert len({tuple(sorted(run)) for run in runs}) == 1
    texts = list(csv.DictReader(io.StringIO(to_csv(rows, all_columns=True))))
    assert [text["metrics.loss"] for text in texts] == ["0.5", "", ""]
    assert [text["command"] for text in texts] == ["python train.py", "python train.py", ""]
    assert json.loads(texts[0]["metrics"]) == METRICS
    assert list(texts[0])[-2:] == ["command", "model"], "the fields of the config come last"


def table_of(rows: Sequence[Result], width: int | None) -> str:
    parts = list(results_report(rows, "s on site", width))
    return "\n".join(rendered(part, 300) for part in parts if isinstance(part, TextTable))


def test_the_table_of_a_mixed_sweep() -> None:
    """Four metrics at most, those of most runs first, and none that only says how the script was started."""
    names = ("step_time", "lr", "epoch", "a", "b", "c")
    more = METRICS | {name: {"last": 0.125} for name in names}
    rows = [script_row(0, more), script_row(1), make_result("1x1-aaaaaaaaaaaa", samples_per_s=300.0, train_loss=0.5)]
    header, *cells = (line.split("  ") for line in table_of(rows, 200).splitlines() if line.strip() and "─" not in line)
    shown = [name.strip() for name in header if "metrics." in name]
    assert shown == ["metrics.loss", "metrics.eval/accuracy", "metrics.step_time", "metrics.a"]
    assert len(cells) == 3
    assert "metrics" not in table_of(rows, 40)


def test_a_pipe_has_the_first_metrics() -> None:
    """Also next to fields that vary and to the figures of our models."""
    rows = [make_result(f"1x1-{n:012x}", f"1x1 lr={n}", varied={"lr": n}, **H100, elapsed_s=60) for n in range(2)]
    rows.append(script_row(9, elapsed_s=60, samples_per_s=300.0, gpu_hours=1.0))
    rows = [dataclasses.replace(row, varied={"lr": 1e-4}, varied_texts={"lr": "0.0001"}) for row in rows]
    header = table_of(rows, None).splitlines()[1]
    assert ["metrics.loss" in header, "metrics.eval/accuracy" in header] == [True, True]


def test_a_name_fits_its_column() -> None:
    row = script_row(metrics={"line\nbreak " + "x" * 200: {"last": 1.0}})
    text = table_of([row, script_row(1)], 200)
    assert "metrics.line\\nbreak xxxxxxxxx..." in text


def test_a_diverged_run_does_not_look_like_one_that_logged_nothing() -> None:
    rows = [script_row(n, {"loss": {"last": last, "count": 3}}) for n, last in enumerate((None, 0.5))]
    assert [line.split()[-1] for line in table_of([*rows, script_row(2, {})], 200).splitlines()[3:5]] == ["nan", "0.5"]
    assert ScriptMetrics({"loss": {"last": None}, "acc": {"last": 0.5}}).notices() == (
        "the last value of loss is not finite",
    )


def test_100_000_lines_and_damaged_ones_leave_the_table_alone(tmp_path: Path) -> None:
    path = log(tmp_path, [])
    path.write_bytes(b'{"step": 1, "loss": 0.5}\n' * 100_000 + b"\xff\n[\n" + b'{"loss": "x')
    write_json(tmp_path / "summary.json", summarise_file(tmp_path, 0).figures(1))
    summary = read_run(tmp_path).summary
    assert summary is not None
    assert summary["metrics"]["loss"] == {
        "last": 0.5, "mean": 0.5, "best": 0.5, "min": 0.5, "max": 0.5, "count": 100_000
    }  # fmt: skip


@pytest.mark.parametrize("changes", [{"launcher": " "}, {"launcher": 3}, {"switches": "amp"}, {"later": 1}])
def test_a_damaged_section_is_refused(changes: dict[str, Any]) -> None:
    run = script_run()
    check_plan({"runs": [run]})
    with pytest.raises(ValueError, match=rf"^runs\[0\]: .*{next(iter(changes))}"):
        check_plan({"runs": [run | {"script": run["script"] | changes}]})
