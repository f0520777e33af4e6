"""The figures of handmade records: the place of every bar, the files and their names, and the errors."""

from __future__ import annotations

import json
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from disttrain.errors import UserError
from disttrain.records.record_files import RecordWriter, metrics_name
from disttrain.records.record_types import ClockRecord, ExchangeRecord, LinkRecord, Record, StartRecord, StepRecord
from jobs.results.drawing.figures import bus_bandwidth, save, write_figures
from jobs.results.drawing.step_lanes import read_timeline
from jobs.results.drawing.timeline import new_figure, timeline
from jobs.results.text_table import binary_size
from jobs.storage.sweep_folder import SweepFolder

LINKS = tuple(
    LinkRecord(
        size_bytes=size,
        repeats=10,
        median_ms=time_ms,
        min_ms=time_ms / 2,
        p95_ms=time_ms * 4,
        algorithm_gb_per_s=size / time_ms / 1e6,
        bus_gb_per_s=size / time_ms / 1e6,
    )
    for size, time_ms in ((4096, 0.5), (2**20, 10.0), (2**24, 100.0))
)


def start_of(rank: int) -> StartRecord:
    return StartRecord(
        time_s=0.0, rank=rank, world_size=2, local_rank=0, node_rank=rank, host=f"host{rank}", pid=1, job_id=None,
        restart_count=0, first_step=1, device="cpu", device_name="", backend="gloo", shared_gpu=False, folded=False,
        threads=1, versions={}, parameters=1, train_examples=1, eval_examples=0, notices=(),
    )  # fmt: skip


def step_of(number: int, start_s: float, optimizer_ms: float) -> tuple[StepRecord, ExchangeRecord]:
    """5 ms data, 20 ms forward, 60 ms backward with 25 ms exposed at its end; buckets are ready at 30, 40 and 60 ms."""
    step = StepRecord(
        step=number, epoch=0, start_s=start_s, loss=1.0, lr=1.0, examples=1, data_ms=5.0, forward_ms=20.0,
        backward_ms=60.0, optimizer_ms=optimizer_ms, step_ms=85.0 + optimizer_ms, exposed_comm_ms=25.0,
        overlapped_comm_ms=30.0,
    )  # fmt: skip
    sizes = (4096, 2**20, 3 * 2**20)
    return step, ExchangeRecord(step=number, bucket_bytes=sizes, ready_ms=(30, 40, 60), done_ms=(35, 70, 85))


def write_run(run_dir: Path, records: dict[int, list[Record]], **train: Any) -> dict[str, Any]:
    """Writes a finished 2x1 run with these records by rank, and returns it as a plan has it."""
    run = {
        "run_id": run_dir.name, "allocation": "2x1", "nodes": 2, "gpus_per_node": 1, "world_size": 2, "versions": {},
        "point": {name: value for name, value in train.items() if name == "model"},
        "train": {"model": "bert", "timing_warmup_steps": 1, "detailed_timing": True, **train},
    }  # fmt: skip
    for rank, rank_records in records.items():
        with RecordWriter(run_dir / metrics_name(rank)) as writer:
            writer.write([start_of(rank), *rank_records])
    (run_dir / "run.json").write_text(json.dumps(run))
    (run_dir / "summary.json").write_text("{}")
    return run


def two_ranks() -> dict[int, list[Record]]:
    """Five steps. The clock of host 1 is 7 s ahead of host 0, and rank 1 begins each step 3 ms later."""
    records: dict[int, list[Record]] = {}
    for rank, ahead_s, late_s in ((0, 0.0, 0.0), (1, 7.0, 0.003)):
        clocks = [ClockRecord(at_s=at_s + ahead_s, offset_s=ahead_s, error_s=0.0) for at_s in (0.0, 100.0)]
        steps = [
            step_of(number, number + ahead_s + late_s, optimizer_ms)
            for number, optimizer_ms in enumerate((500.0, 30.0, 10.0, 15.0, 20.0), start=1)
        ]
        records[rank] = [clocks[0], *(record for pair in steps for record in pair), clocks[1]]
    return records


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    write_run(tmp_path / "2x1-a", two_ranks())
    return tmp_path / "2x1-a"


