"""torchrun starts the workers of a user's own script, one torchrun for each node."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from disttrain.records.script_metrics import metrics_files
from tests.disttrain.command.conftest import StartScript
from tests.disttrain.command.ranks import in_slurm_cgroup

pytestmark = pytest.mark.process

WORKER = """
import json, os, sys
import torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.ones(1)
dist.all_reduce(total)
rank = dist.get_rank()
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "OMP_NUM_THREADS")
with open(os.path.join(os.environ["SWEEP_RUN_DIR"], f"worker-{rank}.json"), "w") as file:
    json.dump({name: os.environ[name] for name in names} | {"total": int(total)}, file)
with open(os.environ["SWEEP_METRICS"], "a") as file:
    print(json.dumps({"step": 5, "loss": 0.5}), file=file)
dist.barrier()
dist.destroy_process_group()
if sys.argv[2] != "0" and rank == 2:
    if sys.argv[2] == "1":
        raise KeyError("worker")
    sys.exit(int(sys.argv[2]))
"""


def test_torchrun_starts_the_workers_of_two_nodes(start_script: StartScript) -> None:
    ranks = start_script(
        WORKER, {"end": 0}, nodes=2, launcher="torchrun --max-restarts 0", options={"gpus_per_node": 2}
    )
    assert ranks.wait() == [0, 0]
    workers = [json.loads((ranks.output / f"worker-{rank}.json").read_text()) for rank in range(4)]
    for rank, worker in enumerate(workers):
        assert (worker["RANK"], worker["WORLD_SIZE"], worker["LOCAL_WORLD_SIZE"]) == (str(rank), "4", "2")
        assert (worker["GROUP_WORLD_SIZE"], worker["total"]) == ("2", 4)
    summary = ranks.summary
    assert summary is not None
    assert (summary["world_size"], summary["num_nodes"], len(summary["hosts"])) == (4, 2, 4)
    assert (summary["steps"], summary["metrics"]["loss"]["count"]) == (5, 1), "that of rank 0"


def test_a_failing_worker_of_torchrun_is_the_reason(start_script: StartScript) -> None:
    ranks = start_script(WORKER, {"end": 1}, nodes=2, launcher="torchrun", options={"gpus_per_node": 2})
    assert 1 in ranks.wait()
    failures = [failure for rank in range(2) if (failure := ranks.failure(rank)) is not None]
    assert ("KeyError", "'worker'") in [(failure.error, failure.message) for failure in failures]


def test_a_worker_of_torchrun_asks_to_start_again(start_script: StartScript) -> None:
    ranks = start_script(WORKER, {"end": 85}, launcher="torchrun", options={"gpus_per_node": 3})
    assert ranks.wait() == [0]
    assert (ranks.folder / "stopped-0").read_text() == "5 False False"


def test_a_worker_that_cannot_start_is_named(start_script: StartScript) -> None:
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    ranks = start_script("", command="./other.py", launcher="torchrun", environ={"PATH": programs})
    assert ranks.wait() == [127]
    failure = ranks.failure(0)
    assert failure is not None
    assert "./other.py: " in failure.message


RESTARTS = """
import json, os, time
from pathlib import Path
rank, folder = int(os.environ["RANK"]), Path(os.environ["SWEEP_RUN_DIR"])
again = (folder / f"logged-{rank}").exists()
with open(os.environ["SWEEP_METRICS"], "a") as file:
    for step in (3, 4) if again else (1, 2, 3):
        print(json.dumps({"step": step, "loss": step + 10 * rank, f"loss-{rank}": 1.0}), file=file)
(folder / f"logged-{rank}").touch()
while not all((folder / f"logged-{other}").exists() for other in range(2)):
    time.sleep(0.05)
if not again and os.environ["GROUP_RANK"] == "1":
    raise SystemExit(85)
time.sleep(1 if again else 60)
"""


def test_metrics_of_ranks_and_of_restarts_stay_apart(start_script: StartScript) -> None:
    """torchrun counts a restart only on the node whose worker has failed. Without a warning, 85 is one more failure."""
    ranks = start_script(RESTARTS, nodes=2, launcher="torchrun --max-restarts 1")
    assert ranks.wait() == [0, 0]
    names = {rank: [path.name for path in paths] for rank, paths in metrics_files(ranks.folder).items()}
    assert names == {rank: [f"rank0000{rank}-attempt00{attempt}.jsonl" for attempt in (1, 2)] for rank in range(2)}
    summary = ranks.summary
    assert summary is not None
    assert summary["steps"] == 4
    assert (summary["metrics"]["loss"]["count"], summary["metrics"]["loss"]["max"]) == (4, 4.0)
    assert summary["metrics"]["loss-1"]["count"] == 4


def test_values_reach_the_workers_unchanged(start_script: StartScript) -> None:
    values = {"quotes": 'it\'s "$HOME" `id`', "letters": "\u00e9\u4e2d", "line": "a\nb", "glob": "*"}
    text = "import os, sys, json; print(json.dumps([sys.argv[1:], os.environ.get('attempt'), os.environ.get('path')]))"
    ranks = start_script(text, values, launcher="torchrun", environ={"attempt": "mine"})
    assert ranks.wait() == [0]
    expected = [text for name, value in values.items() for text in (f"--{name}", value)]
    assert json.loads(ranks.log(0)) == [expected, "mine", None]


WARNED = """
import json, os, signal, sys, time
from pathlib import Path
rank, folder = os.environ["RANK"], Path(os.environ["SWEEP_RUN_DIR"])
warned = []
signal.signal(signal.SIGUSR2, lambda *_: warned.append(True))
with open(os.environ["SWEEP_METRICS"], "a") as file:
    print(json.dumps({"step": 5}), file=file)
(folder / f"ready-{rank}").touch()
while not warned:
    time.sleep(0.05)
if sys.argv[2] == "error":
    raise KeyError("worker")
sys.exit(85)
"""


@pytest.mark.parametrize(("nodes", "workers"), [(1, 2), (2, 1)])
def test_workers_that_save_at_the_warning_are_not_restarted(
    nodes: int, workers: int, tmp_path: Path, start_script: StartScript
) -> None:
    ranks = start_script(
        WARNED,
        {"end": "saved"},
        nodes=nodes,
        launcher="torchrun --max-restarts 3",
        options={"gpus_per_node": workers},
        environ=in_slurm_cgroup(tmp_path),
    )
    for rank in range(2):
        ranks.wait_for(f"ready-{rank}")
    for process in ranks.processes:
        process.send_signal(signal.SIGUSR2)
    began_s = time.monotonic()
    assert ranks.wait() == [0] * nodes
    assert time.monotonic() - began_s < 30
    assert (ranks.folder / "stopped-0").read_text() == "5 False True"
    assert not list(ranks.folder.glob("failure-*"))


def test_a_worker_that_fails_at_the_warning_is_the_reason(tmp_path: Path, start_script: StartScript) -> None:
    environ = in_slurm_cgroup(tmp_path)
    ranks = start_script(WARNED, {"end": "error"}, launcher="torchrun --max-restarts 3", environ=environ)
    ranks.wait_for("ready-0")
    ranks.processes[0].send_signal(signal.SIGUSR2)
    assert ranks.wait() == [1]
    failure = ranks.failure(0)
    assert failure is not None
    assert (failure.error, failure.message) == ("KeyError", "'worker'")
