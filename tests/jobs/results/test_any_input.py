"""Any content of the files of a sweep is read, or refused by the one-line error: no other exception, and no hang."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from disttrain.errors import UserError
from disttrain.records.json_values import parse_object
from disttrain.records.json_values import to_json as to_json_text
from disttrain.records.record_files import failure_name, metrics_name, read_records, summary_from_json
from disttrain.records.record_types import KINDS
from disttrain.records.script_metrics import new_metrics_file, summarise_file
from disttrain.records.summary_types import SUMMARY_FIGURES
from jobs.results.drawing.step_lanes import read_timeline
from jobs.results.live.progress import read_progress
from jobs.results.live.stalls import read_stall
from jobs.results.result import Result
from jobs.results.run_records import read_run
from jobs.results.status import last_known, read_status
from jobs.results.tables import failure_lines, results_report, to_csv, to_json
from jobs.results.watch import change_line
from jobs.slurm.attempts import attempts_by_job
from jobs.slurm.sacct import FIELDS
from jobs.slurm.sacct_table import SEPARATOR, AccountingUnavailable, parse_sacct
from jobs.storage.ledger import Job, Ledger
from jobs.storage.sweep_folder import SweepFolder
from tests.jobs.results.drawing.test_figures import step_of
from tests.jobs.results.rows import joined
from tests.jobs.results.test_damaged_files import FAILURE, SUMMARY
from tests.jobs.script_runs import script_run
from tests.proofs.random_inputs import RANDOM_EXAMPLES

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, -(2**63), 2**63, 0, 1])
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["1x1-a", "7_0", "COMPLETED", "step", "record", "intend"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
PLANNED: dict[str, Any] = {
    "run_id": "1x1-a", "allocation": "1x1", "nodes": 1, "gpus_per_node": 1, "world_size": 1, "point": {"lr": 1.0},
    "asked": {"lr": 1.0}, "train": {"model": "bert", "lr": 1.0, "timing_warmup_steps": 1, "detailed_timing": True},
}  # fmt: skip
RUN_FILE = {**PLANNED, "versions": {"torch": "2.14"}}
SCRIPT = script_run("1x1-a", launcher="torchrun", lr=1.0, steps=2)
EVENTS: list[dict[str, Any]] = [
    {"event": "intend", "time_s": 1.0, "run_ids": ["1x1-a"], "set": {"lr": "1"}},
    {"event": "record", "time_s": 1.0, "jobs": {"1x1-a": "7_0"}},
    {"event": "record", "time_s": 1.0, "jobs": {"1x1-a": "local-1-0"}, "set": {},
     "queue": {"host": "h", "pid": 1, "created_s": 1.0}},
    {"event": "give_up", "time_s": 1.0, "run_ids": ["1x1-a"], "reason": "x"},
    {"event": "forget", "time_s": 1.0, "run_ids": ["1x1-a"]},
]  # fmt: skip
ROWS: list[dict[str, Any]] = [
    {"job_id": job_id, "state": state, "submit_s": 1, "start_s": 2, "end_s": 3, "elapsed_s": 1, "alloc_gpus": 1}
    for job_id in ("7_0", "local-1-0") for state in ("COMPLETED", "FAILED", "RUNNING")
]  # fmt: skip
RECORDS: list[dict[str, Any]] = [
    {"kind": record.kind, **vars(record)} for record in step_of(1, 1.0, 1.0)
] + [{"kind": kind} for kind in KINDS]  # fmt: skip


@st.composite
def changed(draw: st.DrawFn, valid: Mapping[str, Any]) -> dict[str, Any]:
    """An object with some of its values replaced or removed."""
    values = dict(valid)
    for name in draw(st.lists(st.sampled_from(sorted(values)), max_size=2, unique=True)):
        if draw(st.booleans()):
            values[name] = draw(VALUES)
        else:
            del values[name]
    return values


def texts_of(*valid: Mapping[str, Any]) -> st.SearchStrategy[bytes]:
    """The content of a file: nearly valid, truncated, of another kind, or any bytes."""
    objects = st.sampled_from(valid).flatmap(changed).map(lambda values: json.dumps(values).encode())
    truncated = st.tuples(objects, st.integers(0, 40)).map(lambda pair: pair[0][: -pair[1]])
    return objects | truncated | VALUES.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=30)


def lines_of(*valid: Mapping[str, Any]) -> st.SearchStrategy[bytes]:
    return st.lists(texts_of(*valid), max_size=4).map(b"\n".join) | texts_of(*valid).map(lambda line: line + b"\n")


def refuse(constant: str) -> float:
    raise AssertionError(f"{constant} is no JSON")


def print_all(results: tuple[Result, ...], folder: SweepFolder) -> None:
    """Every output of the rows."""
    json.loads(to_json(results, "s", "local"), parse_constant=refuse)
    to_csv(results, all_columns=True).encode(errors="backslashreplace")
    assert list(results_report(results, "s on local", 200))
    list(failure_lines(results, folder))
    for row in results:
        assert "\n" not in change_line(row)


@contextmanager
def one_line_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Ends the block at one of these errors, which must be one line."""
    message = ""
    try:
        yield
    except kinds as error:
        message = str(error)
    assert "\n" not in message


