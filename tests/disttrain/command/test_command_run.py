"""A run that is the user's own script, with real processes: its end, its failures, its signals, its summary."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path

import pytest

from disttrain.records.record_files import metrics_name, read_records
from disttrain.records.record_types import StartRecord
from jobs.results.failures.failure_kind import lost_peer
from tests.disttrain.command.conftest import StartScript
from tests.disttrain.command.ranks import has_ended

pytestmark = pytest.mark.process

ALL_REDUCE = """
import argparse, json, os
import torch, torch.distributed as dist
parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float)
arguments = parser.parse_args()
dist.init_process_group("gloo")
total = torch.ones(1)
dist.all_reduce(total)
if dist.get_rank() == 0:
    with open(os.environ["SWEEP_METRICS"], "a") as file:
        for step in range(1, 4):
            print(json.dumps({"step": step, "loss": 1 / step, "lr": arguments.lr}), file=file)
dist.barrier()
print("total", int(total), flush=True)
dist.destroy_process_group()
"""


@pytest.mark.parametrize(("nodes", "per_node"), [(1, 1), (2, 2)])
def test_an_unchanged_script_runs_on_all_ranks(nodes: int, per_node: int, start_script: StartScript) -> None:
    ranks = start_script(ALL_REDUCE, {"lr": 1e-4}, nodes=nodes, per_node=per_node)
    world_size = nodes * per_node
    assert ranks.wait() == [0] * world_size
    for rank in range(world_size):
        assert ranks.log(rank) == f"total {world_size}\n"
    summary = ranks.summary
    assert summary is not None
    assert (summary["world_size"], summary["num_nodes"], summary["steps"]) == (world_size, nodes, 3)
    assert summary["metrics"]["loss"]["best"] == pytest.approx(1 / 3)
    assert summary["metrics"]["lr"]["last"] == 1e-4
    assert len(summary["hosts"]) == world_size
    assert not list(ranks.folder.glob("failure-*"))
    assert not (ranks.folder / "stage.json").exists()


FAILS_ON_RANK_1 = """
import os, sys, time
if os.environ["RANK"] == "1":
    raise ValueError("boom")
time.sleep(60)
"""


def test_a_failing_rank_ends_the_others(start_script: StartScript) -> None:
    began_s = time.monotonic()
    ranks = start_script(FAILS_ON_RANK_1, per_node=3)
    assert ranks.wait() == [1, 1, 1]
    assert time.monotonic() - began_s < 15
    failure = ranks.failure(1)
    assert failure is not None
    assert (failure.error, failure.message) == ("ValueError", "boom")
    assert failure.traceback.splitlines()[0] == "Traceback (most recent call last):"
    assert (ranks.failure(0), ranks.failure(2), ranks.summary) == (None, None, None)


def test_exit_status_and_last_line_without_a_traceback(start_script: StartScript) -> None:
    ranks = start_script("import argparse; argparse.ArgumentParser().parse_args()", {"lrr": 1})
    assert ranks.wait() == [2]
    failure = ranks.failure(0)
    assert failure is not None
    assert failure.error == "ExitStatus"
    assert failure.message == (
        "the script ended with exit status 2; its last line: train.py: error: unrecognized arguments: --lrr 1"
    )


DIES_ON_RANK_1 = """
import os, signal, sys, time
if os.environ["RANK"] == "1":
    os.kill(os.getpid() if sys.argv[2] == "script" else os.getppid(), int(sys.argv[4]))
