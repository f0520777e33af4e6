"""The environment of the user's script: that of a worker of torchrun, and where the script finds its run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from disttrain.config.command.command_config import CommandConfig
from disttrain.config.paths import moved_path
from disttrain.environment.rank_env import RankEnv, choose_threads

# What torch.distributed.elastic sets with the default options of torchrun.
_ROLE = "default"
_SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT"
RUN_DIR = "SWEEP_RUN_DIR"
OUTPUT_NAME = "output"  # a folder of its own: a script may write or remove what it likes, and run.json is ours
METRICS = "SWEEP_METRICS"
# submitit's variables would let the script take itself for a rank of its own.
_LEFT_OUT = "SUBMITIT_"


def worker_variables(env: RankEnv, environ: Mapping[str, str], master_port: int, error_file: Path) -> dict[str, str]:
    """The variables that torchrun gives this rank.

    Two values differ from torchrun's: TORCHELASTIC_USE_AGENT_STORE is False, because rank 0 of the script opens the
    store, and OMP_NUM_THREADS is the rank's share of the cores and not 1, unless the user has set it.

    Args:
        env: The rank's place.
        environ: The environment of this process.
        master_port: The port that is reserved for the script's store.
        error_file: The file into which torch's `record` writes an exception.
    """
    return {
        "RANK": str(env.rank),
        "LOCAL_RANK": str(env.local_rank),
        "WORLD_SIZE": str(env.world_size),
        "LOCAL_WORLD_SIZE": str(env.local_world_size),
        "GROUP_RANK": str(env.node_rank),
        "GROUP_WORLD_SIZE": str(env.num_nodes),
        "ROLE_NAME": _ROLE,
        "ROLE_RANK": str(env.rank),
        "ROLE_WORLD_SIZE": str(env.world_size),
        "MASTER_ADDR": env.master_addr,
        "MASTER_PORT": str(master_port),
        "TORCHELASTIC_RUN_ID": env.job_id or "none",
        "TORCHELASTIC_RESTART_COUNT": str(env.restart_count),
        "TORCHELASTIC_MAX_RESTARTS": "0",
        "TORCHELASTIC_USE_AGENT_STORE": "False",
        "TORCHELASTIC_ERROR_FILE": str(error_file),
        "TORCHELASTIC_SIGNALS_TO_HANDLE": _SIGNALS,
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": environ.get("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1"),
        "OMP_NUM_THREADS": _threads(env, environ, 1),
    }


def base_environ(env: RankEnv, environ: Mapping[str, str], run_dir: Path, metrics: Path) -> dict[str, str]:
    """The environment of this process without what its launcher needs itself, and with the run's folder."""
    base = {name: value for name, value in environ.items() if not name.startswith(_LEFT_OUT)}
    gpus = own_gpus(env, environ)
    if gpus is not None:
        base["CUDA_VISIBLE_DEVICES"] = gpus
    return {**base, RUN_DIR: str(run_dir / OUTPUT_NAME), METRICS: str(metrics)}


def search_copy(environ: Mapping[str, str], config: CommandConfig) -> dict[str, str]:
    """The environment with PYTHONPATH naming the copy of the user's code where it names the checkout."""
    paths = environ.get("PYTHONPATH")
    if not paths or config.checkout is None or config.copy is None:
        return dict(environ)
    places = [_place_in_copy(path, config.checkout, config.copy) for path in paths.split(os.pathsep)]
    return {**environ, "PYTHONPATH": os.pathsep.join(places)}


def _place_in_copy(path: str, checkout: str, copy: str) -> str:
    place = None
    if os.path.isabs(path):
        place = moved_path(os.path.realpath(path), checkout, copy)
    return place if place is not None and os.path.exists(place) else path


def torchrun_variables(env: RankEnv, environ: Mapping[str, str], workers: int, error_file: Path) -> dict[str, str]:
    """What torchrun itself gets, which then gives each worker its variables.

    Args:
        env: The place of this node's process.
        environ: The environment of this process.
        workers: The number of workers on this node.
        error_file: The file into which torchrun writes the exception of a worker.
    """
    return {"TORCHELASTIC_ERROR_FILE": str(error_file), "OMP_NUM_THREADS": _threads(env, environ, workers)}


def own_gpus(env: RankEnv, environ: Mapping[str, str]) -> str | None:
    """The GPUs that the script sees if they are not all of this process's; None for all of them.

    If one host stands for several nodes, each node gets its part of the host's GPUs: LOCAL_RANK then counts the GPUs
    that the script sees, as on a real node.

    Example:
        >>> env = RankEnv(rank=3, world_size=4).fold(2)
        >>> own_gpus(env, {"CUDA_VISIBLE_DEVICES": "0,1,4,5,6"}), own_gpus(env, {"CUDA_VISIBLE_DEVICES": "0"})
        ('4,5', None)
    """
    visible = [name for name in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    if not env.folded:
        return None
    per_node = len(visible) // env.num_nodes
    first = env.node_rank * per_node
    return ",".join(visible[first : first + per_node]) or None


def _threads(env: RankEnv, environ: Mapping[str, str], workers: int) -> str:
    """The number of threads of each process; what the user has set, as it is."""
    if environ.get("OMP_NUM_THREADS"):
        return environ["OMP_NUM_THREADS"]
    return str(max(1, choose_threads(env, environ, len(os.sched_getaffinity(0))) // workers))
