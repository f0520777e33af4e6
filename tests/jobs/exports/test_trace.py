"""The trace of handmade and of real records, read by a parser that knows only the format."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from disttrain.errors import UserError
from disttrain.records.record_files import from_json
from disttrain.records.record_types import ExchangeRecord, StepRecord
from disttrain.records.summary_types import RunInfo
from jobs.exports.trace import ALL_STEPS, StepRange, parse_steps, write_script_trace, write_trace
from jobs.storage.sweep_folder import SweepFolder
from tests.jobs.command import Sweep
from tests.jobs.results.drawing.test_figures import two_ranks, write_run
from tests.jobs.script_runs import log, make_scripts

Event = dict[str, Any]


def parse(path: Path) -> tuple[list[Event], dict[tuple[int, int], str]]:
    """The spans and counters of a file in the Trace Event Format, and the name of each track by process and thread.

    It refuses what the format does not allow, and spans that overlap on a track.
    """

    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is no JSON")

    trace = json.loads(path.read_text(), parse_constant=refuse)
    assert isinstance(trace["traceEvents"], list)
    assert trace["displayTimeUnit"] in ("ms", "ns")
    events: list[Event] = []
    processes: dict[tuple[int, int], str] = {}
    tracks: dict[tuple[int, int], str] = {}
    ends: dict[tuple[int, int], float] = {}
    for event in trace["traceEvents"]:
        place = (event["pid"], event["tid"])
        assert all(type(number) is int and number > 0 for number in place)
        assert isinstance(event["name"], str)
        if event["ph"] == "M":
            if event["name"] == "process_name":
                processes[event["pid"], 0] = event["args"]["name"]
            if event["name"] == "thread_name":
                tracks[place] = event["args"]["name"]
            continue
        assert event["ph"] in ("X", "C")
        assert math.isfinite(event["ts"])
        if event["ph"] == "X":
            assert math.isfinite(event["dur"])
            assert event["dur"] >= 0
            assert event["ts"] >= ends.get(place, -math.inf) - 0.002  # rounded to ns
            ends[place] = event["ts"] + event["dur"]
            assert place in tracks
        else:
            assert all(math.isfinite(value) for value in event["args"].values())
        assert event["pid"] in {process for process, _ in processes}
        events.append(event)
    assert len({thread for _, thread in tracks}) == len(tracks), "two processes share a thread"
    return events, processes | tracks


def info(run: dict[str, Any]) -> RunInfo:
    return from_json(RunInfo, {**run, "versions": {}})


@pytest.fixture
def handmade(tmp_path: Path) -> tuple[Path, RunInfo]:
    run_dir = tmp_path / "2x1-a"
    return run_dir, info(write_run(run_dir, two_ranks()))


def test_the_place_of_every_span(handmade: tuple[Path, RunInfo], tmp_path: Path) -> None:
    """Step 3 begins at 3 s on rank 0, and 3 ms later on rank 1, whose clock is 7 s ahead."""
    run_dir, run = handmade
    assert write_trace(run_dir, run, "a", tmp_path / "t.json", StepRange(3, 3)) == 2
    events, names = parse(tmp_path / "t.json")
    phases = {
        "data": (0, 5),
        "forward": (5, 20),
        "backward compute": (25, 35),
        "exposed": (60, 25),
        "optimizer": (85, 10),
    }
    buckets = {"bucket 1": (30, 5), "bucket 2": (40, 30), "bucket 3": (60, 25)}
    for process, late_ms in ((1, 0), (2, 3)):
        own = {event["name"]: event for event in events if event["pid"] == process}
        spans = {
            name: (round(event["ts"] / 1000 - 3000 - late_ms, 2), round(event["dur"] / 1000, 2))
            for name, event in own.items()
        }
        assert spans == phases | buckets
        assert names[process, own["bucket 2"]["tid"]] == "bucket 2"
        assert names[process, own["data"]["tid"]] == "phases"
        assert own["bucket 2"]["args"] == {"step": 3, "size_bytes": 2**20}
    assert {name for name in names.values() if name.startswith("rank")} == {"rank 0 on host0", "rank 1 on host1"}


def test_default_and_all_steps(tmp_path: Path) -> None:
    """The median of the measured steps 2 to 5 is step 4, and 20 steps around it are more than there are."""
    run_dir = tmp_path / "2x1-a"
    run = info(write_run(run_dir, two_ranks()))
    assert write_trace(run_dir, run, "a", tmp_path / "t.json", None) == 10
    assert write_trace(run_dir, run, "a", tmp_path / "t.json", ALL_STEPS) == 10
    with pytest.raises(UserError, match="has none of these steps"):
        write_trace(run_dir, run, "a", tmp_path / "other.json", StepRange(6, 9))
    assert not (tmp_path / "other.json").exists()


def test_without_bucket_times(tmp_path: Path) -> None:
    records = two_ranks()
    for rank, own in records.items():
        steps = [record for record in own if isinstance(record, StepRecord)]
        records[rank] = [
            StepRecord(**{**vars(step), "exposed_comm_ms": None, "overlapped_comm_ms": None}) for step in steps
        ]
    run = info(write_run(tmp_path / "2x1-a", records))
    write_trace(tmp_path / "2x1-a", run, "a", tmp_path / "t.json", ALL_STEPS)
    events, _ = parse(tmp_path / "t.json")
    assert {event["name"] for event in events} == {"data", "forward", "backward", "optimizer"}


def test_a_bucket_without_its_time_is_damage(tmp_path: Path) -> None:
    records = two_ranks()
    records[1].append(records[1][1])
    records[1].append(ExchangeRecord(step=1, bucket_bytes=(1, 2), ready_ms=(1.0,), done_ms=(2.0,)))
    run = info(write_run(tmp_path / "2x1-a", records))
    with pytest.raises(UserError, match="has not one time for each bucket"):
        write_trace(tmp_path / "2x1-a", run, "a", tmp_path / "t.json", ALL_STEPS)


def test_metrics_of_a_script(tmp_path: Path) -> None:
    log(tmp_path, [{"step": 1, "loss": 2.0}, {"step": 2, "loss": math.nan, "lr": 0.1}, {"loss": 9.0}])
    log(tmp_path, [{"step": 2, "loss": 1.0}])
    assert write_script_trace(tmp_path, "a", tmp_path / "t.json", None) == 3
    events, names = parse(tmp_path / "t.json")
    shown = [(event["pid"], event["ts"], event["name"], event["args"]["value"]) for event in events]
    assert shown == [(1, 1000, "loss", 2.0), (1, 2000, "lr", 0.1), (2, 2000, "loss", 1.0)]
    assert list(names.values()) == ["rank 0, attempt 001", "rank 0, attempt 002"]
    with pytest.raises(UserError, match="has logged no metrics"):
        write_script_trace(tmp_path, "a", tmp_path / "t.json", StepRange(3, 9))


@pytest.mark.parametrize("text", ["", "a", "3-", "-3", "5-2", "1-2-3", "²"])
def test_no_range_of_steps(text: str) -> None:
    with pytest.raises(UserError, match="is no range of steps"):
        parse_steps(text)


@pytest.mark.process
def test_the_command(sweep: Sweep, submitted: SweepFolder) -> None:
    run = submitted.planned_runs()[1]
    run_dir = submitted.run(run["run_id"])
    unread = sweep("trace", "2x1")
    assert (unread.exit_code, unread.out) == (2, "")
    assert unread.err.startswith("error: ")
    assert unread.err.count("\n") == 1
    write_run(run_dir, two_ranks())
    assert sweep("trace", "2x1", "--steps", "2-3").out == f"wrote {run_dir / 'trace.json'}\n"
    events, _ = parse(run_dir / "trace.json")
    assert {event["args"]["step"] for event in events} == {2, 3}
    assert sweep("trace", "2x1", "--steps", "x").exit_code == 2


@pytest.mark.process
def test_the_command_for_a_script(sweep: Sweep, submitted: SweepFolder) -> None:
    make_scripts(submitted)
    log(submitted.run(submitted.planned_runs()[0]["run_id"]), [{"step": 1, "loss": 2.0}])
    assert sweep("trace", "1x1", "-o", "t.json").exit_code == 0
    assert len(parse(Path("t.json"))[0]) == 1
    assert "has logged no metrics" in sweep("trace", "2x1").err
