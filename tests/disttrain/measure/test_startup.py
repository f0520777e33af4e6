"""The age of a process, and the startup records of real ranks."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

import disttrain.training_run
from disttrain.config.train_config import TrainConfig
from disttrain.environment.rank_env import RankEnv
from disttrain.measure.gather_steps import pack_fields, unpack_fields
from disttrain.measure.startup import Startup, end_of_imports, process_age_s, startup_record
from disttrain.records.figures import summarise_fields
from disttrain.records.record_files import metrics_name, read_records
from disttrain.records.record_types import EvalRecord, Record, StartRecord, StartupRecord, StepRecord
from disttrain.records.step_types import StepTimes
from disttrain.records.summary_types import SUMMARY_FIGURES
from disttrain.run import run
from tests.disttrain.ranks import STEPS, die_in, saved_often

if TYPE_CHECKING:
    from tests.disttrain.conftest import Finished, RunRanks

TICK_S = 1 / os.sysconf("SC_CLK_TCK")  # the kernel rounds the start of a process down to a tick
PRINT_AGE = """\
import sys, time
from pathlib import Path
from disttrain.measure.startup import process_age_s
Path("/proc/self/comm").write_text(sys.argv[1])
time.sleep(0.5)
print(Path("/proc/self/stat").read_text().split(" ", 1)[1].strip())
print(process_age_s())
"""
FIRST_STEP = StepTimes(
    start_s=110.0, data_ms=100.0, forward_ms=150.0, backward_ms=200.0, optimizer_ms=50.0, step_ms=500.0
)


@pytest.mark.process
@pytest.mark.parametrize("name", ["python", "a b", "a) R 1 (b", "x)", "((", ") ) 9 9"])
def test_age_of_a_process_with_any_name(name: str, repository: Path) -> None:
    began_s = time.monotonic()
    command = [sys.executable, "-c", PRINT_AGE, name]
    printed = subprocess.run(command, cwd=repository, check=True, capture_output=True, text=True).stdout
    elapsed_s = time.monotonic() - began_s
    stat, age = printed.splitlines()
    assert stat.startswith(f"({name}) ")
    assert 0.5 <= float(age) <= elapsed_s + TICK_S


def test_age_grows_with_the_clock() -> None:
    before_s, first_s = time.monotonic(), process_age_s()
    time.sleep(0.2)
    second_s, after_s = process_age_s(), time.monotonic()
    assert 0.2 <= second_s - first_s <= after_s - before_s


def test_imports_end_now() -> None:
    before_s = time.perf_counter()
    startup = end_of_imports()
    after_s = time.perf_counter()
    rounding = 1e-6
    assert before_s - rounding <= startup.process_start_s + startup.import_s <= after_s + rounding


def test_the_first_step_ends_after_the_start() -> None:
    startup = Startup(process_start_s=100.0, import_s=3.0)
    assert startup_record(startup, FIRST_STEP) == StartupRecord(import_s=3.0, time_to_first_step_s=10.5)
    for step in (None, dataclasses.replace(FIRST_STEP, start_s=None)):
        assert startup_record(startup, step) == StartupRecord(import_s=3.0, time_to_first_step_s=None)


def test_unpack_fields_reverses_pack_fields() -> None:
    for record in (StartupRecord(import_s=3.0, time_to_first_step_s=ends) for ends in (10.5, None)):
        row = torch.tensor(pack_fields(StartupRecord, record), dtype=torch.float64).tolist()
        assert unpack_fields(StartupRecord, row) == record


def records_of(finished: Finished, rank: int) -> list[Record]:
    return list(read_records(finished.output_dir / metrics_name(rank)))


def startups_of(finished: Finished, rank: int) -> list[StartupRecord]:
    return [record for record in records_of(finished, rank) if isinstance(record, StartupRecord)]


def summary_of_startups(finished: Finished) -> dict[str, Any]:
    return {name: finished.summary[name] for name in summarise_fields(StartupRecord, [])}


def test_every_rank_records_its_start(bert_config: TrainConfig, run_ranks: RunRanks) -> None:
    began_s = time.perf_counter()
    finished = run_ranks(dataclasses.replace(bert_config, max_steps=4), 2, target=run_late_on_rank_1)
    assert finished.exit_codes == (0, 0)
    for rank in range(2):
        kinds = [type(record) for record in records_of(finished, rank)]
        assert (kinds.count(StartupRecord), kinds.index(StartupRecord) + 1) == (1, kinds.index(StepRecord))
        (startup,), first = startups_of(finished, rank), finished.steps(rank)[0]
        assert startup.time_to_first_step_s is not None
        assert first.start_s is not None
        assert 0 < startup.import_s <= startup.time_to_first_step_s
        process_start_s = first.start_s + first.step_ms / 1000 - startup.time_to_first_step_s
        assert began_s - TICK_S <= process_start_s < process_start_s + startup.import_s <= first.start_s
    ranks = [startups_of(finished, rank)[0] for rank in range(2)]
    assert ranks[1].import_s >= LATE_S
    assert summary_of_startups(finished) == summarise_fields(StartupRecord, ranks)
    assert finished.summary["import_s"] == max(rank.import_s for rank in ranks)
    written = json.loads((finished.output_dir / "summary.json").read_text())
    assert written.keys() == SUMMARY_FIGURES.keys()


LATE_S = 1.0


def run_late_on_rank_1(config: TrainConfig, env: RankEnv, output_dir: Path) -> None:
    """Runs a rank; the process of rank 1 first does something else, which counts as imports."""
    if env.rank == 1:
        time.sleep(LATE_S)
    run(config, env, output_dir)


def test_a_resumed_run_has_one_more(bert_config: TrainConfig, run_ranks: RunRanks) -> None:
    config = saved_often(bert_config)
    killed = run_ranks(config, 2, target=functools.partial(die_in, 11, 1))
    assert killed.exit_codes[1] == -signal.SIGKILL
    before = [startups_of(killed, rank) for rank in range(2)]
    assert [len(startups) for startups in before] == [1, 1]
    resumed = run_ranks(config, 2, killed.output_dir)
    assert resumed.exit_codes == (0, 0)
    latest = []
    for rank in range(2):
        kinds = [type(record) for record in records_of(resumed, rank)]
        assert (kinds.count(StartRecord), kinds.count(StartupRecord)) == (2, 2)
        earlier, last = startups_of(resumed, rank)
        assert [earlier] == before[rank]
        assert last.time_to_first_step_s is not None
        assert 0 < last.import_s <= last.time_to_first_step_s
        latest.append(last)
    assert summary_of_startups(resumed) == summarise_fields(StartupRecord, latest), "of the last start only"


def test_a_run_that_resumes_at_its_end(bert_config: TrainConfig, run_ranks: RunRanks) -> None:
    """The run was saved after its last step, and killed before its summary: no step is left to train."""
    config = dataclasses.replace(saved_often(bert_config), checkpoint_every=5)
    killed = run_ranks(config, 2, target=die_before_the_summary)
    assert killed.exit_codes == (-signal.SIGKILL, -signal.SIGKILL)
    assert not (killed.output_dir / "summary.json").exists()
    resumed = run_ranks(config, 2, killed.output_dir)
    assert resumed.exit_codes == (0, 0)
    for rank in range(2):
        records = records_of(resumed, rank)
        assert [record.first_step for record in records if isinstance(record, StartRecord)] == [1, STEPS + 1]
        assert [record.step for record in records if isinstance(record, StepRecord)] == list(range(1, STEPS + 1))
        assert len(startups_of(resumed, rank)) == 1, "of the start that trained"
    summary = resumed.summary
    assert (summary["time_to_first_step_s"], summary["slowest_time_to_first_step_rank"]) == (None, None)
    assert summary["import_s"] > 0
    assert summary["slowest_import_rank"] in (0, 1)
    assert summary["steps"] == STEPS
    evals = [record for record in records_of(resumed, 0) if isinstance(record, EvalRecord)]
    assert summary["eval_loss"] == evals[-1].loss is not None


def die_before_the_summary(config: TrainConfig, env: RankEnv, output_dir: Path) -> None:
    """Runs a rank; it is killed when it has trained."""
    pytest.MonkeyPatch().setattr(disttrain.training_run, "_summarise", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    run(config, env, output_dir)
