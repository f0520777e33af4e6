"""RankEnv from the environments of torchrun, Slurm and submitit's local executor."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from disttrain.environment.rank_env import PORT_RANGE, RankEnv, choose_threads, port_candidates
from disttrain.errors import UserError
from tests.proofs.random_inputs import RANDOM_EXAMPLES

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
# As Slurm 22.05 sets them in the script of a job of two nodes.
BATCH_SHELL = {
    "SLURM_JOB_ID": "4571",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_NTASKS": "4",
    "SLURM_NPROCS": "4",
    "SLURM_NNODES": "2",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_TASKS_PER_NODE": "2(x2)",
    "SLURM_JOB_NODELIST": "gpu[08-09]",
    "SLURM_NODELIST": "gpu[08-09]",
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


def test_the_first_host_of_the_list_has_rank_0() -> None:
    """srun places its tasks in the order of the list, which is not always sorted."""
    assert RankEnv.from_environ(SLURM | {"SLURM_STEP_NODELIST": "gpu[09,08]"}).master_addr == "gpu09"


def test_the_step_decides_in_a_job_with_more_nodes() -> None:
    """`srun --nodelist` starts a step on later nodes of the job: rank 0 is not on the first node of the job."""
    env = RankEnv.from_environ(SLURM | {"SLURM_JOB_NODELIST": "gpu[01-20]", "SLURM_NODELIST": "gpu[01-20]"})
    assert env.master_addr == "gpu08"


def test_batch_shell_is_one_process() -> None:
    """The batch script's own shell has SLURM_PROCID and SLURM_NTASKS, but no step: it waits for no other ranks."""
    env = RankEnv.from_environ(BATCH_SHELL)
    assert (env.launcher, env.world_size, env.job_id) == ("single", 1, "4571")


