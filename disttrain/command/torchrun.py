"""The command that starts torchrun once for each node."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from disttrain.config.command.command_config import CommandConfig
from disttrain.config.command.command_words import is_python
from disttrain.environment.rank_env import RankEnv
from disttrain.records.script_metrics import FILE_FORMAT

# Becomes the script, with the next file of its rank in the folder $SWEEP_METRICS: only torchrun knows the rank of a
# worker, and when it starts one again. The variables of the subshell do not reach the script.
_WORKER = f"""
SWEEP_METRICS=$(
    attempt=1
    while path=$SWEEP_METRICS/$(printf {FILE_FORMAT} "$RANK" "$attempt"); [ -e "$path" ]; do
        attempt=$((attempt + 1))
    done
    printf %s "$path"
    : >"$path"
)
exec "$@"
"""


def torchrun_arguments(
    config: CommandConfig, script: Sequence[str], env: RankEnv, workers: int, master_port: int
) -> list[str]:
    """The program that starts the workers of this node.

    Args:
        config: The config of the run; its launcher has the user's options.
        script: The program of a worker and its arguments.
        env: The place of this node's process.
        workers: The number of workers on this node.
        master_port: The port that is reserved on the first node.

    Example:
        >>> config = CommandConfig("python train.py", {}, launcher="torchrun --max-restarts 2")
        >>> words = torchrun_arguments(config, ["python", "train.py"], RankEnv(job_id="7"), 4, 10240)
        >>> shlex.join(words[:-4])
        'python -m torch.distributed.run --nnodes 1 --nproc-per-node 4 --rdzv-id 7-0 --rdzv-backend c10d \
--rdzv-endpoint 127.0.0.1:10240 --rdzv-conf is_host=true --max-restarts 2 --no-python sh -c'
        >>> words[-3:]
        ['sh', 'python', 'train.py']
    """
    program = ["torchrun"]
    if is_python(script[0]):
        program = [script[0], "-m", "torch.distributed.run"]  # that of the script's environment
    return [
        *program,
        "--nnodes", str(env.num_nodes),
        "--nproc-per-node", str(workers),
        # Every attempt has its own, so that no rank of an earlier one can join.
        "--rdzv-id", f"{env.job_id or 'none'}-{env.restart_count}",
        "--rdzv-backend", "c10d",
        "--rdzv-endpoint", f"{env.master_addr}:{master_port}",
        "--rdzv-conf", f"is_host={str(env.rank == 0).lower()}",
        *shlex.split(config.launcher)[1:],
        "--no-python",
        "sh", "-c", _WORKER, "sh",
        *script,
    ]  # fmt: skip
