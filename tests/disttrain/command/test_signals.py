"""The signals of a rank reach the user's script, which may save and ask to be started again."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

import disttrain.command.signals
from disttrain.command.signals import FORWARDED, signals_to_forward
from disttrain.records.record_files import STAGE_NAME
from tests.disttrain.command.conftest import StartScript
from tests.disttrain.command.ranks import has_ended, in_slurm_cgroup

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
def test_a_warning_at_the_start_is_noted(start_script: StartScript) -> None:
    ranks = start_script("import sys; sys.exit(85)", options={"warned_at_start": True})
    assert ranks.wait() == [0]
    assert (ranks.folder / "stopped-0").read_text() == "None False True"


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_rank_that_waits_for_others_can_be_ended(number: signal.Signals, start_script: StartScript) -> None:
    ranks = start_script("", per_node=2, only=[0])
    ranks.wait_for(STAGE_NAME, folder=ranks.folder)
    time.sleep(0.5)  # it listens now
    ranks.processes[0].send_signal(signal.SIGUSR2)  # which only is noted
    time.sleep(0.2)
    assert ranks.processes[0].poll() is None
    ranks.processes[0].send_signal(number)
    assert ranks.wait(10) == [-number]


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


SAVES_UNDER_A_SHELL = """
import os, signal, sys, time
from pathlib import Path
folder = Path(os.environ["SWEEP_RUN_DIR"])
def save(number, frame):
    (folder / "warned").touch()
    sys.exit(85)
signal.signal(int(os.environ["NUMBER"]), save)
(folder / "ready").touch()
time.sleep(60)
"""


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_the_program_of_a_shell_is_warned(
    number: signal.Signals, shell: str, tmp_path: Path, start_script: StartScript
) -> None:
    """A shell passes no signal on, and would die of a warning by SIGTERM while its program saves."""
    command = f"""{shell} -c 'cd /; "$0" "$@"; exit $?' {sys.executable} {tmp_path}/work/train.py"""
    environ = {"NUMBER": str(int(number)), **in_slurm_cgroup(tmp_path)}
    ranks = start_script(SAVES_UNDER_A_SHELL, command=command, environ=environ, options={"warning": int(number)})
    ranks.wait_for("ready")
    ranks.processes[0].send_signal(signal.SIGUSR2)
    assert ranks.wait() == [0]
    assert (ranks.output / "warned").exists()
    assert (ranks.folder / "stopped-0").read_text() == "None False True"


TRAP = """trap "touch $SWEEP_RUN_DIR/trapped; exit 85" TERM; touch $SWEEP_RUN_DIR/ready; while :; do sleep 0.1; done"""


@pytest.mark.process
def test_a_shell_with_a_trap_is_warned(tmp_path: Path, start_script: StartScript) -> None:
    ranks = start_script(
        "", command=f"sh -c '{TRAP}'", environ=in_slurm_cgroup(tmp_path), options={"warning": int(signal.SIGTERM)}
    )
    ranks.wait_for("ready")
    ranks.processes[0].send_signal(signal.SIGUSR2)
    assert ranks.wait() == [0]
    assert (ranks.output / "trapped").exists()


@pytest.mark.process
def test_sigterm_ends_the_program_of_a_shell(tmp_path: Path, start_script: StartScript) -> None:
    text = (
        "import os, time, pathlib\n"
        "pathlib.Path(os.environ['SWEEP_RUN_DIR'], 'pid').write_text(str(os.getpid()))\n"
        "time.sleep(60)"
    )
    command = f"""sh -c '"$0" "$@"; echo done' {sys.executable} train.py"""
    ranks = start_script(text, command=command, environ=in_slurm_cgroup(tmp_path))
    program = int(ranks.wait_for_text("pid"))
    ranks.processes[0].send_signal(signal.SIGTERM)
    assert ranks.wait() == [-signal.SIGTERM]
    deadline = time.monotonic() + 10
    while not has_ended(program):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert ranks.log(0) == ""