def bars(run_dir: Path, step: int | None = None) -> tuple[dict[str, tuple[float, float]], list[str]]:
    """The begin and end of each bar of a timeline by its name, and all texts."""
    figure = timeline(run_dir, "2x1 lr=1", step)
    (axes,) = figure.axes
    spans = {}
    for patch in axes.patches:
        if patch.get_gid():
            box = patch.get_extents().transformed(axes.transData.inverted())
            spans[str(patch.get_gid())] = (round(box.x0, 3), round(box.x1, 3))
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert figure.get_suptitle()
    return spans, [figure.get_suptitle(), *labels, *(text.get_text() for text in axes.texts)]


def test_place_of_every_bar(run_dir: Path) -> None:
    """All bars are on the clock of rank 0."""
    spans, texts = bars(run_dir, 3)
    expected = {
        "data": (0, 5), "forward": (5, 25), "backward-compute": (25, 60), "exposed": (60, 85), "optimizer": (85, 95),
        "bucket1-hidden": (30, 35), "bucket2-hidden": (40, 60), "bucket2-exposed": (60, 70),
        "bucket3-exposed": (60, 85),
    }  # fmt: skip
    # Rounded to microseconds, because the large values of a host's clock limit the resolution.
    assert spans == {
        f"rank{rank}-{name}": (begin + late, end + late)
        for rank, late in ((0, 0.0), (1, 3.0))
        for name, (begin, end) in expected.items()
    }
    assert texts[0] == (
        "run 2x1-a (2x1 lr=1), step 3\nrank 0: exposed 25 ms, overlapped 30 ms; rank 1: exposed 25 ms, overlapped 30 ms"
    )
    buckets = ["bucket 1, 4 KiB", "bucket 2, 1 MiB", "bucket 3, 3 MiB"]
    assert texts[1:9] == ["rank 0 on host0", *buckets, "rank 1 on host1", *buckets]
    assert texts.count("exposed 25 ms") == 2


def test_default_step_has_the_median_time(run_dir: Path) -> None:
    _, texts = bars(run_dir)  # the measured steps have 30, 10, 15 and 20 ms in the optimizer; 15 is the lower median
    assert texts[0].startswith("run 2x1-a (2x1 lr=1), step 4\n")


def test_a_run_within_its_warmup_is_drawn(tmp_path: Path) -> None:
    write_run(tmp_path / "short", two_ranks(), timing_warmup_steps=10)
    _, texts = bars(tmp_path / "short")  # of 500, 30, 10, 15 and 20 ms, 20 is the median
    assert texts[0].startswith("run short (2x1 lr=1), step 5\n")


def test_a_resumed_run_has_its_host_of_the_step(tmp_path: Path) -> None:
    records = two_ranks()
    records[1].insert(7, replace(start_of(1), host="another", first_step=4))
    write_run(tmp_path / "resumed", records)
    for step, host in ((3, "host1"), (4, "another")):
        _, texts = bars(tmp_path / "resumed", step)
        assert f"rank 1 on {host}" in texts


def test_a_rank_that_begins_earlier_is_in_view(tmp_path: Path) -> None:
    earlier, later = two_ranks().values()
    write_run(tmp_path / "early", {0: later, 1: earlier})
    spans, _ = bars(tmp_path / "early", 3)
    assert (spans["rank0-data"], spans["rank1-data"]) == ((0, 5), (-3, 2))
    (axes,) = timeline(tmp_path / "early", "2x1", 3).axes
    assert axes.get_xlim()[0] < -3


def test_many_buckets_have_no_labels(tmp_path: Path) -> None:
    records = two_ranks()
    for rank_records in records.values():
        rank_records[2] = ExchangeRecord(
            step=1, bucket_bytes=(8,) * 200, ready_ms=tuple(range(26, 226)), done_ms=tuple(range(30, 230))
        )
    write_run(tmp_path / "many", records)
    spans, texts = bars(tmp_path / "many", 1)
    assert not [text for text in texts if text.startswith("bucket")]
    assert len({name.split("-")[1] for name in spans if "bucket" in name}) == 200


