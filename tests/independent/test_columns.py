"""Every column of a real run, computed again from its raw files: by the formulas of docs/records.md, in plain Python.

Nothing here is imported from the product, so that a fault of its formulas cannot hide.
"""

from __future__ import annotations

import csv
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any

import pytest

pytestmark = pytest.mark.process

REPOSITORY = Path(__file__).resolve().parents[2]
RUN_LIMIT_S = 240.0
SWEEP = f"""\
name: columns
allocations: [1x2]
measure_link: true
base:
  {{model: bert, dataset: {REPOSITORY}/sweeps/data/sst2, device: cpu, num_workers: 0, per_gpu_batch: 3, max_steps: 25,
   max_train_examples: 100, max_eval_examples: 40, eval_every: 10, timing_warmup_steps: 3, detailed_timing: true,
   bucket_cap_mb: 0.05, telemetry_every_s: 0.2, profile_steps: 2, architecture: {{hidden_size: 32, num_hidden_layers: 2,
   num_attention_heads: 2, intermediate_size: 64, vocab_size: 1000}}}}
"""

# What no record of the run has: the test that compares it with its source. Some come with a file of the same issue.
ELSEWHERE = {
    # The scheduler says it. Of Slurm: against sacct.
    "tests/jobs/on_slurm/test_sweep.py": (
        "exit_code", "job_id", "attempts", "submit_time", "start_time", "end_time", "queue_wait_s", "elapsed_s",
        "gpu_hours", "gpu_hours_from", "gpu_hours_wasted", "node_list", "max_rss_bytes", "state_source",
    ),
    "tests/jobs/on_slurm/test_reasons.py": ("reason", "reason_kind"),
    # The rows of several runs.
    "tests/jobs/results/test_comparability.py": ("not_comparable",),
    "tests/jobs/results": (
        "weak_efficiency", "weak_baseline", "strong_efficiency", "strong_baseline", "crossing_ratio",
        "crossing_baseline", "scaling_note",
    ),
    # Not numbers, and not made by a formula: versions of packages, the hash of the user's code, texts.
    "tests/jobs/submission": ("code",),
    "tests/disttrain/analysis": ("notices", "mfu"),
    "tests/jobs/results/test_script_results.py": ("metrics",),
}  # fmt: skip

Record = dict[str, Any]


@dataclass(frozen=True)
class Files:
    """The raw files of one run."""

    run: Record
    ranks: tuple[tuple[Record, ...], ...]

    def of(self, kind: str, rank: int = 0) -> list[Record]:
        return [record for record in self.ranks[rank] if record["kind"] == kind]

    def measured(self, rank: int = 0) -> list[Record]:
        """The steps after the warm-up, each with the backward pass without its wait."""
        warmup = self.run["train"].get("timing_warmup_steps", 0)
        steps = [step for step in self.of("step", rank)[warmup:] if not step["profiled"]]
        for step in steps:
            step["backward_compute_ms"] = step["backward_ms"] - step["exposed_comm_ms"]
        return steps


def read_files(run_dir: Path) -> Files:
    run = json.loads((run_dir / "run.json").read_text())
    ranks = tuple(
        tuple(json.loads(line) for line in (run_dir / f"metrics-rank{rank:05d}.jsonl").read_text().splitlines())
        for rank in range(run["world_size"])
    )
    return Files(run, ranks)


def nearest_rank_95(values: Sequence[float]) -> float:
    """The smallest value that at least 95 % of the values do not exceed."""
    return next(value for value in sorted(values) if sum(other <= value for other in values) >= 0.95 * len(values))


def clock_offset_s(files: Files, rank: int, at_s: float) -> float:
    before, after = files.of("clock", rank)
    share = (at_s - before["at_s"]) / (after["at_s"] - before["at_s"])
    return float(before["offset_s"] + share * (after["offset_s"] - before["offset_s"]))


