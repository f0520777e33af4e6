"""The complete text of the tables of plans and results."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType

from disttrain.records.record_files import failure_name, write_json
from disttrain.records.summary_types import Failure
from jobs.planning.cluster_profile import ClusterProfile
from jobs.planning.expand import expand
from jobs.planning.plan import Plan, make_plan
from jobs.planning.sweep_file import parse_sweep
from jobs.planning.yaml_file import parse_yaml
from jobs.results.collect import COLUMNS, Result
from jobs.results.tables import failure_lines, plan_table, results_table
from jobs.storage import ledger
from jobs.storage.sweep_folder import SweepFolder

GOLDEN = Path(__file__).parents[2] / "golden"
SWEEP = """\
name: s
allocations: [1x1, 2x2]
base: {model: bert}
axes: {per_gpu_batch: [1, 16], lr: [2e-5]}
include:
  - {allocation: 1x1, model: vit, architecture: {hidden_size: 32}, dataset: "my/data[red]"}
"""


def rendered(table: RenderableType, width: int) -> str:
    buffer = io.StringIO()
    Console(file=buffer, width=width, color_system=None).print(table)
    return "".join(line.rstrip() + "\n" for line in buffer.getvalue().splitlines())


def plan_of(cluster: ClusterProfile | None) -> Plan:
    runs = expand(parse_sweep(parse_yaml(SWEEP, "s.yaml"), "/nowhere"))
    return make_plan("s", runs, "site" if cluster else "local", cluster, Path("/sweeps/s/site"))


def result(**values: Any) -> Result:
    base: dict[str, Any] = dict.fromkeys(COLUMNS) | {
        "run_id": "1x1-0123456789ab", "allocation": "1x1", "model": "bert", "per_gpu_batch": 16, "lr": 2e-5, "seed": 0,
        "state": "PENDING", "world_size": 1,
    }  # fmt: skip
    return Result(**(base | values))


RESULTS = [
    result(
        state="COMPLETED", queue_wait_s=60, elapsed_s=3600, gpu_hours=1.0, train_s=123.4, samples_per_s=1234.5,
        samples_per_s_per_gpu=1234.5, comparable=True, forward_ms=20.04, backward_ms=40.0, optimizer_ms=0.5,
        train_loss=0.501, eval_loss=0.6, eval_accuracy=0.7525,
    ),
    result(
        run_id="2x2-0123456789ab", state="COMPLETED", samples_per_s=20.04, samples_per_s_per_gpu=5.0, comparable=False,
        per_gpu_batch=None, global_batch=64, elapsed_s=4,
    ),
    result(run_id="1x4-0123456789ab", state="OUT_OF_MEMORY", reason="out of memory", gpu_hours=0.01),
    result(run_id="1x2-0123456789ab", state="RUNNING", elapsed_s=5, comparable=False),
]  # fmt: skip


def test_plan_table() -> None:
    text = rendered(plan_table(plan_of(ClusterProfile.model_validate({"time": "00:20:00"}))), 80)
    assert text + rendered(plan_table(plan_of(None)), 80) == (GOLDEN / "plan_table.txt").read_text(encoding="utf-8")


def test_a_plan_without_a_request_of_gpus() -> None:
    plan = plan_of(ClusterProfile.model_validate({"time": "00:20:00", "gpu_request": "none"}))
    lines = rendered(plan_table(plan), 80).splitlines()
    assert [line.strip() for line in lines[4:6]] == [
        "1x1: 3 runs         nodes 1, tasks 1, GPUs not requested,",
        "limit 20 min",
    ]
    assert lines[-2] == " total               5 runs"


def test_results_on_wide_and_narrow_terminals() -> None:
    text = "".join(rendered(results_table(RESULTS, "s on site", width), width) for width in (200, 100))
    assert text == (GOLDEN / "results_table.txt").read_text(encoding="utf-8")


LINKED = [
    result(
        run_id="2x1-0123456789ab", allocation="2x1", state="COMPLETED", samples_per_s=20.0, samples_per_s_per_gpu=10.0,
        exchange_ms=16.04, bus_gb_per_s=8.0, link_share=0.8, backend="nccl", world_size=2,
    ),
    result(
        run_id="2x1-ba9876543210", allocation="2x1", model="link", per_gpu_batch=None, lr=None, seed=None,
        state="COMPLETED", backend="nccl", world_size=2, link_latency_ms=0.021, link_bus_gb_per_s=10.0,
    ),
]  # fmt: skip


def test_link_run_and_share_of_the_link() -> None:
    text = "".join(rendered(results_table(LINKED, "s on site", width), width) for width in (200, 180))
    assert text == (GOLDEN / "linked_table.txt").read_text(encoding="utf-8")


def test_estimates_of_exposed_communication() -> None:
    check = result(
        run_id="2x1-a", check_exposed_ms=354.2, no_sync_exposed_ms=352.0, no_sync_difference=-0.006,
        no_sync_is_check=True, ddp_exposed_ms=353.0,
    )  # fmt: skip
    bound = replace(check, run_id="2x1-b", no_sync_exposed_ms=200.0, no_sync_difference=-0.435, no_sync_is_check=False)
    alone = replace(check, run_id="2x1-c", check_exposed_ms=0.0, no_sync_difference=None, ddp_exposed_ms=None)
    table = results_table([check, result(), bound, alone], "s on site", 100)
    assert str(table.caption).splitlines() == [
        "2x1-a: exposed 354 ms by marks, 352 ms by no_sync (-1 %, a check), 353 ms by DDP",
        "2x1-b: exposed 354 ms by marks, 200 ms by no_sync (-44 %, a bound), 353 ms by DDP",
        "2x1-c: exposed 0 ms by marks, 352 ms by no_sync (a check)",
    ]


def test_marks_only_incomparable_runs() -> None:
    assert "*" not in rendered(results_table(RESULTS[:1], "s on site", 200), 200)


def test_failure_lines_name_traceback_and_log(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path / "s" / "site")
    folder.logs.mkdir(parents=True)
    for rank, time_s in ((0, 11.0), (3, 10.0)):
        failure = Failure(rank=rank, host="n", time_s=time_s, error="E", message="m", traceback="", user_error=False)
        write_json(folder.run("a") / failure_name(rank), failure)
    ledger.record(folder.path, {"a": "6", "b": "7_1"}, 1.0)
    ledger.record(folder.path, {"a": "7_0"}, 2.0)
    for name in ("6_0_log.err", "7_0_0_log.err", "7_0_3_log.err", "7_1_0_log.err"):
        (folder.logs / name).touch()
    rows = [
        result(run_id="a", state="FAILED", reason="rank 3 on n: E: m"),
        result(run_id="b", state="FAILED", reason="no rank reported an error: see its log"),
        result(run_id="c", state="COMPLETED"),
    ]
    assert failure_lines(rows, folder) == [
        "a  FAILED: rank 3 on n: E: m",
        f"    traceback in {folder.path}/runs/a/failure-rank00003.json",
        f"    log in {folder.path}/logs/7_0_3_log.err",
        "b  FAILED: no rank reported an error: see its log",
        f"    log in {folder.path}/logs/7_1_0_log.err",
    ]


def test_log_of_a_local_run(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path / "s" / "local")
    (folder.logs / "local-5-0").mkdir(parents=True)
    (folder.logs / "local-5-0" / "4711_0_log.err").touch()
    ledger.record(folder.path, {"a": "local-5-0"}, 5.0)
    assert failure_lines([result(run_id="a", state="FAILED", reason="x")], folder) == [
        "a  FAILED: x",
        f"    log in {folder.path}/logs/local-5-0/4711_0_log.err",
    ]