def test_timeline_errors(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--step: run 2x1-a \(2x1\) has no step 6 \(it has steps 1 to 5\)$"):
        timeline(run_dir, "2x1", 6)
    plain: dict[int, list[Record]] = {
        rank: [record for record in rank_records if isinstance(record, StepRecord)]
        for rank, rank_records in two_ranks().items()
    }
    write_run(tmp_path / "plain", plain)
    with pytest.raises(UserError, match=r"run plain \(2x1\) has no bucket times in step 4 \(set detailed_timing: true"):
        timeline(tmp_path / "plain", "2x1")


def test_long_run_needs_little_memory(tmp_path: Path) -> None:
    many = tuple(100 / 3 + bucket for bucket in range(200))
    exchanges = [ExchangeRecord(step=1, bucket_bytes=(8,) * 200, ready_ms=many, done_ms=many)] * 300
    records: list[Record] = [
        record
        for number, exchange in enumerate(exchanges, start=1)
        for record in (step_of(number, 0.0, 1.0)[0], replace(exchange, step=number))
    ]
    write_run(tmp_path / "long", {0: records, 1: records})
    tracemalloc.start()
    try:
        shown = read_timeline(tmp_path / "long", "2x1")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [lane.exchange.done_ms for lane in shown.lanes] == [many, many]
    assert peak < (tmp_path / "long" / metrics_name(0)).stat().st_size / 2


def test_bus_bandwidth_figure() -> None:
    figure = bus_bandwidth([start_of(0), *reversed(LINKS)], "run 2x1-a on 2x1")
    (axes,) = figure.axes
    (line,) = axes.lines
    assert np.asarray(line.get_xdata()).tolist() == [link.size_bytes for link in LINKS]
    assert np.asarray(line.get_ydata()).tolist() == [link.bus_gb_per_s for link in LINKS]
    assert axes.get_xscale() == "log"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["4 KiB", "1 MiB", "16 MiB"]
    (band,) = axes.collections
    box = band.get_datalim(axes.transData)
    assert [box.ymin, box.ymax] == pytest.approx([LINKS[0].bus_gb_per_s / 4, LINKS[2].bus_gb_per_s * 2])
    assert axes.get_title().splitlines() == [
        "All-reduce, run 2x1-a on 2x1",
        "latency 0.5 ms (median of 4 KiB), bandwidth 0.168 x 10⁹ bytes/s (of 16 MiB)",
    ]
    with pytest.raises(
        UserError, match=r"^run x has not measured a link \(measure_link: true in the sweep measures it\)$"
    ):
        bus_bandwidth([start_of(0)], "run x")


def test_files_are_reproducible(run_dir: Path, tmp_path: Path) -> None:
    written = []
    for _ in range(2):
        save(timeline(run_dir, "2x1"), tmp_path / "figure.svg")
        written.append((tmp_path / "figure.svg").read_bytes())
    assert written[0] == written[1]
    assert b"rank1-bucket2-hidden" in written[0]
    save(bus_bandwidth(LINKS), tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_without_steps_is_one_line(run_dir: Path) -> None:
    path = run_dir / metrics_name(0)
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    with pytest.raises(UserError, match=r"metrics-rank00000\.jsonl is damaged: it has no steps$"):
        timeline(run_dir, "2x1")
    with pytest.raises(UserError, match=r"has no step 2 \(it has no steps\)$"):
        timeline(run_dir, "2x1", 2)


@pytest.mark.parametrize(
    "line",
    [
        b"", b"{", b"[]", b"\xff", b'{"kind": "step", "step": 1}', b'{"kind": "start", "rank": "0"}', bytes(100),
        b'{"kind": "exchange", "step": 4, "bucket_bytes": [8], "ready_ms": [], "done_ms": [1]}',
        b'{"kind": "exchange", "step": 4, "bucket_bytes": [], "ready_ms": [], "done_ms": []}',
        b'{"kind": "exchange", "step": 4, "bucket_bytes": ["8"], "ready_ms": [1], "done_ms": [1]}',
    ],
)  # fmt: skip
@pytest.mark.parametrize("rank", [0, 1])
def test_a_damaged_line_is_one_line(line: bytes, rank: int, run_dir: Path) -> None:
    path = run_dir / metrics_name(rank)
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(UserError) as caught:
        timeline(run_dir, "2x1", 4)
    assert str(caught.value).startswith(f"{run_dir}: {path.name} is damaged: ")


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff", None])
def test_a_timeline_without_run_file_is_one_line(content: bytes | None, run_dir: Path) -> None:
    path = run_dir / "run.json"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"run\.json"):
        timeline(run_dir, "2x1")


@pytest.mark.parametrize("changes", [{"p95_ms": 0.0}, {"min_ms": 0.0}, {"bus_gb_per_s": 0.0}, {"size_bytes": 0}])
def test_a_link_without_a_time_is_one_line(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="times or sizes that are not positive"):
        bus_bandwidth([start_of(0), *LINKS, replace(LINKS[0], **changes)])


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    """A sweep of a run with bucket times, two link runs, a run without bucket times and an unfinished run."""
    folder = SweepFolder(tmp_path / "s" / "site")
    link: dict[int, list[Record]] = {0: list(LINKS), 1: []}
    runs = [
        write_run(folder.run("2x1-a"), two_ranks()),
        write_run(folder.run("2x1-b"), link, model="link", detailed_timing=False),
        write_run(folder.run("4x1-c"), link, model="link", detailed_timing=False) | {"allocation": "4x1"},
        write_run(folder.run("2x1-d"), two_ranks(), detailed_timing=False),
        write_run(folder.run("2x1-e"), two_ranks()),
    ]
    (folder.run("2x1-e") / "summary.json").unlink()
    folder.plan_file.write_text(json.dumps({"runs": runs}))
    return folder


def test_files_of_a_sweep(folder: SweepFolder, tmp_path: Path) -> None:
    written = list(write_figures(folder, None, None, None))
    names = ["timeline-2x1-a.svg", "bus-bandwidth-2x1.svg", "bus-bandwidth-4x1.svg"]
    assert written == [folder.path / "figures" / name for name in names]
    assert all(path.read_text().startswith("<?xml") for path in written)
    single = list(write_figures(folder, tmp_path / "mine", "2x1-a", 2))
    assert single == [tmp_path / "mine" / "timeline-2x1-a.svg"]


def test_a_damaged_run_is_left_out(folder: SweepFolder, tmp_path: Path) -> None:
    """The others are drawn; a run that is named, or the only one, gives the error."""
    path = folder.run("2x1-a") / metrics_name(0)
    path.write_bytes(b"{\n")
    (folder.run("2x1-b") / metrics_name(0)).unlink()
    notes: list[str] = []
    written = list(write_figures(folder, tmp_path / "mine", None, None, notes.append))
    assert [path.name for path in written] == ["bus-bandwidth-4x1.svg"]
    assert len(notes) == 2
    assert notes[0].startswith("run 2x1-a (2x1 model=bert detailed_timing=true) is not drawn: metrics-rank00000.jsonl ")
    assert notes[1].endswith("metrics-rank00000.jsonl cannot be read: No such file or directory")
    with pytest.raises(UserError, match=r"metrics-rank00000\.jsonl is damaged: line 1"):
        list(write_figures(folder, tmp_path / "mine", "2x1-a", None))
    (folder.run("4x1-c") / metrics_name(0)).write_bytes(b"\xff\n")
    with pytest.raises(UserError, match=r"^none of the 3 finished runs can be drawn \(the notes say why\)$"):
        list(write_figures(folder, tmp_path / "mine", None, None))


def test_a_run_without_the_step_is_left_out(folder: SweepFolder, tmp_path: Path) -> None:
    notes: list[str] = []
    written = list(write_figures(folder, tmp_path / "mine", None, 99, notes.append))
    assert [path.name for path in written] == ["bus-bandwidth-2x1.svg", "bus-bandwidth-4x1.svg"]
    assert notes == ["not drawn: run 2x1-a (2x1 model=bert detailed_timing=true) has no step 99 (it has steps 1 to 5)"]


def keep_lines(path: Path, is_kept: Callable[[bytes], bool], most: int | None = None) -> None:
    """Cuts a file of records to its first lines of some kinds."""
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(list(filter(is_kept, lines))[:most]))