def bucket_spans(files: Files) -> list[list[tuple[float, float]]]:
    """For each measured step, the all-reduce of each bucket in ms: from when the last rank was ready, and gloo, which
    has two threads, had ended an earlier one; to when the last rank was done.
    """
    spans = []
    for index, step in enumerate(files.measured()):
        ready, done = [], []
        for rank in range(len(files.ranks)):
            own = files.measured(rank)[index]
            (exchange,) = [record for record in files.of("exchange", rank) if record["step"] == step["step"]]
            start_ms = (own["start_s"] - clock_offset_s(files, rank, own["start_s"])) * 1000
            ready.append([start_ms + time_ms for time_ms in exchange["ready_ms"]])
            done.append([start_ms + time_ms for time_ms in exchange["done_ms"]])
        ends = [max(times) for times in zip(*done, strict=True)]
        begins = []
        for bucket, times in enumerate(zip(*ready, strict=True)):
            earlier = sorted(ends[:bucket])
            begin = max(*times, earlier[-2]) if bucket >= 2 else max(times)
            begins.append(min(begin, ends[bucket]))
        spans.append(list(zip(begins, ends, strict=True)))
    return spans


def union_ms(spans: Sequence[tuple[float, float]]) -> float:
    """The time in at least one span: the sum over the intervals between neighbouring ends that a span covers."""
    times = sorted({time_ms for span in spans for time_ms in span})
    return sum(
        later - time_ms
        for time_ms, later in pairwise(times)
        if any(begin <= time_ms and later <= end for begin, end in spans)
    )


def link_columns(files: Files) -> Record:
    links = files.of("link")
    if not links:
        return {"link_latency_ms": None, "link_bus_gb_per_s": None}
    world_size = files.run["world_size"]
    smallest, largest = min(links, key=lambda link: link["size_bytes"]), max(links, key=lambda link: link["size_bytes"])
    bandwidth = largest["size_bytes"] / largest["median_ms"] / 1e6 * 2 * (world_size - 1) / world_size
    return {"link_latency_ms": smallest["median_ms"], "link_bus_gb_per_s": bandwidth}


def exchange_columns(files: Files) -> Record:
    names = ("bucket_count", "exchange_ms", "bus_gb_per_s", "buckets")
    if not files.of("exchange"):
        return dict.fromkeys(names)
    factor = 2 * (files.run["world_size"] - 1) / files.run["world_size"]
    sizes, spans = files.of("exchange")[-1]["bucket_bytes"], bucket_spans(files)
    exchange_ms = median(union_ms(step) for step in spans)
    buckets = []
    for bucket, size_bytes in enumerate(sizes):
        times_ms = [step[bucket][1] - step[bucket][0] for step in spans]
        algorithm = size_bytes / median(times_ms) / 1e6
        buckets.append(
            {
                "size_bytes": size_bytes,
                "all_reduce_ms": median(times_ms),
                "all_reduce_p95_ms": nearest_rank_95(times_ms),
                "all_reduce_min_ms": min(times_ms),
                "algorithm_gb_per_s": algorithm,
                "bus_gb_per_s": algorithm * factor,
            }
        )
    values = (len(sizes), exchange_ms, sum(sizes) / exchange_ms / 1e6 * factor, buckets)
    return dict(zip(names, values, strict=True))


def phase_columns(files: Files) -> Record:
    columns: Record = {}
    for stem in (
        "data", "forward", "backward", "optimizer", "step", "exposed_comm", "overlapped_comm", "backward_compute",
    ):  # fmt: skip
        values = [step[f"{stem}_ms"] for step in files.measured()]
        statistics: dict[str, Callable[[list[float]], float]] = {"": median, "_p95": nearest_rank_95, "_min": min}
        for ending, statistic in statistics.items():
            columns[f"{stem}{ending}_ms"] = statistic(values) if values else None
    return columns


