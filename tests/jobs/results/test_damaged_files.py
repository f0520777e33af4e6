"""A damaged or missing file of a run affects only its row; a damaged line of a sweep's files is a notice."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from disttrain.errors import UserError, shorten
from disttrain.records.record_files import failure_name, metrics_name
from disttrain.records.summary_types import SUMMARY_FIGURES
from jobs.results.result import Result
from jobs.results.run_records import RunRecords, read_run
from jobs.results.status import last_known, read_status
from jobs.results.sweep_list import listed_sweeps, sweeps_table
from jobs.results.tables import to_csv, to_json
from jobs.slurm.attempts import AccountingRow
from jobs.slurm.states import State
from jobs.storage import ledger
from jobs.storage.sweep_folder import SweepFolder, find_folder

FAILURE = {
    "rank": 0, "host": "n1", "time_s": 1.0, "error": "ValueError", "message": "m", "traceback": "t",
    "user_error": False,
}  # fmt: skip
SUMMARY = {"steps": 3, "world_size": 1, "samples_per_s": 5.0, "comparable": True}

# The kinds of damage: the content of a file that was a JSON object, and the reason in the row.
DAMAGE = {
    "empty": (b"", "it is empty"),
    "blank": (b" \n", "it is empty"),
    "truncated": (b'{"rank": 0, "st', "it is not JSON: Unterminated string starting at in line 1, column 13"),
    "zeros": (bytes(4096), "it has only zero bytes"),
    "binary": (b"\x80\x04\x95\xff\x00", "it is not UTF-8 text"),
    "UTF-16": ('{"rank": 0}'.encode("utf-16"), "it is not UTF-8 text"),
    "list": (b"[1, 2]", "it is [1, 2], not a JSON object"),
    "null": (b"null", "it is None, not a JSON object"),
    "two": (b'{"rank": 0}\n{"rank": 1}\n', "it is not JSON: Extra data in line 2, column 1"),
    "nested": (b"[" * 100_000, "it is nested too deeply"),
}


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    """Two runs of a local sweep: a is COMPLETED, b is FAILED."""
    folder = SweepFolder(tmp_path / "s" / "local")
    runs = [
        {
            "run_id": run_id, "allocation": "1x1", "nodes": 1, "gpus_per_node": 1, "world_size": 1,
            "point": {"lr": lr}, "asked": {"lr": lr}, "train": {"model": "bert", "lr": lr, "timing_warmup_steps": 0},
        }
        for run_id, lr in (("1x1-a", 1.0), ("1x1-b", 2.0))
    ]  # fmt: skip
    folder.path.mkdir(parents=True)
    folder.plan_file.write_text(json.dumps({"sweep": "s", "cluster": "local", "runs": runs}))
    (tmp_path / ".last").write_text("s/local\n")
    for run in runs:
        folder.run(str(run["run_id"])).mkdir(parents=True)
        (folder.run(str(run["run_id"])) / "run.json").write_text(json.dumps({**run, "versions": {}}))
    ledger.record(folder.path, {"1x1-a": "local-1-0", "1x1-b": "local-1-1"}, 1.0)
    rows = [
        AccountingRow("local-1-0", state=State.COMPLETED, submit_s=1, start_s=2, end_s=3, elapsed_s=1, exit_code=0),
        AccountingRow("local-1-1", state=State.FAILED, submit_s=1, start_s=2, end_s=3, elapsed_s=1, exit_code=1),
    ]
    ledger.append_lines(folder.accounting_file, [json.dumps(row.to_json()) for row in rows])
    (folder.run("1x1-a") / "summary.json").write_text(json.dumps(SUMMARY))
    (folder.run("1x1-b") / failure_name(0)).write_text(json.dumps(FAILURE))
    return folder


def rows_of(folder: SweepFolder) -> tuple[Result, Result]:
    """Both rows, which every output can print."""
    results = read_status(folder, {}).results
    to_csv(results, all_columns=True)
    to_json(results, "s", "local")
    first, second = results
    return first, second


def test_complete_files_have_no_reason(folder: SweepFolder) -> None:
    first, second = rows_of(folder)
    assert (first.state, first.scheduled.reason, first.figures["samples_per_s"]) == ("COMPLETED", None, 5.0)
    assert (second.state, second.scheduled.reason) == ("FAILED", "rank 0 on n1: ValueError: m")


RUN_INFO: dict[str, Any] = {
    "run_id": "1x1-a", "allocation": "1x1", "nodes": 1, "gpus_per_node": 1, "world_size": 1, "train": {}, "versions": {}
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("name", ["summary.json", "run.json", failure_name(0)])
def test_a_damaged_file_is_the_reason_of_its_row(name: str, kind: str, folder: SweepFolder) -> None:
    content, reason = DAMAGE[kind]
    (folder.run("1x1-a") / name).write_bytes(content)
    first, second = rows_of(folder)
    assert (first.state, first.scheduled.reason) == ("COMPLETED", f"{name} is damaged: {reason}")
    assert (first.figures.get("samples_per_s") is None) == (name == "summary.json")
    assert second.scheduled.reason == "rank 0 on n1: ValueError: m"


@pytest.mark.parametrize(
    ("name", "values", "reason"),
    [
        ("summary.json", {"samples_per_s": "fast"}, "samples_per_s is 'fast'"),
        ("summary.json", {"samples_per_s": 10**400}, f"samples_per_s is {shorten(repr(10**400))}"),
        ("summary.json", {}, "it has no 'steps'"),
        ("summary.json", {"samples_per_s": 5.0}, "it has no 'steps'"),
        ("summary.json", {"steps": None}, "it has no 'steps'"),
        ("summary.json", {"steps": 1.5}, "steps is 1.5"),
        ("summary.json", {"steps": True}, "steps is True"),
        ("summary.json", {"buckets": [[1]]}, "buckets is ([1],)"),
        ("summary.json", {"notices": "x"}, "notices is 'x'"),
        (failure_name(0), {**FAILURE, "time_s": None}, "time_s is None"),
        (failure_name(0), {**FAILURE, "rank": "0"}, "rank is '0'"),
        (failure_name(0), {"rank": 0}, "it has no 'host'"),
        ("run.json", {"run_id": "1x1-a"}, "it has no 'allocation'"),
        ("run.json", {**RUN_INFO, "world_size": 0}, "world_size is 0"),
        ("run.json", {**RUN_INFO, "nodes": -1}, "nodes is -1"),
    ],
)
def test_wrong_types_are_damage(name: str, values: dict[str, Any], reason: str, folder: SweepFolder) -> None:
    (folder.run("1x1-a") / name).write_text(json.dumps(values))
    assert rows_of(folder)[0].scheduled.reason == f"{name} is damaged: {reason}"


def test_numbers_that_are_not_finite_are_null(folder: SweepFolder) -> None:
    """Other programs write them, and JSON has no such numbers."""
    text = '{"steps": 3, "train_loss": NaN, "buckets": [{"bus_gb_per_s": Infinity}]}'
    (folder.run("1x1-a") / "summary.json").write_text(text)
    row = rows_of(folder)[0]
    assert row.scheduled.reason is None
    assert (row.figures["train_loss"], row.figures["buckets"]) == (None, ({"bus_gb_per_s": None},))


def test_a_folder_in_place_of_a_file(folder: SweepFolder) -> None:
    for name in (failure_name(1), metrics_name(0)):
        (folder.run("1x1-b") / name).mkdir()
    expected = (
        "rank 0 on n1: ValueError: m; failure-rank00001.json cannot be read: Is a directory;"
        " metrics-rank00000.jsonl cannot be read: Is a directory"
    )
    assert rows_of(folder)[1].scheduled.reason == expected


def test_a_damaged_failure_is_the_only_reason(folder: SweepFolder) -> None:
    (folder.run("1x1-b") / failure_name(0)).write_bytes(b"")
    assert rows_of(folder)[1].scheduled.reason == "failure-rank00000.json is damaged: it is empty"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[]\n7\nnull\n", "it is [], not a JSON object"),
        (b'{"kind": ["step"], "step": 1}\n', "it is not a record: {'kind': ['step'], 'step': 1}"),
        (b'{"kind": "step", "step": "x"}\n', "step is 'x'"),
        (b'{"kind": "step", "step": true}\n', "step is True"),
        (b'{"kind": "step", "step": -1}\n', "step is -1"),
        (b'{"kind": "exchange", "step": 0}\n{"kind": "step", "st', "step is 0"),
        (bytes(4), "it has only zero bytes"),
        (bytes(10_000), "it has only zero bytes"),  # longer than the first tail that is read
        (b'{"kind": "start"}\n\x80\x04\x95', "it is not UTF-8 text"),
        (b'{"kind": "st' + bytes(10), "it is not JSON: Invalid control character at in line 1, column 13"),
    ],
)
def test_damaged_records_are_the_reason(content: bytes, reason: str, folder: SweepFolder) -> None:
    """The last step before them is known; without one, the run has no steps."""
    path = folder.run("1x1-b") / metrics_name(0)
    for before, steps in ((b"", 0), (b'{"kind": "step", "step": 4}\n', 4)):
        path.write_bytes(before + content)
        row = rows_of(folder)[1]
        assert row.figures["steps"] == steps
        assert row.scheduled.reason == f"rank 0 on n1: ValueError: m; metrics-rank00000.jsonl is damaged: {reason}"


# Lines that are no event, or no row of the accounting.
BAD_LINES = [content.replace(b"\n", b"") or b" " for content, _ in DAMAGE.values()]
BAD_EVENTS = [
    {}, {"event": 3}, {"event": "record"}, {"event": "record", "jobs": {"1x1-a": 7}, "time_s": 1.0},
    {"event": "record", "jobs": {"1x1-a": "7"}, "time_s": "now"}, {"event": "intend", "run_ids": "1x1-a"},
    {"event": "intend", "run_ids": [["1x1-a"]]}, {"event": "forget"}, {"event": "give_up", "run_ids": None},
    {"event": "record", "jobs": {}, "time_s": 1.0, "queue": {"host": "h"}},
    {"event": "record", "jobs": {}, "time_s": 1.0, "queue": {"host": "h", "pid": 10**30, "created_s": 1.0}},
    {"event": "record", "jobs": {}, "time_s": 1.0, "set": [1]},
    {"event": "record", "jobs": {"1x1-a": ""}, "time_s": 1.0}, {"event": "intend", "run_ids": ["x/\0"]},
    {"event": "record", "jobs": {"1x1-a": "../x"}, "time_s": 1.0}, {"event": "forget", "run_ids": [""]},
    {"event": "record", "jobs": {"../x": "7"}, "time_s": 1.0},
]  # fmt: skip


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("line", [*BAD_LINES, *(json.dumps(event).encode() for event in BAD_EVENTS)])
def test_a_damaged_ledger_line_is_a_notice(line: bytes, place: int, folder: SweepFolder) -> None:
    path = folder.path / ledger.LEDGER_NAME
    lines = path.read_bytes().splitlines()
    lines.insert(place, line)
    path.write_bytes(b"\n".join(lines) + b"\n")
    status = read_status(folder, {})
    assert [row.state for row in status.results] == ["COMPLETED", "FAILED"]
    assert status.notices == (f"line {place + 1} of ledger.jsonl is damaged: jobs may be missing",)


def test_an_event_of_a_newer_version_is_no_damage(folder: SweepFolder) -> None:
    ledger.append_lines(folder.path / ledger.LEDGER_NAME, [json.dumps({"event": "token", "token": 1})])
    assert read_status(folder, {}).notices == ()


@pytest.mark.parametrize(
    "line", [*BAD_LINES, b"{}", b'{"job_id": 7}', b'{"job_id": "7", "submit_s": "x"}', b'{"job_id": "7", "state": 1}']
)
def test_a_damaged_accounting_line_is_a_notice(line: bytes, folder: SweepFolder) -> None:
    content = folder.accounting_file.read_bytes()
    folder.accounting_file.write_bytes(line + b"\n" + content + line + b"\n")
    status = read_status(folder, {})
    assert [row.state for row in status.results] == ["COMPLETED", "FAILED"]
    assert status.notices == ("2 lines of accounting.jsonl are damaged, the first is line 1: states may be missing",)
    assert set(last_known(folder).states.values()) == {State.COMPLETED, State.FAILED}


def test_a_damaged_record_hides_no_submission(folder: SweepFolder) -> None:
    """The status does not say that runs were never submitted: it cannot know."""
    ledger.intend(folder.path, ["1x1-a"], 0.5)
    path = folder.path / ledger.LEDGER_NAME
    path.write_bytes(b"\xff" + path.read_bytes()[1:])
    assert read_status(folder, {}).notices == (
        "line 1 of ledger.jsonl is damaged: jobs may be missing",
        "2 of 2 runs have no job in the readable lines of ledger.jsonl; they may have been submitted",
    )


def test_times_outside_the_calendar_are_unknown(folder: SweepFolder) -> None:
    row = AccountingRow("local-1-0", state=State.COMPLETED, submit_s=1, start_s=2**62, end_s=-(2**62))
    ledger.append_lines(folder.accounting_file, [json.dumps(row.to_json())])
    scheduled = rows_of(folder)[0].scheduled
    assert (scheduled.start_time, scheduled.end_time) == (None, None)


PLAN_DAMAGE: list[tuple[Any, str]] = [
    ({}, "it has no list 'runs'"),
    ({"runs": {}}, "it has no list 'runs'"),
    ({"runs": [3]}, "runs[0] is 3"),
    ({"runs": [{}]}, "runs[0]: it has no 'run_id'"),
    ({"runs": [{"run_id": "../x", "allocation": "1x1", "world_size": 1, "point": {}, "train": {"model": "bert"}}]},
     "runs[0]: run_id is '../x'"),
    ({"runs": [{"run_id": "x", "allocation": "1x1", "world_size": 2**60, "point": {}, "train": {"model": "bert"}}]},
     "runs[0]: world_size is 1152921504606846976"),
    ({"runs": [{"run_id": "x", "allocation": "1x1", "world_size": 1, "point": {}, "train": {}}]},
     "runs[0]: train.model is None"),
]  # fmt: skip


@pytest.mark.parametrize("run_id", ["[/x]", "[bold]"])
def test_damage_in_the_list_is_shown_as_it_is(run_id: str, folder: SweepFolder, tmp_path: Path) -> None:
    """rich takes words in brackets for its markup."""
    run = {"run_id": run_id, "allocation": "1x1", "world_size": 1, "point": {}, "train": {"model": "bert"}}
    folder.plan_file.write_text(json.dumps({"runs": [run]}))
    console = Console(width=500, file=io.StringIO(), record=True)
    console.print(sweeps_table(listed_sweeps(tmp_path)))
    assert f"run_id is '{run_id}'" in console.export_text()


@pytest.mark.parametrize(
    ("content", "reason"),
    [*DAMAGE.values(), *((json.dumps(plan).encode(), reason) for plan, reason in PLAN_DAMAGE)],
)
def test_a_damaged_plan_is_one_line(content: bytes, reason: str, folder: SweepFolder, tmp_path: Path) -> None:
    folder.plan_file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_status(folder, {})
    hint = "restore it, or remove it: sweep submit writes it again, and does not repeat what is done"
    assert str(caught.value) == f"{folder.path}: plan.json is damaged: {reason} ({hint})"
    (listed,) = listed_sweeps(tmp_path)
    assert str(listed.error).startswith(f"cannot be read: {folder.path}: plan.json is damaged")


@pytest.mark.parametrize("content", [b"", b"\xff/x", b"x", b"a/b/c", b"a/\x00"])
def test_a_damaged_name_of_the_last_sweep(content: bytes, folder: SweepFolder, tmp_path: Path) -> None:
    (tmp_path / ".last").write_bytes(content)
    with pytest.raises(UserError):
        find_folder(tmp_path, None, None)


@pytest.mark.parametrize("content", [b"", b"x", b"\xff", b"nan", b"1e300", b"-5"])
def test_a_damaged_query_time_is_unknown(content: bytes, folder: SweepFolder) -> None:
    folder.query_time_file.write_bytes(content)
    assert folder.last_query_s() is None


VANISHING: list[Callable[[SweepFolder], Path]] = [
    lambda folder: folder.run("1x1-a") / "summary.json",
    lambda folder: folder.run("1x1-a") / "run.json",
    lambda folder: folder.run("1x1-b") / failure_name(0),
    lambda folder: folder.plan_file,
    lambda folder: folder.accounting_file,
    lambda folder: folder.path / ledger.LEDGER_NAME,
]


@pytest.mark.parametrize("path_of", VANISHING)
def test_a_file_that_disappears_is_absent(
    path_of: Callable[[SweepFolder], Path], folder: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between any question whether it exists and the reading: the read itself finds it gone."""
    gone, open_path = path_of(folder), Path.open

    def open_gone(path: Path, *arguments: Any, **options: Any) -> Any:
        if path == gone:
            path.unlink(missing_ok=True)
        return open_path(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", open_gone)  # Path.read_bytes uses it too
    read_status(folder, {})
    last_known(folder)
    assert not gone.exists(), "it was read"


def test_a_folder_that_disappears_has_no_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_run(tmp_path / "missing") == RunRecords()
    (tmp_path / "file").touch()
    assert read_run(tmp_path / "file") == RunRecords()
    monkeypatch.setattr("jobs.storage.run_facts.os.listdir", lambda path: [failure_name(0)])
    assert read_run(tmp_path / "missing") == RunRecords()


def test_a_file_without_permission(folder: SweepFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may read every file, so the refusal is a mock."""
    read_bytes = Path.read_bytes

    def read(path: Path) -> bytes:
        if path.name in ("summary.json", "run.json"):
            raise PermissionError(13, os.strerror(13), str(path))
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", read)
    assert rows_of(folder)[0].scheduled.reason == "summary.json cannot be read: Permission denied"


def test_every_other_figure_of_a_summary_may_be_missing(folder: SweepFolder) -> None:
    (folder.run("1x1-a") / "summary.json").write_text(json.dumps({**dict.fromkeys(SUMMARY_FIGURES), "steps": 3}))
    assert rows_of(folder)[0].scheduled.reason is None
