"""Runs of a user's own script under submitit's local executor: how they end, and what ends with them."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from disttrain.command.script_env import OUTPUT_NAME
from disttrain.records.lifecycle.attempt_log import not_resumed_cause
from disttrain.records.record_files import failure_name, read_failure, read_summary
from jobs.local.local_run import LocalRun, signal_ranks
from jobs.local.machine import Placement, QueuedRun
from jobs.slurm.states import State
from jobs.storage.sweep_folder import SweepFolder
from tests.jobs.storage.test_code_state import git
from tests.jobs.sweeping import Sweeping, wait_for, write_sweep

pytestmark = pytest.mark.process

PLACE = """
import json, os
from pathlib import Path
names = ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
place = {name: os.environ[name] for name in names}
place["left"] = [name for name in os.environ if name.startswith("SUBMITIT_") or name == "PYTHONSAFEPATH"]
Path(os.environ["SWEEP_RUN_DIR"], "place-" + os.environ["RANK"]).write_text(json.dumps(place))
"""

StartRun = Callable[[str], LocalRun]


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    return SweepFolder(tmp_path / "s" / "local")


@pytest.fixture
def start_run(folder: SweepFolder, tmp_path: Path) -> Iterator[StartRun]:
    """Starts a run of a script, given as text, on two nodes with one rank each."""
    started: list[LocalRun] = []

    def start(text: str) -> LocalRun:
        (tmp_path / "train.py").write_text(text)
        run_dir = folder.run("run")
        run_dir.mkdir(parents=True)
        script = {"flags": "--{key} {value}", "switches": [], "launcher": "ranks", "working_dir": str(tmp_path)}
        train = {"command": f"{sys.executable} train.py", "model": "the user's"}
        description = {
            "run_id": "run", "allocation": "2x1", "nodes": 2, "gpus_per_node": 1, "world_size": 2, "train": train,
            "script": script,
        }  # fmt: skip
        (run_dir / "run.json").write_text(json.dumps(description))
        queued = QueuedRun("run", "local-1-0", 2, 1, on_cpu=False, is_script=True)
        started.append(LocalRun(folder, queued, Placement("4,5", 3)))
        started[-1].start()
        return started[-1]

    yield start
    for run in started:
        run.kill()


def end_of(run: LocalRun) -> State:
    return wait_for(run.poll, "end of the run", limit_s=60)


def test_each_node_has_its_part_of_the_gpus(folder: SweepFolder, start_run: StartRun) -> None:
    assert end_of(start_run(PLACE)) is State.COMPLETED
    places = [json.loads((folder.run("run") / OUTPUT_NAME / f"place-{rank}").read_text()) for rank in range(2)]
    for node, place in enumerate(places):
        assert place == {
            "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "GROUP_RANK": str(node), "CUDA_VISIBLE_DEVICES": "45"[node],
            "OMP_NUM_THREADS": "3", "left": [],
        }  # fmt: skip
    summary = read_summary(folder.run("run"))
    assert summary is not None
    assert (summary["comparable"], summary["steps"]) == (False, 0)


def test_a_failing_script_is_the_reason(folder: SweepFolder, start_run: StartRun) -> None:
    assert end_of(start_run("import os\nif os.environ['RANK'] == '1': raise ValueError('boom')")) is State.FAILED
    failure = read_failure(folder.run("run") / failure_name(1))
    assert failure is not None
    assert (failure.error, failure.message) == ("ValueError", "boom")


SAVES_AFTER_A_FAILURE = """
import os, signal, sys, time
from pathlib import Path
folder = Path(os.environ["SWEEP_RUN_DIR"])
def save(number, frame):
    time.sleep(5)
    (folder / "saved").touch()
    sys.exit()
signal.signal(signal.SIGTERM, save)
if os.environ["RANK"] == "0":
    (folder / "ready").touch()
    time.sleep(60)
while not (folder / "ready").exists():
    time.sleep(0.05)