@pytest.mark.parametrize("kept_lines", [0, 1, 4])
@pytest.mark.parametrize(
    ("run_id", "rank", "step", "reason"),
    [
        ("2x1-a", 0, None, "metrics-rank00000.jsonl is damaged: it has no steps"),
        ("2x1-a", 1, None, "metrics-rank00001.jsonl is damaged: it has no step 4"),
        ("2x1-a", 1, 3, "metrics-rank00001.jsonl is damaged: it has no step 3"),
        ("2x1-b", 0, None, "metrics-rank00000.jsonl is damaged: it has no link records"),
    ],
)
def test_a_run_with_a_cut_file_is_left_out(
    folder: SweepFolder, tmp_path: Path, run_id: str, rank: int, step: int | None, reason: str, kept_lines: int
) -> None:
    """A crash after the summary may leave empty or cut files of records. The other runs are drawn."""
    path = folder.run(run_id) / metrics_name(rank)
    keep_lines(path, lambda line: b'"step"' not in line and b'"link"' not in line, kept_lines)
    notes: list[str] = []
    written = list(write_figures(folder, tmp_path / "mine", None, step, notes.append))
    assert len(written) == 2
    (note,) = notes
    assert note.startswith(f"run {run_id} (")
    assert note.endswith(f") is not drawn: {reason}")