time.sleep(60)
"""


@pytest.mark.parametrize("victim", ["script", "supervisor"])
def test_a_killed_rank_ends_the_others(victim: str, start_script: StartScript) -> None:
    ranks = start_script(DIES_ON_RANK_1, {"who": victim, "number": 9}, per_node=3)
    assert ranks.wait() == [1, -9, 1]  # as Slurm reports a rank that was killed itself
    assert ranks.failure(1) is None
    for rank in (0, 2):
        failure = ranks.failure(rank)
        assert failure is not None
        assert lost_peer(failure)
        assert failure.message == "connection closed by rank 1 before its script had ended"


def test_a_crash_is_named(start_script: StartScript) -> None:
    ranks = start_script(DIES_ON_RANK_1, {"who": "script", "number": int(signal.SIGSEGV)}, per_node=2)
    assert ranks.wait() == [1, 128 + signal.SIGSEGV]
    failure = ranks.failure(1)
    assert failure is not None
    assert (failure.error, failure.message) == ("SIGSEGV", "the script was ended by SIGSEGV")


IGNORES_SIGTERM = """
import os, signal, subprocess, sys, time
from pathlib import Path
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.environ["RANK"] == "0":
    child = subprocess.Popen(["sleep", "60"])
    Path(os.environ["SWEEP_RUN_DIR"], "child").write_text(str(child.pid))
    time.sleep(60)
while not Path(os.environ["SWEEP_RUN_DIR"], "child").exists():
    time.sleep(0.05)
sys.exit(3)
"""


def test_a_script_that_ignores_sigterm_ends_with_its_children(start_script: StartScript) -> None:
    ranks = start_script(IGNORES_SIGTERM, per_node=2)
    assert ranks.wait() == [1, 3]
    assert has_ended(int((ranks.output / "child").read_text()))


LEFT_BY_A_SHELL = """
import os, signal, sys, time
from pathlib import Path
folder = Path(os.environ["SWEEP_RUN_DIR"])
def stop(number, frame):
    if sys.argv[1:] == ["--saves", "true"]:
        time.sleep(1)
        (folder / "saved").touch()
        sys.exit()
signal.signal(signal.SIGTERM, stop)
if os.environ["RANK"] == "0":
    (folder / "pid").write_text(str(os.getpid()))
    while True:
        time.sleep(60)
while not (folder / "pid").exists():
    time.sleep(0.05)
sys.exit(3)
"""


@pytest.mark.parametrize("saves", [True, False])
def test_the_program_of_a_shell_ends_when_a_peer_fails(saves: bool, start_script: StartScript) -> None:
    """The shell dies of SIGTERM first. Its program may still save, or ignore the signal."""
    command = f"""sh -c '"$0" "$@"; exit $?' {sys.executable} train.py"""
    ranks = start_script(LEFT_BY_A_SHELL, {"saves": saves}, command=command, per_node=2)
    assert ranks.wait() == [1, 3]
    assert (ranks.output / "saved").exists() == saves
    assert has_ended(int((ranks.output / "pid").read_text()))


def test_a_rank_that_never_starts_is_named(start_script: StartScript) -> None:
    ranks = start_script("", per_node=3, only=[0, 1], options={"timeout_s": 2.0})
    assert ranks.processes[0].wait(30) == 1
    failure = ranks.failure(0)
    assert failure is not None
    assert (failure.error, failure.message) == ("TimeoutError", "ranks 2 did not connect within 2 s")


PRINTS_ARGUMENTS = "import json, sys; print(json.dumps(sys.argv[1:]))"


def test_values_reach_the_script_unchanged(start_script: StartScript) -> None:
    values = {
        "a b": "x y",
        "quotes": 'it\'s "$HOME" `id`',
        "letters": "\u00e9\u4e2d\U0001f600",
        "line": "a\nb",
        "glob": "*",
    }
    ranks = start_script(PRINTS_ARGUMENTS, values)
    assert ranks.wait() == [0]
    expected = [text for name, value in values.items() for text in (f"--{name}", value)]
    assert json.loads(ranks.log(0)) == expected


LOGS_MUCH = """
import json, os
with open(os.environ["SWEEP_METRICS"], "a") as file:
    for step in range(100_000):
        print(json.dumps({"step": step, "loss": 1.0, "samples_per_s": 250.0}), file=file)
    print("{damaged", file=file)
