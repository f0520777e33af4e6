"""The metrics of a script: against a simple implementation, and for files of any content."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disttrain.records.record_files import summary_from_json
from disttrain.records.script_metrics import (
    ScriptMetrics,
    last_step,
    lower_is_better,
    merge_ranks,
    metrics_files,
    new_metrics_file,
    summarise_file,
)

Lines = Sequence[dict[str, Any]]


def write(run_dir: Path, *attempts: Lines | bytes, rank: int = 0) -> None:
    """A file for each attempt, with these lines or bytes."""
    for lines in attempts:
        path = new_metrics_file(run_dir, rank)
        path.write_bytes(lines if isinstance(lines, bytes) else b"".join(map(line_of, lines)))


def line_of(values: dict[str, Any]) -> bytes:
    return json.dumps(values).encode() + b"\n"


def figures(*values: float, best: float | None = None) -> dict[str, float | None]:
    """Of finite values of a loss."""
    low = min(values)
    return {
        "last": values[-1], "mean": sum(values) / len(values), "best": low if best is None else best,
        "min": low, "max": max(values), "count": len(values),
    }  # fmt: skip


def test_figures_of_each_name(tmp_path: Path) -> None:
    write(tmp_path, [{"step": 1, "loss": 3, "acc": 0.25}, {"step": 5, "loss": 1.5}, {"acc": 0.75}, {"loss": 1.5}])
    assert summarise_file(tmp_path, 0) == ScriptMetrics(
        {"loss": figures(3.0, 1.5, 1.5), "acc": figures(0.25, 0.75, best=0.75)}, steps=5
    )
    assert summarise_file(tmp_path, 1) == ScriptMetrics()


def test_repeated_steps_count_once(tmp_path: Path) -> None:
    """The second attempt resumes after step 20, the third after step 10. No line without a step is repeated."""
    steps = [{"step": step, "loss": float(step)} for step in (10, 20, 30)]
    first = [*steps, {"step": 30, "only first": 1.0}, {"loss": 99.0}]
    second = [{"step": step, "loss": step + 0.5} for step in (30, 40)]
    write(tmp_path, first, second)
    assert summarise_file(tmp_path, 0).metrics["loss"] == figures(10.0, 20.0, 30.5, 40.5)
    write(tmp_path, [{"step": 20, "loss": 7.0}])
    found = summarise_file(tmp_path, 0)
    assert found.metrics["loss"]["count"] == 2
    assert found.metrics["loss"]["last"] == 7.0
    assert (found.metrics["only first"]["count"], found.steps) == (1, 20)


def test_values_without_a_step_are_of_the_latest_attempt(tmp_path: Path) -> None:
    """The first attempt fails, and the second starts over; an attempt that does not log a name changes nothing."""
    write(tmp_path, [{"loss": 100.0, "acc": 0.25}], [{"loss": 2.0}, {"loss": 1.0}], [])
    found = summarise_file(tmp_path, 0).metrics
    assert found == {"loss": figures(2.0, 1.0), "acc": figures(0.25)}
    write(tmp_path, [{"step": 5, "loss": 3.0}])
    assert summarise_file(tmp_path, 0).metrics["loss"] == figures(3.0)


def test_a_new_start_replaces_everything(tmp_path: Path) -> None:
    write(tmp_path, [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}], [], [{"step": 0, "loss": 4.0}])
    assert summarise_file(tmp_path, 0) == ScriptMetrics({"loss": figures(4.0)}, steps=0)


def test_values_that_are_not_finite_are_counted(tmp_path: Path) -> None:
    write(tmp_path, b'{"loss": 2, "nan": NaN}\n{"loss": NaN}\n{"loss": -Infinity, "huge": 1' + b"0" * 400 + b"}\n")
    none = dict.fromkeys(("last", "mean", "best", "min", "max"))
    assert summarise_file(tmp_path, 0).metrics == {
        "loss": {**figures(2.0), "last": None, "count": 3},
        "nan": {**none, "count": 1},
        "huge": {**none, "count": 1},
    }


def test_a_step_may_be_a_float(tmp_path: Path) -> None:
    write(tmp_path, [{"step": 10.0, "loss": 3.0}, {"step": 20.0, "loss": 2.0}], [{"step": 20.0, "loss": 1.0}])
    assert summarise_file(tmp_path, 0) == ScriptMetrics({"loss": figures(3.0, 1.0)}, steps=20)
    assert last_step(tmp_path, 0) == 20


def test_what_is_no_number_is_left_out(tmp_path: Path) -> None:
    values = {"a": True, "b": "0.5", "c": None, "d": [1.0], "e": {"loss": 1.0}, "f": 1}
    write(
        tmp_path,
        [{**values, "step": "7"}, {"step": 2.5, "f": 2}, {"step": True}, {"step": -1}, {"step": 2**63}, {"step": 1e30}],
    )
    found = summarise_file(tmp_path, 0)
    assert (list(found.metrics), found.steps, found.damaged_lines) == (["f"], None, 0)


@pytest.mark.parametrize(
    ("text", "damaged", "count"),
    [
        (b"", 0, 0),
        (b'\n \n{"a": 1}', 0, 1),
        (b'{"a": 1}\n{"a": 2', 1, 1),
        (b'{"a": 1}\n[1]\n3\nnull\nloss 0.5\n{"a": 2}\n', 4, 2),
        (b'\xff\xfe{"a": 1}\n{"a": 2}\n', 1, 1),
        (b"\0" * 100 + b'\n{"a": 1}\n', 1, 1),
        (b"[" * 100_000 + b'\n{"a": 1}\n', 1, 1),
        (b'{"a": ' + b"9" * 5000 + b'}\n{"a": 1}\n', 1, 1),
        (b'{"a": "' + b"x" * 3 * 2**20 + b'"}\n{"a": 1}\n', 1, 1),
        (b'{"a": 1}{"a": 2}\n{"a": 1}\r\n', 1, 1),
    ],
)
def test_damaged_lines_disturb_nothing(text: bytes, damaged: int, count: int, tmp_path: Path) -> None:
    write(tmp_path, text)
    found = summarise_file(tmp_path, 0)
    assert (found.damaged_lines, found.metrics.get("a", {}).get("count", 0)) == (damaged, count)
    notices = {0: (), 1: ("1 damaged line of $SWEEP_METRICS left out",)}
    assert found.notices() == notices.get(damaged, ("4 damaged lines of $SWEEP_METRICS left out",))
    assert last_step(tmp_path, 0) is None


def test_only_the_first_names_count(tmp_path: Path) -> None:
    write(tmp_path, [{f"m{number}": 1.0 for number in range(201)}, {"x" * 201: 1.0, "m0": 2.0}])
    found = summarise_file(tmp_path, 0)
    assert list(found.metrics) == [f"m{number}" for number in range(200)]
    assert found.metrics["m0"]["count"] == 2
    assert found.notices() == ("metrics after the first 200 names, and those of long names, left out",)


def test_no_two_names_become_one(tmp_path: Path) -> None:
    write(tmp_path, b'{"a b,\\u00e9": 1, "line\\nbreak": 2, "line\\\\nbreak": 3, "\\ud800": 4, "": 5}\n')
    metrics = summarise_file(tmp_path, 0).metrics
    assert {name: entry["last"] for name, entry in metrics.items()} == {
        "a b,é": 1.0, "line\nbreak": 2.0, "line\\nbreak": 3.0, "\ud800": 4.0, "": 5.0
    }  # fmt: skip


def test_files_of_each_attempt(tmp_path: Path) -> None:
    paths = [new_metrics_file(tmp_path, rank) for rank in (3, 3, 100_000)]
    assert [str(path.relative_to(tmp_path)) for path in paths] == [
        "script-metrics/rank00003-attempt001.jsonl",
        "script-metrics/rank00003-attempt002.jsonl",
        "script-metrics/rank100000-attempt001.jsonl",
    ]
    (tmp_path / "script-metrics" / "rank00003-attempt009.jsonl.gz").touch()
    assert metrics_files(tmp_path) == {3: paths[:2], 100_000: paths[2:]}
    assert metrics_files(tmp_path / "absent") == {}


def test_the_last_step(tmp_path: Path) -> None:
    assert last_step(tmp_path, 0) is None
    write(tmp_path, [{"step": 40, "loss": 1.0}])
    assert last_step(tmp_path, 0) == 40
    write(tmp_path, [])
    assert last_step(tmp_path, 0) == 40, "the new attempt has not logged yet"
    write(tmp_path, b'{"step": 30}\n{"loss": 1.0}\n{"step": 31}\n{"step": 32, "lo')
    assert last_step(tmp_path, 0) == 31
    write(tmp_path, [{"step": 33}, {f"metric {number}": 0.1 for number in range(200)}])
    assert last_step(tmp_path, 0) == 33, "the last line is longer than the first tail"


def test_long_files_are_read_fast(tmp_path: Path) -> None:
    write(tmp_path, b"".join(line_of({"step": step, "loss": 1 / (step + 1)}) for step in range(100_000)))
    began_s = time.process_time()
    found = summarise_file(tmp_path, 0)
    assert time.process_time() - began_s < 2, "it takes 0.3 s on an idle machine"
    assert (found.steps, found.metrics["loss"]["count"]) == (99_999, 100_000)
    write(tmp_path, b'{"loss": 0.123456789}\n' * 100_000)
    began_s = time.process_time()
    assert last_step(tmp_path, 0) == 99_999
    assert time.process_time() - began_s < 0.2, "a file without steps is not read to its beginning"


def test_each_metric_is_of_the_lowest_rank(tmp_path: Path) -> None:
    write(tmp_path, [{"step": 9, "only 1": 1.0, "loss": 5.0}, {"x" * 300: 1}], rank=1)
    write(tmp_path, b'{"step": 4, "loss": 2.0}\n?\n', rank=0)
    merged = merge_ranks({rank: summarise_file(tmp_path, rank) for rank in (1, 0)})
    assert merged == ScriptMetrics({"loss": figures(2.0), "only 1": figures(1.0)}, 9, 1, has_more_names=True)
    assert merge_ranks({}) == ScriptMetrics()


def test_figures_of_the_summary(tmp_path: Path) -> None:
    write(tmp_path, [{"step": 1, "samples_per_s": 100}, {"step": 2, "samples_per_s": 200.0}])
    metrics = summarise_file(tmp_path, 0)
    found = metrics.figures(world_size=4)
    assert (found["steps"], found["samples_per_s"], found["samples_per_s_per_gpu"]) == (2, 150.0, 37.5)
    assert ScriptMetrics().figures(1) == {"metrics": {}, "steps": 0}
    summary = summary_from_json(json.loads(json.dumps(found)))
    assert summary["metrics"] == metrics.metrics


@pytest.mark.parametrize("metrics", [[], {"loss": 1}, {"loss": {"last": "0.5"}}, "loss"])
def test_damaged_metrics_of_a_summary_are_refused(metrics: Any) -> None:
    with pytest.raises(ValueError, match="metrics is "):
        summary_from_json({"steps": 1, "metrics": metrics})


@pytest.mark.parametrize(
    ("name", "lower"),
    [
        ("loss", True), ("eval/loss", True), ("trainLoss", True), ("valloss", True), ("val_nll", True), ("WER", True),
        ("top1_error", True), ("perplexity", True), ("ppl", True), ("step_time", True), ("epoch_seconds", True),
        ("eval_runtime", True), ("time_per_step", True), ("ms_per_step", True), ("cross_entropy", True),
        ("step_s", True), ("accuracy", False), ("f1", False), ("samples_per_s", False),
        ("eval_samples_per_second", False), ("tokens/s", False), ("img/sec", False), ("mAP", False),
        ("lossless_ratio", False), ("epoch", False), ("", False), ("bits_per_byte", True), ("eval/bitsPerDim", True),
        ("bits_per_second", False), ("Mbits_per_s", False), ("fvd", True), ("LPIPS", True), ("val_ece", True),
        ("brier_score", True), ("regret", True), ("misclassification_rate", True), ("steptime", True),
        ("uptime", False), ("lifetime_reward", False),
    ],
)  # fmt: skip
def test_which_value_is_the_best(name: str, lower: bool) -> None:
    assert lower_is_better(name) == lower


values = st.one_of(
    st.floats(width=32), st.integers(-(2**70), 2**70), st.booleans(), st.none(), st.text(max_size=2), st.just([1.0])
)
lines = st.dictionaries(st.sampled_from(["step", "loss", "acc", "é"]), st.one_of(st.integers(-1, 9), values))
attempts = st.lists(st.lists(lines, max_size=8), max_size=4)


@given(attempts)
def test_agrees_with_a_simple_implementation(attempts: list[list[dict[str, Any]]]) -> None:
    with TemporaryDirectory() as folder:
        write(Path(folder), *attempts)
        found = summarise_file(Path(folder), 0)
    assert found.damaged_lines == 0
    kept = {name: kept_values(attempts, name) for name in ("loss", "acc", "é")}
    assert {name: entry["count"] for name, entry in found.metrics.items()} == {
        name: len(numbers) for name, numbers in kept.items() if numbers
    }
    for name, entry in found.metrics.items():
        finite = list(filter(math.isfinite, kept[name]))
        last = kept[name][-1]
        assert entry["last"] == (last if math.isfinite(last) else None)
        assert (entry["min"], entry["max"]) == (min(finite, default=None), max(finite, default=None))
        assert entry["best"] == entry["min" if name == "loss" else "max"]
        if finite:
            assert entry["mean"] == pytest.approx(math.fsum(finite) / len(finite), abs=1e-6 * max(map(abs, finite)))
        else:
            assert entry["mean"] is None


def kept_values(attempts: list[list[dict[str, Any]]], name: str) -> list[float]:
    """The values of a name that count, oldest first."""
    logged = [
        [(step_or_none(line.get("step")), float(line[name])) for line in lines if is_number(line.get(name))]
        for lines in attempts
    ]
    kept = []
    for index, pairs in enumerate(logged):
        later = [next((step for step, _ in after if step is not None), None) for after in logged[index + 1 :]]
        limit = min((step for step in later if step is not None), default=math.inf)
        is_latest = not any(logged[index + 1 :])
        kept += [value for step, value in pairs if (is_latest if step is None else step < limit)]
    return kept


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def step_or_none(value: Any) -> int | None:
    is_step = is_number(value) and 0 <= value < 2**63 and value == int(value)
    return int(value) if is_step else None


@given(st.lists(st.binary(max_size=30), max_size=5), st.binary(max_size=40))
def test_any_bytes_are_read(texts: list[bytes], end: bytes) -> None:
    with TemporaryDirectory() as folder:
        write(Path(folder), b"\n".join([*texts, b'{"step": 3, "a": 1}']) + b"\n" + end)
        found = summarise_file(Path(folder), 0)
        assert last_step(Path(folder), 0) is not None
    assert found.metrics["a"]["count"] == 1