@pytest.mark.parametrize("step", [None, 3])
def test_a_step_without_its_buckets_is_left_out(folder: SweepFolder, tmp_path: Path, step: int | None) -> None:
    keep_lines(folder.run("2x1-a") / metrics_name(1), lambda line: b"bucket_bytes" not in line)
    notes: list[str] = []
    written = list(write_figures(folder, tmp_path / "mine", None, step, notes.append))
    assert len(written) == 2
    name = "run 2x1-a (2x1 model=bert detailed_timing=true)"
    reason = f"metrics-rank00001.jsonl of {name} has no bucket times in step {step or 4}"
    assert notes == [f"not drawn: {reason} (set detailed_timing: true in base, on an allocation of several ranks)"]


def test_run_files_are_not_needed(folder: SweepFolder, tmp_path: Path) -> None:
    """Only its owner may read a run.json."""
    for path in folder.path.glob("runs/*/run.json"):
        path.unlink()
    assert len(list(write_figures(folder, tmp_path / "mine", None, None))) == 3


def test_figures_that_cannot_be_written(folder: SweepFolder, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for target in (tmp_path / "file", tmp_path / "no" / "folder", Path("/proc")):
        with pytest.raises(UserError, match=r"cannot be written: .* \(write the figures elsewhere: -o FOLDER\)$"):
            list(write_figures(folder, target, None, None))


def test_two_links_have_two_files(folder: SweepFolder) -> None:
    runs = folder.planned_runs()
    folder.plan_file.write_text(json.dumps({"runs": [runs[1], {**runs[2], "allocation": "2x1"}]}))
    written = [path.name for path in write_figures(folder, None, None, None)]
    assert written == ["bus-bandwidth-2x1-b.svg", "bus-bandwidth-4x1-c.svg"]


@pytest.mark.parametrize(
    ("run_id", "error"),
    [
        (
            "x",
            "no run of this sweep is 'x' (its runs: 2x1-a (2x1 model=bert detailed_timing=true),"
            " 2x1-b (2x1 model=link), 4x1-c (4x1 model=link), 2x1-d (2x1 model=bert detailed_timing=false),"
            " 2x1-e (2x1 model=bert detailed_timing=true))",
        ),
        (
            "2x1",
            "'2x1' is the start of the id of 4 runs (write one of their ids in full: 2x1-a, 2x1-b, 2x1-d, 2x1-e)",
        ),
        (
            "2x1-e",
            "run 2x1-e (2x1 model=bert detailed_timing=true) has nothing to draw yet: no run has finished"
            " (sweep status shows the progress)",
        ),
        (
            "2x1-d",
            "run 2x1-d (2x1 model=bert detailed_timing=false) has nothing to draw"
            " (set detailed_timing: true in base, on an allocation of several ranks, or"
            " set measure_link: true next to base)",
        ),
    ],
)
def test_nothing_to_draw_writes_nothing(folder: SweepFolder, run_id: str, error: str) -> None:
    with pytest.raises(UserError) as raised:
        list(write_figures(folder, None, run_id, None))
    assert str(raised.value) == error
    assert not (folder.path / "figures").exists()


def test_folder_of_another_user(folder: SweepFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SweepFolder, "is_owner", lambda _: False)
    with pytest.raises(UserError, match=r"belongs to another user \(write the figures elsewhere: -o FOLDER\)$"):
        list(write_figures(folder, None, None, None))


def test_binary_size() -> None:
    assert [binary_size(size) for size in (4, 4096, 5 * 2**18, 2**28, 2**31)] == [
        "4 B", "4 KiB", "1.25 MiB", "256 MiB", "2 GiB"
    ]  # fmt: skip


def test_missing_matplotlib_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"figures need matplotlib.*pip install '\.\[report\]'"):
        new_figure(1.0, 1.0)