"""


def test_a_hundred_thousand_lines_of_metrics(start_script: StartScript) -> None:
    ranks = start_script(LOGS_MUCH, per_node=2)
    assert ranks.wait() == [0, 0]
    summary = ranks.summary
    assert summary is not None
    assert (summary["steps"], summary["metrics"]["loss"]["count"]) == (99_999, 100_000)
    assert (summary["samples_per_s"], summary["samples_per_s_per_gpu"]) == (250.0, 125.0)
    assert summary["notices"] == ("2 damaged lines of $SWEEP_METRICS left out",)


ENDS_BEFORE_RANK_0 = """
import os, time
from pathlib import Path
folder = Path(os.environ["SWEEP_RUN_DIR"])
(folder / ("ready-" + os.environ["RANK"])).touch()
while os.environ["RANK"] == "0" and not (folder / "go").exists():
    time.sleep(0.05)
"""


def test_a_rank_that_has_reported_is_not_needed(start_script: StartScript) -> None:
    """Its node may be lost while rank 0 saves the model."""
    ranks = start_script(ENDS_BEFORE_RANK_0, per_node=2)
    ranks.wait_for("ready-0")
    ranks.wait_for("ready-1")
    time.sleep(1)
    ranks.processes[1].kill()
    time.sleep(0.2)
    (ranks.output / "go").touch()
    assert ranks.wait() == [0, -9]
    assert ranks.summary is not None


def test_a_complete_run_is_not_run_again(start_script: StartScript) -> None:
    text = "from pathlib import Path; import os; Path(os.environ['SWEEP_RUN_DIR'], 'saved.pt').touch()"
    assert start_script(text, per_node=2).wait() == [0, 0]
    again = start_script("raise ValueError", per_node=2, environ={"SLURM_RESTART_COUNT": "1"})
    assert again.wait() == [0, 0]
    assert again.summary is not None
    assert (again.output / "saved.pt").exists()
    assert start_script("raise ValueError", per_node=2).wait() == [1, 1], "a new job runs it again"


def test_the_next_attempt_keeps_the_files_of_the_first(start_script: StartScript) -> None:
    log = "import os; open(os.environ['SWEEP_METRICS'], 'a').write('{\"step\": %d, \"loss\": %d}\\n')"
    assert start_script(log % (1, 5) + "\nraise ValueError").wait() == [1]
    ranks = start_script(log % (2, 3))
    assert ranks.wait() == [0]
    summary = ranks.summary
    assert summary is not None
    assert (summary["steps"], summary["metrics"]["loss"]["count"]) == (2, 2)
    assert ranks.failure(0) is None
    starts = [record for record in read_records(ranks.folder / metrics_name(0)) if isinstance(record, StartRecord)]
    assert len(starts) == 2


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("no-such-program train.py", "no-such-program: command not found on PATH"),
        ("./train.py", "./train.py cannot be started: Permission denied (chmod +x it"),
        ("./other.py", "./other.py: no such file in"),
    ],
)
def test_a_program_that_cannot_start(command: str, message: str, tmp_path: Path, start_script: StartScript) -> None:
    ranks = start_script("", command=command, per_node=2)
    assert ranks.wait() == [1, 1]
    failures = [failure for rank in range(2) if (failure := ranks.failure(rank)) is not None]
    assert any(failure.message.startswith(message) and failure.user_error for failure in failures)
    assert all(failure.user_error for failure in failures)


def test_a_script_may_write_and_remove_what_it_likes_in_its_folder(start_script: StartScript) -> None:
    text = (
        "import os, shutil, sys; folder = os.environ['SWEEP_RUN_DIR']; shutil.rmtree(folder); os.makedirs(folder)\n"
        "for name in ('summary.json', 'run.json'): open(os.path.join(folder, name), 'w').write('{}')\n"
        "sys.exit(int(os.environ['STATUS']))"
    )
    assert start_script(text, environ={"STATUS": "85"}).wait() == [0]
    again = start_script(text, environ={"STATUS": "0", "SLURM_RESTART_COUNT": "1"})
    assert again.wait() == [0]
    assert again.summary is not None
    assert (again.output / "summary.json").read_text() == "{}"
