"""RankEnv from the environments of torchrun, Slurm and submitit's local executor."""

from __future__ import annotations

import pytest

from disttrain.environment.rank_env import PORT_RANGE, RankEnv, port_candidates
from disttrain.errors import UserError

SLURM = {
    "SLURM_JOB_ID": "4571",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "3",
    "SLURM_NTASKS": "4",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_NNODES": "2",
    "SLURM_TASKS_PER_NODE": "2(x2)",
    "SLURM_STEP_NODELIST": "gpu[08-09]",
    "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1",
}
TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none",
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "GROUP_RANK": "1",
    "GROUP_WORLD_SIZE": "2",
    "MASTER_ADDR": "10.77.0.11",
    "MASTER_PORT": "29500",
}
LOCAL = {
    "SUBMITIT_EXECUTOR": "local",
    "SUBMITIT_LOCAL_JOB_ID": "812",
    "SUBMITIT_LOCAL_NTASKS": "4",
    "SUBMITIT_LOCAL_GLOBALID": "3",
    "SUBMITIT_LOCAL_LOCALID": "3",
}


def test_slurm_environment_gives_the_rank() -> None:
    env = RankEnv.from_environ(SLURM)
    assert env == RankEnv(
        rank=3,
        world_size=4,
        local_rank=1,
        local_world_size=2,
        node_rank=1,
        num_nodes=2,
        master_addr="gpu08",
        master_port=env.port_candidates()[0],
        job_id="4571",
        step_id="0",
        launcher="slurm",
    )


def test_slurm_token_has_task_and_requeue() -> None:
    env = RankEnv.from_environ(
        SLURM | {"SLURM_ARRAY_JOB_ID": "4570", "SLURM_ARRAY_TASK_ID": "1", "SLURM_RESTART_COUNT": "2"}
    )
    assert (env.job_id, env.restart_count, env.token) == ("4570_1", 2, "4570_1.0/2")


def test_slurm_step_overrides_the_job() -> None:
    """A step on a part of the job uses its own node list, tasks and nodes."""
    env = RankEnv.from_environ(
        SLURM
        | {
            "SLURM_PROCID": "0",
            "SLURM_LOCALID": "0",
            "SLURM_NODEID": "0",
            "SLURM_STEP_NUM_TASKS": "1",
            "SLURM_STEP_NUM_NODES": "1",
            "SLURM_STEP_TASKS_PER_NODE": "1",
            "SLURM_STEP_NODELIST": "gpu09",
        }
    )
    assert (env.world_size, env.allocation, env.master_addr) == (1, "1x1", "gpu09")


def test_batch_shell_is_one_process() -> None:
    """The batch script's own shell has SLURM_PROCID and SLURM_NTASKS, but no step: it waits for no other ranks."""
    environ = {name: value for name, value in SLURM.items() if name != "SLURM_STEP_ID"}
    env = RankEnv.from_environ(environ)
    assert (env.launcher, env.world_size, env.job_id) == ("single", 1, "4571")


def test_uneven_step_is_refused() -> None:
    with pytest.raises(UserError, match=r"different numbers of tasks: 2, 1 \(set --ntasks-per-node\)"):
        RankEnv.from_environ(SLURM | {"SLURM_TASKS_PER_NODE": "2,1"})


def test_torchrun_inside_a_slurm_job() -> None:
    env = RankEnv.from_environ(SLURM | TORCHRUN)
    assert (env.launcher, env.rank, env.allocation, env.master_addr) == ("torchrun", 3, "2x2", "10.77.0.11")
    assert env.port_candidates() == (29500,)


def test_local_executor_inside_an_allocation() -> None:
    env = RankEnv.from_environ(SLURM | LOCAL)
    assert (env.launcher, env.rank, env.world_size, env.master_addr) == ("submitit-local", 3, 4, "127.0.0.1")


def test_fold_makes_logical_nodes() -> None:
    env = RankEnv.from_environ(LOCAL).fold(2)
    assert (env.node_rank, env.num_nodes, env.local_rank, env.local_world_size) == (1, 2, 1, 2)
    assert (env.host_rank, env.host_world_size, env.folded) == (3, 4, True)
    assert not RankEnv.from_environ(LOCAL).fold(1).folded


def test_no_launcher_means_one_rank() -> None:
    assert RankEnv.from_environ({}) == RankEnv()


@pytest.mark.parametrize(
    ("environ", "allocated"),
    [
        ({"SLURM_JOB_GPUS": "0"}, True),
        ({"SLURM_STEP_GPUS": "0,1"}, True),
        ({"CUDA_VISIBLE_DEVICES": "0"}, True),
        ({"CUDA_VISIBLE_DEVICES": ""}, False),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, False),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, False),
        ({}, False),
    ],
)
def test_gpu_lists_show_allocated_gpus(environ: dict[str, str], allocated: bool) -> None:
    assert RankEnv.from_environ(environ).gpus_allocated is allocated


def test_wrong_variable_is_named() -> None:
    with pytest.raises(UserError, match="environment: SLURM_LOCALID is not set"):
        RankEnv.from_environ({name: value for name, value in SLURM.items() if name != "SLURM_LOCALID"})
    with pytest.raises(UserError, match="environment: RANK is 'x', not a number"):
        RankEnv.from_environ(TORCHRUN | {"RANK": "x"})
    with pytest.raises(UserError, match="rank 4 of 4, local rank 1 of 2 is out of range"):
        RankEnv.from_environ(TORCHRUN | {"RANK": "4"})


@pytest.mark.parametrize("setup", ["2_2", "2x2"])
def test_matching_setup_is_accepted(setup: str) -> None:
    RankEnv.from_environ(SLURM).check_setup(setup)


@pytest.mark.parametrize(
    ("setup", "message"),
    [
        ("1_4", r"setup '1_4' says 1x4 \(nodes x ranks per node\), but the run has 2x2"),
        ("2", "setup '2' is not an allocation"),
        ("two_2", "setup 'two_2' is not an allocation"),
    ],
)
def test_other_setup_is_refused(setup: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        RankEnv.from_environ(SLURM).check_setup(setup)


def test_ports_avoid_reserved_ranges() -> None:
    for job in range(2000):
        for port in port_candidates(f"{job}.0/0"):
            assert port in PORT_RANGE
            assert port < 32768  # Linux's ip_local_port_range starts here
            assert port > 6819


def test_each_attempt_has_different_ports() -> None:
    first = RankEnv.from_environ(SLURM)
    assert first.port_candidates() != RankEnv.from_environ(SLURM | {"SLURM_RESTART_COUNT": "1"}).port_candidates()
    assert first.port_candidates() != RankEnv.from_environ(SLURM | {"SLURM_STEP_ID": "1"}).port_candidates()