def without(environ: dict[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name not in names}


BY_HAND = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "n1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        (without(BY_HAND, "LOCAL_RANK"), "several (RANK=1, WORLD_SIZE=2), but LOCAL_RANK is not set"),
        (without(BY_HAND, "LOCAL_RANK") | {"RANK": "0"}, "several (RANK=0, WORLD_SIZE=2), but LOCAL_RANK is not set"),
        (without(BY_HAND, "RANK"), "several (LOCAL_RANK=1, WORLD_SIZE=2), but RANK is not set"),
        (without(BY_HAND, "RANK", "LOCAL_RANK"), "several (WORLD_SIZE=2), but RANK, LOCAL_RANK are not set"),
        (without(BY_HAND, "WORLD_SIZE"), "several (RANK=1), but WORLD_SIZE is not set"),
        (without(BY_HAND, "MASTER_ADDR"), "several (RANK=1, WORLD_SIZE=2), but MASTER_ADDR is not set"),
        (without(BY_HAND, "MASTER_PORT"), "MASTER_PORT is not set"),
        (BY_HAND | {"LOCAL_RANK": ""}, "LOCAL_RANK is not set"),
        # The second of two hosts: the number of ranks on each is not known.
        (BY_HAND | {"LOCAL_RANK": "0"}, "LOCAL_WORLD_SIZE is not set"),
        ({"LOCAL_RANK": "0"}, "several (LOCAL_RANK=0), but RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT are not set"),
        (
            {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"},
            "several (OMPI_COMM_WORLD_RANK=0, OMPI_COMM_WORLD_SIZE=2), but RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR,"
            " MASTER_PORT are not set",
        ),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "several (OMPI_COMM_WORLD_SIZE=2), but RANK"),
        ({"PMI_RANK": "0", "PMI_SIZE": "4"}, "several (PMI_RANK=0, PMI_SIZE=4), but RANK"),
        ({"PMIX_RANK": "0"}, "several (PMIX_RANK=0), but RANK"),
        ({"PMIX_RANK": "1", "PMI_SIZE": "1"}, "several (PMIX_RANK=1), but RANK"),
        ({"PMIX_RANK": "0", "PMI_RANK": "0", "PMI_SIZE": "2"}, "several (PMI_RANK=0, PMI_SIZE=2), but RANK"),
        ({"MV2_COMM_WORLD_RANK": "1", "MV2_COMM_WORLD_SIZE": "2"}, "several (MV2_COMM_WORLD_RANK=1,"),
        ({"PALS_RANKID": "3"}, "several (PALS_RANKID=3), but RANK"),
        ({"FLUX_TASK_RANK": "0", "FLUX_JOB_SIZE": "2"}, "several (FLUX_TASK_RANK=0, FLUX_JOB_SIZE=2), but RANK"),
        ({"PMI_SIZE": "two"}, "PMI_SIZE is 'two', not a number"),
        # A step of srun of which a container passes on only some variables.
        (without(SLURM, "SLURM_PROCID"), "SLURM_PROCID is not set"),
        (without(SLURM, "SLURM_STEP_ID"), "SLURM_STEP_ID is not set"),
        (without(SLURM, "SLURM_NTASKS"), "SLURM_STEP_NUM_TASKS is not set"),
        (without(SLURM, "SLURM_STEP_NODELIST"), "SLURM_STEP_NODELIST is not set"),
        ({"SLURM_JOB_ID": "1", "SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, "SLURM_STEP_NUM_NODES is not set"),
    ],
)
def test_one_of_several_needs_its_rank(environ: dict[str, str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        RankEnv.from_environ(environ)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "environ",
    [
        {"RANK": "0", "WORLD_SIZE": "1"},
        {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1", "PMI_RANK": "0", "PMI_SIZE": "1"},
        {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1", "PMIX_RANK": "0"},  # mpirun -n 1 of Open MPI
        {"WORLD_SIZE": "1", "LOCAL_RANK": "0"},
        {"MASTER_ADDR": "n1", "MASTER_PORT": "29500", "NODE_RANK": "0"},
    ],
)
def test_launch_of_one_process_is_one_rank(environ: dict[str, str]) -> None:
    assert RankEnv.from_environ(environ) == RankEnv()


def test_launch_by_hand_on_one_host() -> None:
    env = RankEnv.from_environ(BY_HAND)
    assert (env.rank, env.allocation, env.launcher, env.port_candidates()) == (1, "1x2", "torchrun", (29500,))


def test_launch_by_hand_inside_a_step() -> None:
    """Many recipes set torchrun's variables from Slurm's, without LOCAL_WORLD_SIZE."""
    by_hand = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "n1", "MASTER_PORT": "29500"}
    env = RankEnv.from_environ(SLURM | {"SLURM_STEP_NUM_TASKS": "4"} | by_hand)
    assert (env.allocation, env.node_rank, env.master_addr) == ("2x2", 1, "n1")


LEFT_IN_THE_SHELL = {
    "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500",
}  # fmt: skip


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_RANK=0, OMPI_COMM_WORLD_SIZE=2"),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_RANK=1, OMPI_COMM_WORLD_SIZE=2"),
        ({"PMI_RANK": "1"}, "PMI_RANK=1"),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "4"}, "SLURM_PROCID=3, SLURM_STEP_NUM_TASKS=4"),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0"}, "SLURM_PROCID=0, SLURM_STEP_NUM_TASKS=4"),
    ],
)
def test_exports_of_an_earlier_launch_are_refused(other: dict[str, str], said: str) -> None:
    """With them, every process of mpirun or srun would be rank 0 of 1, in the same folder."""
    with pytest.raises(UserError) as caught:
        RankEnv.from_environ(LEFT_IN_THE_SHELL | other)
    assert str(caught.value) == (
        f"environment: this process is one of several ({said}), but RANK is 0 and WORLD_SIZE is 1"
        " (unset RANK and WORLD_SIZE, or set them for each process)"
    )


def test_a_rank_of_another_launch_is_refused() -> None:
    with pytest.raises(UserError, match=r"several \(PMI_RANK=0, PMI_SIZE=2\), but RANK is 1 and WORLD_SIZE is 2"):
        RankEnv.from_environ(BY_HAND | {"PMI_RANK": "0", "PMI_SIZE": "2"})