if HOW == "kill":
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)
sys.exit(3)
"""


@pytest.mark.parametrize("how", ["exit", "kill"])
def test_the_others_have_time_to_save(how: str, folder: SweepFolder, start_run: StartRun) -> None:
    began_s = time.monotonic()
    assert end_of(start_run(SAVES_AFTER_A_FAILURE.replace("HOW", repr(how)))) is State.FAILED
    assert (folder.run("run") / OUTPUT_NAME / "saved").exists()
    assert time.monotonic() - began_s < 20


def test_no_job_starts_a_stopped_script_again(folder: SweepFolder, start_run: StartRun) -> None:
    assert end_of(start_run("import sys; sys.exit(85)")) is State.FAILED
    failure = read_failure(folder.run("run") / failure_name(0))
    assert failure is not None
    assert not_resumed_cause(failure) == "request"
    assert failure.message == (
        "the script asked to be started again (status 85); without Slurm, sweep submit does that"
    )


def test_the_script_ends_with_the_run(folder: SweepFolder, start_run: StartRun) -> None:
    text = (
        "import os, time, pathlib\n"
        "pathlib.Path(os.environ['SWEEP_RUN_DIR'], 'pid-' + os.environ['RANK']).write_text(str(os.getpid()))\n"
        "time.sleep(60)"
    )
    run = start_run(text)
    files = [folder.run("run") / OUTPUT_NAME / f"pid-{rank}" for rank in range(2)]
    wait_for(lambda: all(path.exists() and path.read_text() for path in files), "both scripts", limit_s=30)
    assert run.poll() is None
    run.kill()
    time.sleep(0.2)
    for path in files:
        pid = int(path.read_text())
        assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_request_for_stacks_ends_no_script(folder: SweepFolder, start_run: StartRun) -> None:
    text = (
        "import os, time, pathlib\n"
        "folder = pathlib.Path(os.environ['SWEEP_RUN_DIR'])\n"
        "(folder / ('ready-' + os.environ['RANK'])).touch()\n"
        "while not (folder / 'go').exists(): time.sleep(0.05)"
    )
    run = start_run(text)
    output = folder.run("run") / OUTPUT_NAME
    wait_for(lambda: all((output / f"ready-{rank}").exists() for rank in range(2)), "both scripts", limit_s=30)
    signal_ranks(folder.logs, signal.SIGQUIT)
    (output / "go").touch()
    assert end_of(run) is State.COMPLETED


def test_a_script_with_more_ranks_than_gpus_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.py").touch()
    file = write_sweep(tmp_path / "large.yaml", allocations=["1x1", "2x2"], command="python train.py")
    sweeping = Sweeping(tmp_path, {**os.environ, "CUDA_VISIBLE_DEVICES": "0,1"})
    done = sweeping.run("submit", file, "--cluster", "local", exit_code=2)
    assert done.stderr.splitlines()[-1].startswith("error: 2x2 needs 4 GPUs, and this machine has 2: ")
    assert {row["state"] for row in sweeping.status()} == {"NOT_SUBMITTED"}


SHOWS_ITS_CODE = """
import json, os
from pathlib import Path
import library
text = {"code": library.__file__, "data": Path("../data/x").read_text(), "place": os.getcwd()}
Path(os.environ["SWEEP_RUN_DIR"], "code.json").write_text(json.dumps(text))
"""


def test_a_script_starts_in_a_copy_of_its_checkout(tmp_path: Path) -> None:
    project = tmp_path / "project"
    for name, text in {
        "work/train.py": SHOWS_ITS_CODE, "src/library.py": "", "data/x": "x", ".gitignore": "data\n"
    }.items():  # fmt: skip
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(text)
    git(project, "init", "--quiet")
    environ = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(project / "src")}
    sweeping = Sweeping(project / "work", environ)
    file = write_sweep(project / "work" / "mine.yaml", allocations=["1x1"], command=f"{sys.executable} train.py")
    output = sweeping.run("submit", file, "--cluster", "local", "--wait", "--root", tmp_path / "runs").stdout
    folder = SweepFolder(tmp_path / "runs" / "mine" / "local")
    (copy,) = folder.code_store.iterdir()
    assert f"  code {copy.name.partition('-')[0]}: a copy of {project}" in output.splitlines()
    (run,) = folder.planned_runs()
    started = json.loads((folder.run(run["run_id"]) / OUTPUT_NAME / "code.json").read_text())
    assert started == {"code": str(copy / "src" / "library.py"), "data": "x", "place": str(copy / "work")}