def throughput_columns(files: Files) -> Record:
    steps, world_size = files.measured(), files.run["world_size"]
    columns: Record = {"measured_steps": len(steps), "samples_per_s": None, "samples_per_s_per_gpu": None}
    columns["train_loss"] = None
    if not steps:
        return columns
    examples = sum(step["examples"] for rank in range(world_size) for step in files.measured(rank))
    columns["samples_per_s"] = examples / (sum(step["step_ms"] for step in steps) / 1000)
    columns["samples_per_s_per_gpu"] = columns["samples_per_s"] / world_size
    last = files.of("step")[-1]["step"]
    tail = [
        step
        for rank in range(world_size)
        for step in files.of("step", rank)
        if step["step"] > last - math.ceil(last / 10) and step["loss"] is not None
    ]
    losses = sum(step["loss"] * step["examples"] for step in tail)
    return columns | {"train_loss": losses / sum(step["examples"] for step in tail)}


def slow_rank_columns(files: Files) -> Record:
    columns: Record = dict.fromkeys(("slowest_rank", "slowest_host", "slowest_ratio"))
    own = [
        [step["data_ms"] + step["forward_ms"] + step["backward_compute_ms"] + step["optimizer_ms"] for step in steps]
        for steps in (files.measured(0), files.measured(1))
    ]
    if own[0]:
        ratios = [median(a / b for a, b in zip(own[rank], own[1 - rank], strict=True)) for rank in (0, 1)]
        rank = ratios.index(max(ratios))
        host = files.of("start", rank)[0]["host"]
        columns |= {"slowest_rank": rank, "slowest_host": host, "slowest_ratio": ratios[rank]}
    return columns


def evaluation_columns(files: Files) -> Record:
    evaluations = files.of("eval")
    names = ("loss", "accuracy", "macro_f1", "examples")
    columns: Record = dict.fromkeys(
        [*(f"eval_{name}" for name in names), "best_eval_step", "best_eval_loss", "best_eval_accuracy"]
    )
    if evaluations:
        columns |= {f"eval_{name}": evaluations[-1][name] for name in names}
        best = min(evaluations, key=lambda record: (record["loss"], record["step"]))
        columns |= {f"best_eval_{name}": best[name] for name in ("step", "loss", "accuracy")}
    return columns


def check_columns(files: Files) -> Record:
    names = ("no_sync_exposed_ms", "check_exposed_ms", "no_sync_is_check", "ddp_exposed_ms", "no_sync_difference")
    if not files.of("cross_check"):
        return dict.fromkeys(names)
    check = files.of("cross_check")[-1]
    own, other = check["exposed_comm_ms"], check["no_sync_exposed_ms"]
    longest = max(check["no_sync_backward_ms"], check["backward_ms"] - own)
    values = (other, own, check["exchange_ms"] > 3 * longest, check["ddp_exposed_ms"], other / own - 1 if own else None)
    return dict(zip(names, values, strict=True))


def startup_columns(files: Files) -> Record:
    columns: Record = {}
    for name, rank_name in (
        ("import_s", "slowest_import_rank"),
        ("time_to_first_step_s", "slowest_time_to_first_step_rank"),
    ):
        values = [record[name] for rank in (0, 1) for record in files.of("startup", rank)]
        known = len(values) == 2 and None not in values
        columns[name] = max(values) if known else None
        columns[rank_name] = values.index(max(values)) if known else None
    return columns


