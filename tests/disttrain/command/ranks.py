"""Ranks of a user's own script, as real processes on this machine: with the variables of Slurm, each with its logs."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from disttrain.command.script_env import OUTPUT_NAME
from disttrain.config.command.command_config import CommandConfig
from disttrain.records.record_files import failure_name, read_failure, read_summary
from disttrain.records.summary_types import Failure, Summary

# The process of one rank. It ends as RankTask ends it.
RANK = """
import json, os, signal, sys
from pathlib import Path
from disttrain import command_run
from disttrain.command import signals
from disttrain.config.command.command_config import CommandConfig
from disttrain.environment.rank_env import RankEnv
from disttrain.environment.stop_signals import StopSignals
from disttrain.errors import ScriptFailed, ScriptStopped
folder, config, options = Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
config["switches"] = tuple(config["switches"])
if "warning" in options:
    options["warning"] = signal.Signals(options["warning"])
if options.pop("warned_at_start", False):
    # After the arguments of the call, and before its handlers.
    options["stop_signals"] = StopSignals()
    command_run.enter_stage = lambda *_, first=False: first and os.kill(os.getpid(), signal.SIGUSR2)
signals._CGROUP = Path(os.environ.get("TEST_CGROUP", "/dev/null"))
env = RankEnv.from_environ(os.environ)
try:
    command_run.run_command(CommandConfig(**config), env, folder, **options)
except ScriptStopped as stopped:
    (folder / f"stopped-{env.rank}").write_text(f"{stopped.logged_step} {stopped.terminated} {stopped.warned}")
except ScriptFailed as failed:
    if failed.number is not None:
        os.kill(os.getpid(), failed.number)
    raise
loaded = sorted({"torch", "numpy"} & set(sys.modules))
assert not loaded, loaded
"""


def in_slurm_cgroup(folder: Path) -> dict[str, str]:
    """The variable of ranks in a step in which Slurm signals only the processes that it has started itself."""
    path = folder / "cgroup"
    path.write_text("0::/system.slice/slurmstepd.scope/job_7/step_0/user/task_0\n")
    return {"TEST_CGROUP": str(path)}


def has_ended(pid: int) -> bool:
    """Whether a process has ended, even if nothing has reaped it."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@dataclasses.dataclass
class Ranks:
    """The running ranks of one run."""

    folder: Path
    processes: list[subprocess.Popen[bytes]]

    def wait(self, timeout_s: float = 60) -> list[int]:
        """The exit status of each rank."""
        deadline = time.monotonic() + timeout_s
        return [process.wait(max(0.1, deadline - time.monotonic())) for process in self.processes]

    def log(self, rank: int, stream: str = "out") -> str:
        """What a rank and its script have written."""
        return (self.folder / f"log-{rank}.{stream}").read_text()

    def wait_for(self, name: str, timeout_s: float = 60, folder: Path | None = None) -> Path:
        """A file when it exists: one that a script has written, or one in another folder."""
        path = (folder or self.output) / name
        deadline = time.monotonic() + timeout_s
        while not path.exists():
            assert time.monotonic() < deadline, f"{name} does not appear"
            time.sleep(0.02)
        return path

    def wait_for_text(self, name: str) -> str:
        """The text of a file that a script has written, when it has one."""
        path = self.wait_for(name)
        while not (text := path.read_text()):
            time.sleep(0.02)
        return text

    @property
    def output(self) -> Path:
        """The folder into which the scripts write."""
        return self.folder / OUTPUT_NAME

    @property
    def summary(self) -> Summary | None:
        return read_summary(self.folder)

    def failure(self, rank: int) -> Failure | None:
        return read_failure(self.folder / failure_name(rank))

    def kill(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()


def slurm_variables(rank: int, nodes: int, per_node: int, job_id: str, **changes: str) -> dict[str, str]:
    """What srun gives a rank, with all nodes on this host."""
    return {
        "SLURM_JOB_ID": job_id,
        "SLURM_STEP_ID": "0",
        "SLURM_PROCID": str(rank),
        "SLURM_NTASKS": str(nodes * per_node),
        "SLURM_STEP_NUM_TASKS": str(nodes * per_node),
        "SLURM_LOCALID": str(rank % per_node),
        "SLURM_NODEID": str(rank // per_node),
        "SLURM_NNODES": str(nodes),
        "SLURM_STEP_NUM_NODES": str(nodes),
        "SLURM_STEP_TASKS_PER_NODE": f"{per_node}(x{nodes})",
        "SLURM_STEP_NODELIST": ",".join(["localhost"] * nodes),
        "SLURM_CPUS_PER_TASK": "1",
        **changes,
    }


def start_ranks(
    folder: Path,
    config: CommandConfig,
    *,
    nodes: int = 1,
    per_node: int = 1,
    only: Sequence[int] | None = None,
    environ: Mapping[str, str] | None = None,
    options: Mapping[str, Any] | None = None,
    variables: Callable[..., dict[str, str]] = slurm_variables,
) -> Ranks:
    """Starts the ranks of a run; `only` leaves out the others."""
    folder.mkdir(parents=True, exist_ok=True)
    job_id = str(uuid.uuid4().int % 10**9)
    settings = {**dataclasses.asdict(config), "switches": list(config.switches)}
    processes = []
    for rank in only if only is not None else range(nodes * per_node):
        with (folder / f"log-{rank}.out").open("ab") as out, (folder / f"log-{rank}.err").open("ab") as err:
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-c", RANK, str(folder), json.dumps(settings), json.dumps(dict(options or {}))],
                    env={**os.environ, **variables(rank, nodes, per_node, job_id), **(environ or {})},
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                )
            )
    return Ranks(folder, processes)