@contextmanager
def sweep_folder() -> Iterator[SweepFolder]:
    with tempfile.TemporaryDirectory() as root:
        folder = SweepFolder(Path(root) / "s" / "local")
        folder.run("1x1-a").mkdir(parents=True)
        folder.plan_file.write_text(json.dumps({"runs": [PLANNED]}))
        yield folder


random_inputs = settings(max_examples=RANDOM_EXAMPLES)
SCRIPT_METRICS = {"loss": {"last": 0.5, "mean": 0.5, "best": 0.5, "min": 0.5, "max": 0.5, "count": 1}}
SUMMARIES = texts_of(
    {"steps": 1, "metrics": SCRIPT_METRICS},
    SUMMARY,
    dict.fromkeys(SUMMARY_FIGURES, 1),
    {**SUMMARY, "versions": {"torch": "1"}, "hosts": ["n"]},
)
STAGE = {"stage": "running", "since_s": 1.0, "host": "n", "pid": 1}


@random_inputs
@given(SUMMARIES, texts_of(FAILURE), texts_of(RUN_FILE, SCRIPT), lines_of(*RECORDS), st.sampled_from([PLANNED, SCRIPT]))
def test_any_files_of_a_run_give_a_row(
    summary: bytes, failure: bytes, run: bytes, metrics: bytes, planned: dict[str, Any]
) -> None:
    with sweep_folder() as folder:
        run_dir = folder.run("1x1-a")
        (run_dir / "summary.json").write_bytes(summary)
        (run_dir / failure_name(0)).write_bytes(failure)
        (run_dir / "run.json").write_bytes(run)
        (run_dir / metrics_name(0)).write_bytes(metrics)
        ledger = Ledger({"1x1-a": (Job("1x1-a", "7_0", 1.0),)}, ())
        row = {**ROWS[0], "state": "COMPLETED"}
        text = SEPARATOR.join(["JobID", "State", "Submit"]) + "\n" + SEPARATOR.join(["7_0", str(row["state"]), "1"])
        attempts = attempts_by_job(parse_sacct(text))
        print_all(joined([planned], ledger, attempts, {"1x1-a": read_run(run_dir)}), folder)


@random_inputs
@given(
    lines_of({"step": 1, "loss": 0.5, "samples_per_s": 3}), texts_of({"stage": "running", "since_s": 1.0, "host": "n"})
)
def test_any_metrics_of_a_script_give_progress(metrics: bytes, stage: bytes) -> None:
    with sweep_folder() as folder:
        run_dir = folder.run("1x1-a")
        (run_dir / "stage.json").write_bytes(stage)
        new_metrics_file(run_dir, 0).write_bytes(metrics)
        read_run(run_dir)
        read_progress(run_dir, 1)
        read_stall(run_dir, 1, None, 2e9)
        summary = summarise_file(run_dir, 0).figures(1)
        json.loads(to_json_text(summary), parse_constant=refuse)
        assert summary_from_json(parse_object(to_json_text(summary)))["steps"] == summary["steps"]