@pytest.mark.parametrize(
    "other",
    [
        {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "PMIX_RANK": "1"},  # a script sets them
        {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"},  # mpirun starts one process for each node
        BATCH_SHELL,
    ],
)
def test_a_launch_by_hand_under_another_launcher(other: dict[str, str]) -> None:
    env = RankEnv.from_environ(BY_HAND | other)
    assert (env.rank, env.world_size, env.launcher) == (1, 2, "torchrun")


@pytest.mark.parametrize(
    "other",
    [
        {"PMI_RANK": "3", "PMI_SIZE": "4", "PMIX_RANK": "3"},  # srun --mpi
        {"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "n1", "MASTER_PORT": "29500"},  # a recipe
        {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"},  # another: they count the ranks of one host
    ],
)
def test_step_agrees_with_other_launchers(other: dict[str, str]) -> None:
    assert RankEnv.from_environ(SLURM | other).launcher == "slurm"


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "8"},
            "OMPI_COMM_WORLD_RANK is 0, but SLURM_PROCID is 3",
        ),
        ({"PMI_RANK": "3", "PMI_SIZE": "8"}, "PMI_SIZE is 8, but the size of the Slurm step is 4"),
        ({"RANK": "0"}, r"RANK is 0, but SLURM_PROCID is 3 \(start the ranks with srun alone, or unset RANK\)"),
    ],
)
def test_mpirun_inside_a_step_is_refused(other: dict[str, str], message: str) -> None:
    """mpirun starts its ranks with the Slurm variables of its daemon: all would take the daemon's place."""
    with pytest.raises(UserError, match=message):
        RankEnv.from_environ(SLURM | other)


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        (TORCHRUN | {"WORLD_SIZE": "0"}, "WORLD_SIZE is 0; it must be at least 1"),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "0"}, "LOCAL_WORLD_SIZE is 0; it must be at least 1"),
        (TORCHRUN | {"GROUP_WORLD_SIZE": "0"}, "GROUP_WORLD_SIZE is 0; it must be at least 1"),
        (TORCHRUN | {"RANK": "-1"}, "RANK is '-1', not a number"),
        (TORCHRUN | {"RANK": "9" * 5000}, "RANK is '999"),
        (TORCHRUN | {"RANK": "\u0663"}, "RANK is '\u0663', not a number"),
        (TORCHRUN | {"MASTER_PORT": "0"}, "MASTER_PORT is 0; it must be from 1 to 65535"),
        (TORCHRUN | {"MASTER_PORT": "65536"}, "MASTER_PORT is 65536; it must be from 1 to 65535"),
        (TORCHRUN | {"GROUP_RANK": "2"}, "node rank 2 of 2 is out of range"),
        (
            TORCHRUN | {"LOCAL_WORLD_SIZE": "3", "GROUP_WORLD_SIZE": "1"},
            "1x3 (nodes x ranks per node) is not the world size 4",
        ),
        (SLURM | {"SLURM_NTASKS": "0"}, "SLURM_NTASKS is 0; it must be at least 1"),
        (SLURM | {"SLURM_NNODES": "3"}, "3x2 (nodes x ranks per node) is not the world size 4"),
        (SLURM | {"SLURM_STEP_NODELIST": ","}, "SLURM_STEP_NODELIST is ',': it names no host"),
        (SLURM | {"SLURM_STEP_NODELIST": "n[1-"}, "SLURM_STEP_NODELIST: 'n[1-' is not a Slurm hostlist"),
        (SLURM | {"SLURM_TASKS_PER_NODE": " "}, "SLURM_TASKS_PER_NODE is ' ': no node has a task"),
        (SLURM | {"SLURM_TASKS_PER_NODE": "0(x2)"}, "SLURM_TASKS_PER_NODE is '0(x2)': no node has a task"),
        (SLURM | {"SLURM_TASKS_PER_NODE": "two"}, "SLURM_TASKS_PER_NODE: 'two' is not a Slurm list of counts"),
        (SLURM | {"SLURM_ARRAY_JOB_ID": "4"}, "SLURM_ARRAY_TASK_ID is not set"),
        (LOCAL | {"SUBMITIT_LOCAL_NTASKS": "0"}, "SUBMITIT_LOCAL_NTASKS is 0; it must be at least 1"),
    ],
)
def test_odd_values_are_one_line(environ: dict[str, str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        RankEnv.from_environ(environ)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 400


MPI = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "PMIX_RANK")
NAMES = st.sampled_from(sorted({*SLURM, *TORCHRUN, *LOCAL, *BATCH_SHELL, *MPI}))
VALUES = st.sampled_from(["0", "1", "2", "4", "", " ", ",", "-1", "n[1-2]", "2(x2)", "local", "9" * 5000]) | st.text()


@settings(max_examples=RANDOM_EXAMPLES)
@given(st.sampled_from([{}, SLURM, TORCHRUN, LOCAL]), st.dictionaries(NAMES, VALUES, max_size=6))
def test_any_environment_has_a_rank_or_an_error(launch: dict[str, str], changes: dict[str, str]) -> None:
    environ = launch | changes
    assert choose_threads(RankEnv(launcher="slurm"), environ | {"OMP_NUM_THREADS": changes.get("RANK", "")}, 4) >= 1
    try:
        env = RankEnv.from_environ(environ)
    except UserError:
        return
    assert 0 <= env.rank < env.world_size == env.num_nodes * env.local_world_size
    assert 0 <= env.node_rank < env.num_nodes


def test_uneven_step_is_refused() -> None:
    with pytest.raises(UserError, match=r"different numbers of tasks: 2, 1 \(set --ntasks-per-node\)"):
        RankEnv.from_environ(SLURM | {"SLURM_TASKS_PER_NODE": "2,1"})


def test_torchrun_inside_a_slurm_job() -> None:
    env = RankEnv.from_environ(SLURM | TORCHRUN)
    assert (env.launcher, env.rank, env.allocation, env.master_addr) == ("torchrun", 3, "2x2", "10.77.0.11")
    assert env.port_candidates() == (29500,)


def test_a_restart_by_torchrun_is_another_attempt() -> None:
    """It has nothing to do with a requeue of the Slurm job that torchrun runs in."""
    environ = SLURM | TORCHRUN | {"SLURM_RESTART_COUNT": "5", "TORCHELASTIC_RESTART_COUNT": "2"}
    assert RankEnv.from_environ(environ).restart_count == 2


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


@pytest.mark.parametrize(
    ("env", "environ", "threads"),
    [
        (RankEnv(), {}, 16),
        (RankEnv(world_size=4, local_world_size=2, num_nodes=2), {}, 8),
        (RankEnv(world_size=4, local_world_size=2, num_nodes=2, folded=True), {}, 4),
        (RankEnv(world_size=32, local_world_size=32), {}, 1),
        (RankEnv(), {"OMP_NUM_THREADS": "3"}, 3),
        (RankEnv(launcher="slurm", world_size=2, local_world_size=2), {"SLURM_CPUS_PER_TASK": "6"}, 6),
        (RankEnv(launcher="slurm", world_size=2, local_world_size=2), {"SLURM_CPUS_PER_TASK": "99"}, 16),
        (RankEnv(), {"SLURM_CPUS_PER_TASK": "6"}, 16),
        # torchrun's default, which the user did not choose
        (RankEnv(launcher="torchrun", world_size=2, local_world_size=2), {"OMP_NUM_THREADS": "1"}, 8),
        (RankEnv(launcher="torchrun"), {"OMP_NUM_THREADS": "1"}, 1),
    ],
)
def test_threads_are_a_share_of_the_cores(env: RankEnv, environ: dict[str, str], threads: int) -> None:
    assert choose_threads(env, environ, 16) == threads


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
