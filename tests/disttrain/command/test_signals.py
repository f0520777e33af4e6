"""The signals of a rank reach the user's script, which may save and ask to be started again."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

import disttrain.command.signals
from disttrain.command.signals import FORWARDED, signals_to_forward
from tests.disttrain.command.conftest import StartScript
from tests.disttrain.command.ranks import in_slurm_cgroup

STOPS_AT_WARNING = """
import json, os, signal, sys, time
from pathlib import Path
folder = Path(os.environ["SWEEP_RUN_DIR"])
warned = False
def note(number, frame):
    global warned
    warned = True
if os.environ["RANK"] == "0":
    signal.signal(int(os.environ["NUMBER"]), note)
with open(os.environ["SWEEP_METRICS"], "a") as file:
    print(json.dumps({"step": 7, "loss": 1.0}), file=file)
(folder / ("ready-" + os.environ["RANK"])).touch()
while not warned and not (folder / "saved").exists():
    time.sleep(0.05)
if warned:
    (folder / "saved").touch()
    sys.exit(85)
"""


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGUSR1])
def test_a_script_stops_at_the_warning(number: signal.Signals, tmp_path: Path, start_script: StartScript) -> None:
    """Rank 1 has no handler, and does not die of the warning."""
    ranks = start_script(
        STOPS_AT_WARNING,
        per_node=2,
        environ={"NUMBER": str(int(number)), **in_slurm_cgroup(tmp_path)},
        options={"warning": int(number)},
    )
    for rank, process in enumerate(ranks.processes):
        ranks.wait_for(f"ready-{rank}")
        process.send_signal(signal.SIGUSR2)
    assert ranks.wait() == [0, 0]
    assert (ranks.folder / "stopped-0").read_text() == "7 False True"
    assert (ranks.folder / "stopped-1").exists()
    assert ranks.summary is None
    assert not list(ranks.folder.glob("failure-*"))


@pytest.mark.process
def test_a_script_asks_by_itself_to_start_again(start_script: StartScript) -> None:
    ranks = start_script("import sys; sys.exit(85)")
    assert ranks.wait() == [0]
    assert (ranks.folder / "stopped-0").read_text() == "None False False"


SAVES_AT_SIGTERM = """
import os, signal, sys, time
from pathlib import Path
folder = Path(os.environ["SWEEP_RUN_DIR"])
def save(number, frame):
    time.sleep(2)
    sys.exit(int(sys.argv[2]))
if os.environ["RANK"] == "0" and sys.argv[2] != "-1":
    signal.signal(signal.SIGTERM, save)
(folder / ("ready-" + os.environ["RANK"])).touch()
time.sleep(60)
"""


@pytest.mark.process
@pytest.mark.parametrize("status", [85, 0, -1])
def test_rank_0_has_time_to_save_at_sigterm(status: int, tmp_path: Path, start_script: StartScript) -> None:
    ranks = start_script(SAVES_AT_SIGTERM, {"status": status}, per_node=2, environ=in_slurm_cgroup(tmp_path))
    for rank in range(2):
        ranks.wait_for(f"ready-{rank}")
    for process in ranks.processes:
        process.send_signal(signal.SIGTERM)
    if status == 85:
        assert ranks.wait() == [0, 0]
        assert (ranks.folder / "stopped-0").read_text() == "None True False"
    else:
        assert ranks.wait() == [-signal.SIGTERM, -signal.SIGTERM]
        assert ranks.summary is None, "a script that saves and ends with 0 is not complete"
    assert not list(ranks.folder.glob("failure-*"))


COUNTS_WARNINGS = """
import os, signal, sys, time
from pathlib import Path
count = 0
def note(number, frame):
    global count
    count += 1
signal.signal(signal.SIGUSR2, note)
folder = Path(os.environ["SWEEP_RUN_DIR"])
(folder / "ready").write_text(str(os.getpid()))
while not (folder / "go").exists():
    time.sleep(0.05)
print(count)
"""


@pytest.mark.process
@pytest.mark.parametrize("signals_all", [True, False])
def test_a_warning_comes_once(signals_all: bool, tmp_path: Path, start_script: StartScript) -> None:
    """Slurm signals every process of a step, or with cgroups only those that it has started."""
    environ = {} if signals_all else in_slurm_cgroup(tmp_path)
    ranks = start_script(COUNTS_WARNINGS, environ=environ)
    script = int(ranks.wait_for_text("ready"))
    ranks.processes[0].send_signal(signal.SIGUSR2)
    if signals_all:
        os.kill(script, signal.SIGUSR2)
    time.sleep(0.5)
    (ranks.output / "go").touch()
    assert ranks.wait() == [0]
    assert ranks.log(0) == "1\n"


def test_signals_are_forwarded_outside_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    step = {"SLURM_STEP_ID": "0"}
    monkeypatch.setattr(disttrain.command.signals, "_CGROUP", tmp_path / "cgroup")
    assert signals_to_forward(step) == frozenset()
    assert FORWARDED - {signal.SIGINT} <= signals_to_forward({})
    (tmp_path / "cgroup").write_text("5:freezer:/slurm/uid_1000/job_7/step_0\n")
    assert FORWARDED - {signal.SIGINT} <= signals_to_forward(step)
