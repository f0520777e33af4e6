"""The complete text of the tables of plans and results."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType

from disttrain.records.record_files import failure_name, write_json
from disttrain.records.summary_types import Failure
from jobs.planning.cluster import Cluster
from jobs.planning.cluster_profile import ClusterProfile
from jobs.planning.expand import expand
from jobs.planning.plan import Plan, make_plan
from jobs.planning.sweep_file import parse_sweep
from jobs.planning.yaml_file import parse_yaml
from jobs.results.result import Result
from jobs.results.tables import failure_lines, plan_report, results_report
from jobs.storage import ledger
from jobs.storage.sweep_folder import SweepFolder
from tests.jobs.results.rows import make_result

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


def plan_of(cluster: ClusterProfile | None, folder: Path) -> Plan:
    (folder / "my" / "data[red]").mkdir(parents=True, exist_ok=True)
    runs = expand(parse_sweep(parse_yaml(SWEEP, "s.yaml"), str(folder)))
    where = Cluster("site", "slurm", cluster) if cluster else Cluster("local", "local")
    return make_plan("s", runs, where, Path("/sweeps/s/site"))


def report(rows: Sequence[Result], width: int | None) -> str:
    """The printed text, as `print_results` prints it."""
    return "".join(rendered(part, 10_000) for part in results_report(rows, "s on site", width))


def result(lr: float, allocation: str = "1x1", **columns: Any) -> Result:
    return make_result(f"{allocation}-0123456789ab", f"{allocation} lr={lr}", varied={"lr": lr}, **columns)


RESULTS = [
    result(
        2e-5, state="COMPLETED", queue_wait_s=60, elapsed_s=3600, gpu_hours=1.0, train_s=123.4, samples_per_s=1234.5,
        samples_per_s_per_gpu=1234.5, comparable=True, step_ms=60.5, forward_ms=20.04, backward_ms=40.0,
        optimizer_ms=0.5, exposed_comm_ms=0.0, train_loss=0.501, eval_loss=0.6, eval_accuracy=0.7525,
        time_to_first_step_s=12.34, model_changes=(), attempts=1,
    ),
    result(
        2e-4, "2x2", state="COMPLETED", samples_per_s=20.04, samples_per_s_per_gpu=5.0, comparable=False, elapsed_s=4,
        attempts=1, model_changes=("compact_vocab", "trim_last_layer"),
    ),
    result(2e-5, "1x4", state="OUT_OF_MEMORY", reason="out of memory", gpu_hours=0.01, attempts=1),
    result(2e-5, "1x2", state="RUNNING", elapsed_s=5, comparable=False),
]  # fmt: skip


def test_plan_table(tmp_path: Path) -> None:
    plans = (plan_of(ClusterProfile.model_validate({"time": "00:20:00"}), tmp_path), plan_of(None, tmp_path))
    text = "".join(rendered(part, 80) for plan in plans for part in plan_report(plan))
    assert text == (GOLDEN / "plan_table.txt").read_text(encoding="utf-8")


def test_a_plan_without_a_request_of_gpus(tmp_path: Path) -> None:
    plan = plan_of(ClusterProfile.model_validate({"time": "00:20:00", "gpu_request": "none"}), tmp_path)
    lines = "".join(rendered(part, 80) for part in plan_report(plan)).splitlines()
    assert [line.strip() for line in lines[4:6]] == [
        "1x1: 3 runs         nodes 1, tasks 1, GPUs not requested,",
        "limit 20 min",
    ]
    assert lines[-2] == " total               5 runs"


def test_results_on_wide_and_narrow_terminals() -> None:
    text = "".join(report(RESULTS, width) + "\n" for width in (300, 100, 80, None))
    assert text == (GOLDEN / "results_table.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("width", [60, 80, 100, 140, 200, 300])
def test_a_table_fits_the_terminal(width: int) -> None:
    lines = report(RESULTS, width).splitlines()
    assert max(map(len, lines[2:-1])) <= width


def test_one_axis_fits_100_columns() -> None:
    assert max(map(len, report(RESULTS, None).splitlines())) <= 100


def test_fields_that_vary_are_never_left_out() -> None:
    varied = {f"a_field_of_a_long_name_{number}": number for number in range(9)}
    rows = [make_result(f"1x1-{number}", varied=varied | {"last": number}) for number in (1, 2)]
    for width in (80, None):
        text = report(rows, width)
        assert all(name in text for name in (*varied, "last", "label"))


def test_equal_columns_are_above_the_table() -> None:
    rows = [
        make_result(f"2x1-{lr}", f"2x1 lr={lr}", varied={"lr": lr}, state="COMPLETED", eval_accuracy=0.5, attempts=2)
        for lr in (1, 2)
    ]
    lines = report(rows, 100).splitlines()
    assert lines[:2] == [
        "s on site: 2 runs, 2 COMPLETED",
        "the same in all rows: allocation 2x1, state COMPLETED, attempts 2, eval_accuracy 0.5",
    ]
    assert lines[3].split() == ["label", "run_id", "lr"]
    (alone,) = [line for line in report(rows[:1], 100).splitlines() if "label" in line]
    assert alone.split() == ["label", "run_id", "lr", "allocation", "state", "attempts", "eval_accuracy"]


def test_attempts_are_shown_if_a_run_had_several() -> None:
    rows = [result(number, attempts=attempts) for number, attempts in ((1.0, 1), (2.0, 3))]
    assert "attempts" in report(rows, 100)
    assert "attempts" not in report(rows[:1], 100)


def test_dropped_runs_are_apart() -> None:
    lines = report([result(1.0, state="COMPLETED"), result(2.0, dropped=True, state="FAILED")], 100).splitlines()
    assert lines[0] == "s on site: 1 run, 1 COMPLETED"
    apart = lines.index("dropped: 1 run no longer in the sweep file; sweep forget removes them")
    assert [line for line in lines[:apart] if "lr=2.0" in line] == []
    assert len([line for line in lines[apart:] if "lr=2.0" in line]) == 1


LINKED = [
    make_result(
        "2x1-0123456789ab", "2x1", varied={"model": "bert"}, state="COMPLETED", samples_per_s=20.0, exchange_ms=16.04,
        bus_gb_per_s=8.0, link_share=0.8, backend="nccl",
    ),
    make_result(
        "2x1-ba9876543210", "2x1 model=link", varied={"model": "link"}, state="COMPLETED", backend="nccl",
        link_latency_ms=0.021, link_bus_gb_per_s=10.0,
    ),
]  # fmt: skip


def test_link_run_and_share_of_the_link() -> None:
    assert report(LINKED, 100) == (GOLDEN / "linked_table.txt").read_text(encoding="utf-8")


def test_estimates_of_exposed_communication() -> None:
    estimates = {"check_exposed_ms": 354.2, "no_sync_exposed_ms": 352.0, "no_sync_difference": -0.006}
    check = estimates | {"no_sync_is_check": True, "ddp_exposed_ms": 353.0}
    bound = check | {"no_sync_exposed_ms": 200.0, "no_sync_difference": -0.435, "no_sync_is_check": False}
    alone = check | {"check_exposed_ms": 0.0, "no_sync_difference": None, "ddp_exposed_ms": None}
    rows = [make_result(f"2x1-{name}", **figures) for name, figures in (("a", check), ("b", bound), ("c", alone))]
    assert report([make_result(), *rows], 100).splitlines()[-3:] == [
        "2x1-a (1x1): exposed 354 ms by marks, 352 ms by no_sync (-1 %, a check), 353 ms by DDP",
        "2x1-b (1x1): exposed 354 ms by marks, 200 ms by no_sync (-44 %, a bound), 353 ms by DDP",
        "2x1-c (1x1): exposed 0 ms by marks, 352 ms by no_sync (a check)",
    ]


def test_a_large_negative_estimate_has_its_digits() -> None:
    """By no_sync: the backward pass without the exchange was the slower one."""
    row = make_result(
        check_exposed_ms=0.0, no_sync_exposed_ms=-1234.0, no_sync_difference=None, no_sync_is_check=False,
        ddp_exposed_ms=None,
    )  # fmt: skip
    assert report([row], 100).splitlines()[-1].endswith("0 ms by marks, -1234 ms by no_sync (a bound)")


def test_a_value_that_is_no_number_has_a_cell() -> None:
    row = make_result(state="COMPLETED", samples_per_s=float("nan"), step_ms=float("-inf"))
    assert {"nan", "-inf"} <= set(report([row], 100).split())


def test_marks_only_incomparable_runs() -> None:
    assert "*" not in report(RESULTS[:1], 200)


def test_failure_lines_name_traceback_and_log(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path / "s" / "site")
    folder.logs.mkdir(parents=True)
    for rank, time_s in ((0, 11.0), (3, 10.0)):
        failure = Failure(rank=rank, host="n", time_s=time_s, error="E", message="m", traceback="", user_error=False)
        write_json(folder.run("a") / failure_name(rank), asdict(failure))
    ledger.record(folder.path, {"a": "6", "b": "7_1"}, 1.0)
    ledger.record(folder.path, {"a": "7_0"}, 2.0)
    for name in ("6_0_log.err", "7_0_0_log.err", "7_0_3_log.err", "7_1_0_log.err"):
        (folder.logs / name).touch()
    rows = [
        make_result("a", state="FAILED", reason="rank 3 on n: E: m"),
        make_result("b", state="FAILED", reason="no rank reported an error: see its log"),
        make_result("c", state="COMPLETED"),
        make_result("d", state="FAILED", reason="dropped, so nobody waits for it", dropped=True),
    ]
    assert list(failure_lines(rows, folder)) == [
        [
            "a (1x1)  FAILED: rank 3 on n: E: m",
            f"    traceback in {folder.path}/runs/a/failure-rank00003.json",
            f"    log in {folder.path}/logs/7_0_3_log.err",
        ],
        [
            "b (1x1)  FAILED: no rank reported an error: see its log",
            f"    log in {folder.path}/logs/7_1_0_log.err",
        ],
    ]


def test_log_of_a_local_run(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path / "s" / "local")
    (folder.logs / "local-5-0").mkdir(parents=True)
    (folder.logs / "local-5-0" / "4711_0_log.err").touch()
    ledger.record(folder.path, {"a": "local-5-0"}, 5.0)
    assert list(failure_lines([make_result("a", state="FAILED", reason="x")], folder)) == [
        ["a (1x1)  FAILED: x", f"    log in {folder.path}/logs/local-5-0/4711_0_log.err"]
    ]


def test_the_code_is_shown_if_it_differs() -> None:
    def coded(seed: int, code: str | None) -> Result:
        row = result(seed)
        return replace(row, requested=replace(row.requested, code=code))

    text = report([coded(1, "abc"), coded(2, "def"), coded(3, None)], 200)
    assert "  code\n" in text
    assert [code in text for code in ("abc", "def")] == [True, True]
    assert " code" not in report([coded(1, "abc"), coded(2, "abc")], 200)
