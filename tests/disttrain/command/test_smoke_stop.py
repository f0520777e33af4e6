"""The script of a smoke run, with real processes: it is stopped when it has shown enough, and may fail before."""

from __future__ import annotations

from pathlib import Path

import pytest

from disttrain.command.smoke_stop import smoke_stop
from disttrain.records.script_metrics import new_metrics_file
from tests.disttrain.command.conftest import StartScript
from tests.disttrain.command.ranks import has_ended

# Rank 1 fails when rank 0 has ended, as in an all-reduce.
TRAINS = """
import json, os, sys, time
from pathlib import Path
rank, folder = os.environ["RANK"], Path(os.environ["SWEEP_RUN_DIR"])
(folder / f"pid-{rank}").write_text(str(os.getpid()))
while not all((folder / f"pid-{other}").exists() for other in range(int(os.environ["WORLD_SIZE"]))):
    time.sleep(0.02)
if rank == "0" and LOGS:
    with open(os.environ["SWEEP_METRICS"], "a") as file:
        print(json.dumps({"step": 1, "loss": 0.5}), file=file)
first = int((folder / "pid-0").read_text())
for _ in range(600):
    time.sleep(0.1)
    if FAILS or (rank == "1" and not os.path.exists(f"/proc/{first}")):
        raise ValueError("boom")
"""


def script(*, logs: bool = True, fails: bool = False) -> str:
    return TRAINS.replace("LOGS", str(logs)).replace("FAILS", f"{fails} and rank == '1'")


@pytest.mark.process
def test_it_is_stopped_at_the_first_metrics(start_script: StartScript) -> None:
    ranks = start_script(script(), per_node=2, stop_after_s=60)
    assert ranks.wait() == [0, 0]
    assert ranks.summary is not None
    assert ranks.summary["metrics"]["loss"]["last"] == 0.5
    assert not list(ranks.folder.glob("failure-*"))
    assert all(has_ended(int((ranks.output / f"pid-{rank}").read_text())) for rank in range(2))


@pytest.mark.process
def test_it_is_stopped_after_its_time(start_script: StartScript) -> None:
    ranks = start_script(script(logs=False), stop_after_s=1)
    assert ranks.wait() == [0]
    assert ranks.summary is not None


@pytest.mark.process
def test_it_fails_before_it_is_stopped(start_script: StartScript) -> None:
    ranks = start_script(script(logs=False, fails=True), per_node=2, stop_after_s=60)
    assert all(ranks.wait())
    failure = ranks.failure(1)
    assert failure is not None
    assert (failure.error, failure.message) == ("ValueError", "boom")
    assert ranks.summary is None


@pytest.mark.process
def test_a_script_that_ignores_the_stop_is_killed(start_script: StartScript) -> None:
    deaf = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    ranks = start_script(deaf + script(), stop_after_s=60)
    assert ranks.wait() == [0]
    assert ranks.summary is not None


def test_what_an_earlier_attempt_has_logged_does_not_count(tmp_path: Path) -> None:
    now_s = [0.0]
    new_metrics_file(tmp_path, 0).write_text('{"loss": 1}\n')
    stop = smoke_stop(tmp_path, 0, 120.0, lambda: now_s[0])
    other = smoke_stop(tmp_path, 1, 120.0, lambda: now_s[0])
    assert stop is not None
    assert other is not None
    assert not stop()
    new_metrics_file(tmp_path, 3).write_text('{"loss": 1}\n')
    assert stop()
    now_s[0] = 120.0
    assert not other()
    assert smoke_stop(tmp_path, 0, None) is None