@random_inputs
@given(lines_of(*EVENTS), lines_of(*ROWS), st.binary(max_size=12))
def test_any_ledger_gives_states(ledger: bytes, accounting: bytes, query_time: bytes) -> None:
    with sweep_folder() as folder:
        (folder.path / "ledger.jsonl").write_bytes(ledger)
        folder.accounting_file.write_bytes(accounting)
        folder.query_time_file.write_bytes(query_time)
        status = read_status(folder, {})
        print_all(status.results, folder)
        assert all("\n" not in notice for notice in status.notices)
        last_known(folder)


@random_inputs
@given(
    texts_of({"runs": [PLANNED]}, {"runs": [SCRIPT]})
    | (changed(PLANNED) | changed(SCRIPT)).map(lambda run: json.dumps({"runs": [run, PLANNED]}).encode())
    | changed(SCRIPT["script"]).map(lambda section: json.dumps({"runs": [SCRIPT | {"script": section}]}).encode())
)
def test_any_plan_gives_states_or_an_error(plan: bytes) -> None:
    with sweep_folder() as folder:
        folder.plan_file.write_bytes(plan)
        with one_line_errors(UserError):
            results = read_status(folder, {}).results
            if results:
                print_all(results, folder)


@random_inputs
@given(lines_of(*RECORDS), texts_of(RUN_FILE), st.integers(1, 3) | st.none())
def test_any_records_are_read_or_refused(metrics: bytes, run: bytes, step: int | None) -> None:
    with sweep_folder() as folder:
        path = folder.run("1x1-a") / metrics_name(0)
        path.write_bytes(metrics)
        (folder.run("1x1-a") / "run.json").write_bytes(run)
        with one_line_errors(UserError):
            list(read_records(path))
        with one_line_errors(UserError, FileNotFoundError):  # run.json may say that there are more ranks
            read_timeline(folder.run("1x1-a"), "1x1", step)


WORDS = (
    st.sampled_from(["", "0", "17", "Unknown", "None", "UNLIMITED", "1:0", "0:9", "4K", "1.5G", "1700000000", "n[1-2]"])
    | st.sampled_from(["COMPLETED", "CANCELLED by 1", "RUNNING", "FAILED", "OUT_OF_ME+", "cpu=8,gres/gpu=4"])
    | st.sampled_from(["9" * 5000, "9" * 400, "99999999999", "gres/gpu=x", "gres/gpu:a=" + "9" * 500, "1" * 400 + "G"])
    | st.text(max_size=6)
)
JOB_IDS = (
    st.sampled_from(["7_0", "7_[0-3%2]", "7_[1,2...", "7_0.batch", "7.extern", "7", "8+1", "", "7_[0-99999999999999]"])
    | st.sampled_from(["7_[5-1]", "7_[1-9:0]", "7_[" + "9" * 5000 + "]", "7_[]"])
    | st.text(alphabet="0123456789_[]-,%:.+", max_size=12)
)
TABLES = st.lists(
    st.fixed_dictionaries({}, optional={name: JOB_IDS if name == "JobID" else WORDS for name in FIELDS}), max_size=3
).map(
    lambda rows: "".join(
        SEPARATOR.join(line) + "\n" for line in (FIELDS, *([row.get(name, "") for name in FIELDS] for row in rows))
    )
)


@random_inputs
@given(TABLES | st.text(max_size=60))
def test_any_answer_of_sacct_is_read_or_refused(text: str) -> None:
    ledger = Ledger({"1x1-a": (Job("1x1-a", "7_0", 1.0), Job("1x1-a", "7", 2.0))}, ())
    with sweep_folder() as folder, one_line_errors(AccountingUnavailable):
        rows = parse_sacct(text, since_s=1.0)
        print_all(joined([PLANNED], ledger, attempts_by_job(rows), {}), folder)