def telemetry_columns(files: Files) -> Record:
    """Rank 0's samples without the one before the first step; and of the GPUs of all ranks, which have none here."""
    samples = files.of("telemetry")[1:] or files.of("telemetry")
    columns: Record = {}
    for name, source, statistic in (
        ("gpu_util_percent", "gpu_util_percent", fmean),
        ("gpu_memory_peak_mib", "gpu_memory_used_mib", max),
        ("gpu_power_w", "gpu_power_w", fmean),
        ("gpu_temperature_peak_c", "gpu_temperature_c", max),
        ("process_cpu_percent", "process_cpu_percent", fmean),
        ("process_memory_peak_mib", "process_memory_mib", max),
        ("gpu_energy_source", "gpu_energy_source", min),
        ("gpu_throttle", "gpu_throttle", min),
    ):
        values = [sample[source] for sample in samples if sample[source] is not None]
        columns[name] = statistic(values) if values else None
    for of_ranks in ("gpu_util_mean_percent", "gpu_util_min_percent", "gpu_util_min_rank", "gpu_util_min_host",
                     "gpu_power_mean_w", "gpu_power_min_w", "gpu_power_min_rank", "gpu_power_min_host",
                     "gpu_memory_peak_mean_mib", "gpu_memory_peak_max_mib", "gpu_memory_peak_max_rank",
                     "gpu_memory_peak_max_host"):  # fmt: skip
        assert columns["gpu_util_percent"] is None, "the test runs on a CPU"
        columns[of_ranks] = None
    return columns


def place_columns(files: Files) -> Record:
    starts = [files.of("start", rank)[-1] for rank in (0, 1)]
    columns = {
        name: starts[0][name]
        for name in (
            "device_name", "backend", "shared_gpu", "folded", "threads", "cpus", "versions", "cuda_version",
            "nccl_version", "driver_version", "transport", "gpu_power_cap_w", "gpu_max_sm_clock_mhz",
            "gpu_sm_clock_setting_mhz", "recipe_version", "model_changes",
        )
    }  # fmt: skip
    addresses = {start.get("topology_addr") for start in starts}
    assert addresses == {None}, "the test runs without the topology of Slurm"
    return columns | {
        "num_nodes": files.run["nodes"],
        "hosts": [start["host"] for start in starts],
        "comparable": not (starts[0]["shared_gpu"] or starts[0]["folded"]),
        "leaf_switches": None,
        "mixed_ranks": [],
        "mixed_starts": [],
        # Every rank is on a CPU: no board has an energy, which is then unknown.
        "gpu_energy_j": None,
        "steps": files.of("end")[-1]["steps"],
        "train_s": files.of("end")[-1]["train_s"],
    }


def request_columns(files: Files) -> Record:
    run = files.run
    return {name: run[name] for name in ("run_id", "allocation", "world_size")} | {"dropped": False}


def recomputed(files: Files) -> Record:
    """Every column that follows from the files of this run."""
    columns: Record = {}
    for part in (
        request_columns, place_columns, throughput_columns, phase_columns, exchange_columns, slow_rank_columns,
        evaluation_columns, check_columns, startup_columns, telemetry_columns, link_columns,
    ):  # fmt: skip
        columns |= part(files)
    return columns


def cell(text: str, like: Any) -> Any:
    """The value of a cell, of the kind that is expected."""
    if text == "":
        return None
    if isinstance(like, str) or like is None:
        return text
    if isinstance(like, bool):
        return {"True": True, "False": False}[text]
    if isinstance(like, list) and not text.startswith("["):
        return [] if text == "none" else text.split(",")
    return json.loads(text)


def is_equal(value: Any, expected: Any) -> bool:
    if isinstance(expected, list) and isinstance(value, list):
        return len(value) == len(expected) and all(map(is_equal, value, expected))
    if isinstance(expected, dict) and isinstance(value, dict):
        return value.keys() == expected.keys() and all(is_equal(value[key], expected[key]) for key in expected)
    if isinstance(expected, float) and value is not None:
        return math.isclose(value, expected, rel_tol=1e-6, abs_tol=1e-6)
    return bool(value == expected)


