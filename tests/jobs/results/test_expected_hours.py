"""The expected GPU-hours of a plan: from which earlier runs they follow, and how the plan shows them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.planning.plan import Plan, plan_json
from jobs.results.expected_hours import expected_hours, measured_hours
from jobs.results.tables import plan_report
from jobs.slurm.attempts import AccountingRow
from jobs.slurm.states import State
from jobs.storage import ledger
from jobs.storage.sweep_folder import SweepFolder
from tests.jobs.results.test_tables import rendered
from tests.jobs.submission.fake_slurm import SWEEP, plan_of

MORE = SWEEP.replace("[0, 1]", "[0, 1, 2]")
SEEDS = {"a": 0, "b": 1, "c": 2}


def run(name: str, **values: Any) -> dict[str, Any]:
    train = {"model": "bert", "lr": 0.1, "num_workers": 2, "seed": SEEDS.get(name, 0)} | values
    return {"run_id": name, "allocation": "1x1", "world_size": 1, "train": train}


def test_a_run_has_its_own_hours_or_those_of_other_seeds() -> None:
    earlier = [run("a"), run("b"), run("other", lr=0.2), run("unfinished")]
    planned = [
        run("a"),
        run("c"),
        run("workers", num_workers=4),
        run("new", lr=0.3),
        run("wide") | {"allocation": "2x2"},
    ]
    measured = {"a": 1.0, "b": 2.0, "other": 9.0}
    assert expected_hours(planned, earlier, measured) == {"a": 1.0, "c": 1.5, "workers": 1.5}


def test_a_key_of_a_command_is_the_users_own() -> None:
    earlier, planned = (
        {**run("a", num_workers=number), "run_id": name, "script": {}} for number, name in ((2, "a"), (4, "b"))
    )
    assert expected_hours([planned], [earlier], {"a": 1.0}) == {}
    assert expected_hours([planned | {"train": earlier["train"]}], [earlier], {"a": 1.0}) == {"b": 1.0}


def submitted(tmp_path: Path, *attempts: AccountingRow) -> Plan:
    """The plan of a sweep of two seeds of which one has these attempts."""
    plan = plan_of(tmp_path)
    folder = SweepFolder(plan.folder)
    folder.create()
    folder.write_plan(plan_json(plan))
    ledger.record(folder.path, {plan.runs[0].run_id: "7"}, 2.0)
    ledger.append_lines(folder.accounting_file, [json.dumps(row.to_json()) for row in attempts])
    return plan


FAILED = AccountingRow("6", state=State.FAILED, submit_s=1, start_s=1, elapsed_s=36000)
PREEMPTED = AccountingRow("7", state=State.PREEMPTED, submit_s=2, start_s=3, end_s=5, elapsed_s=1800)
DONE = AccountingRow("7", state=State.COMPLETED, submit_s=9, start_s=9, end_s=99, elapsed_s=3600, alloc_gpus=2)


def test_hours_are_those_of_all_attempts(tmp_path: Path) -> None:
    plan = submitted(tmp_path, FAILED, PREEMPTED, DONE)
    folder = SweepFolder(plan.folder)
    assert measured_hours(folder) == {}, "without a summary it is not done"
    folder.run(plan.runs[0].run_id).mkdir(parents=True)
    (folder.run(plan.runs[0].run_id) / "summary.json").write_text('{"steps": 3}')
    assert measured_hours(folder) == {plan.runs[0].run_id: 0.5 + 2}
    ledger.record(folder.path, {plan.runs[0].run_id: "8"}, 3.0)
    assert measured_hours(folder) == {}, "it was sent again"
    folder.plan_file.write_text("[]")
    assert measured_hours(folder) == {}
    assert measured_hours(SweepFolder(tmp_path / "none")) == {}


@pytest.mark.parametrize("rows", [(), (FAILED,), (PREEMPTED,)])
def test_a_run_that_is_not_done_has_no_hours(rows: tuple[AccountingRow, ...], tmp_path: Path) -> None:
    assert measured_hours(SweepFolder(submitted(tmp_path, *rows).folder)) == {}


def test_the_plan_shows_them(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, text=MORE)
    known = {item.run_id: 0.25 for item in plan.groups[0].runs}
    lines = "".join(rendered(part, 100) for part in plan_report(plan, known)).splitlines()
    cells = [" ".join(line.split()[-2:]) for line in lines if line.strip()]
    assert cells[1] == "limit expected"
    assert cells[3:7] == ["3 0.75", "1 0.25", "1 0.25", "1 0.25"]
    assert lines[-1] == "expected: 0.75 GPU-h for 3 of 6 runs, by earlier runs of the same config"
    assert "expected" not in "".join(rendered(part, 100) for part in plan_report(plan, {}))
    local = plan_of(tmp_path, "local", text=MORE)
    assert "expected" not in "".join(rendered(part, 100) for part in plan_report(local, known))