@pytest.fixture(scope="module")
def sweep_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a sweep of two runs of two real ranks each, after `sweep collect`."""
    folder = tmp_path_factory.mktemp("columns")
    (folder / "columns.yaml").write_text(SWEEP)
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SWEEP_"))}
    environ |= {"CUDA_VISIBLE_DEVICES": "", "TMPDIR": str(folder)}
    for words in (
        ["submit", "columns.yaml", "--cluster", "local", "--wait"],
        ["collect"],
        ["trace", "1x2", "--steps", "all"],
    ):
        command = [str(Path(sys.executable).with_name("sweep")), *words]
        subprocess.run(command, cwd=folder, env=environ, check=True, timeout=RUN_LIMIT_S, capture_output=True)
    return folder / "runs" / "columns" / "local"


def test_every_column_follows_from_the_raw_files(sweep_folder: Path) -> None:
    with (sweep_folder / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    elsewhere = {name for names in ELSEWHERE.values() for name in names}
    wanted = {}
    for row in rows:
        wanted[row["run_id"]] = recomputed(read_files(sweep_folder / "runs" / row["run_id"]))
    (link,) = [columns for columns in wanted.values() if columns["link_latency_ms"] is not None]
    for columns in wanted.values():
        share = columns["bus_gb_per_s"]
        columns["link_share"] = None if share is None else share / link["link_bus_gb_per_s"]
    assert len(rows) == 2
    for row in rows:
        expected = wanted[row["run_id"]]
        is_link = expected["link_latency_ms"] is not None
        expected |= {"state": "COMPLETED", "model": "link" if is_link else "bert"}
        expected["label"] = "1x2 model=link" if is_link else "1x2"
        known = expected.keys() | elsewhere
        assert [name for name in row if name not in known] == [], "a column that no test recomputes"
        wrong = {
            name: (row[name], value)
            for name, value in expected.items()
            if name in row and not is_equal(cell(row[name], value), value)
        }
        assert wrong == {}
        assert expected.keys() - row.keys() <= {"model"}


def test_the_run_has_what_the_formulas_need(sweep_folder: Path) -> None:
    """Several buckets and evaluations, samples and steps: no column is equal because it is empty."""
    runs = [read_files(path) for path in (sweep_folder / "runs").iterdir() if path.is_dir()]
    (trained,) = [files for files in runs if files.of("step")]
    columns = recomputed(trained)
    assert columns["bucket_count"] > 2
    assert len(trained.of("eval")) == 3
    assert len(trained.measured()) == 20
    on_gpus = {name for name in columns if name.startswith("gpu_")} | {"cuda_version", "nccl_version", "driver_version"}
    empty = {name for name, value in columns.items() if value is None} - on_gpus
    assert empty <= {"link_latency_ms", "link_bus_gb_per_s", "leaf_switches", "ddp_exposed_ms"}


def test_other_columns_have_a_test() -> None:
    for place in ELSEWHERE:
        assert (REPOSITORY / place).exists(), place


def test_the_trace_is_that_of_the_raw_files(sweep_folder: Path) -> None:
    """For each rank, all spans of its phases and buckets together are as long as its records say."""
    (path,) = (sweep_folder / "runs").glob("*/trace.json")
    files, events = read_files(path.parent), json.loads(path.read_text())["traceEvents"]
    for rank in (0, 1):
        spans = [event for event in events if event["pid"] == rank + 1 and event["ph"] == "X"]
        buckets = [event for event in spans if event["name"].startswith("bucket")]
        exchanges, steps = files.of("exchange", rank), files.of("step", rank)
        assert len(buckets) == sum(len(exchange["bucket_bytes"]) for exchange in exchanges)
        waits_ms = sum(sum(exchange["done_ms"]) - sum(exchange["ready_ms"]) for exchange in exchanges)
        assert math.isclose(sum(event["dur"] for event in buckets) / 1000, waits_ms, abs_tol=0.5)
        phases_ms = sum(event["dur"] for event in spans if event not in buckets) / 1000
        assert math.isclose(phases_ms, sum(step["step_ms"] for step in steps), abs_tol=0.5)
