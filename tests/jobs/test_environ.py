"""The environment of a submission: the user's own variables stay; those of a surrounding job or launcher are hidden."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from jobs.environ import clean_environ, leftovers
from jobs.planning.sbatch_options import USER_DEFAULTS, overruled_variables

# The user's own, inside a job too.
STAYS = {
    "SLURM_CONF": "/etc/slurm/slurm.conf",
    "SLURM_JWT": "a token",
    "SUBMITIT_PREEMPT_SIGNAL": "USR1",
    "SUBMITIT_LOG_LEVEL": "DEBUG",
    "SBATCH_ACCOUNT": "proj-a",
    "SBATCH_EXPORT": "NONE",
    "OMP_NUM_THREADS": "4",
    "OMPI_MCA_btl": "tcp",
    "CUDA_VISIBLE_DEVICES": "0",
    "HF_TOKEN": "hf_x",
    "NCCL_DEBUG": "INFO",
}
LEAKS = {
    "SLURM_JOB_ID": "1",
    "SLURM_CPU_BIND": "mask_cpu:0x1",
    "SLURM_CPUS_PER_TASK": "4",
    "SLURM_UMASK": "0022",
    "SBATCH_MEM_BIND_LIST": "0x1",
    "SBATCH_CPU_BIND": "quiet,mask_cpu:0x1",
    "SRUN_DEBUG": "3",
    "SLURMD_NODENAME": "n1",
    "_SLURM_SPANK_OPTION_pyxis_container_image": "x",
    "SUBMITIT_EXECUTOR": "slurm",
    "TORCHELASTIC_RUN_ID": "none",
    "PMIX_RANK": "0",
    "PMIX_NAMESPACE": "slurm.pmix.1.0",
    "OMPI_COMM_WORLD_RANK": "0",
    "RANK": "0",
    "WORLD_SIZE": "2",
    "MASTER_PORT": "29500",
}


@pytest.fixture
def surrounded(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """This process inside a job."""
    for name in list(os.environ):
        monkeypatch.delenv(name)
    for name, value in {**STAYS, **LEAKS}.items():
        monkeypatch.setenv(name, value)
    return current()


def current() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}


def test_hides_and_restores_job_variables(surrounded: dict[str, str]) -> None:
    with clean_environ():
        assert current() == STAYS
    assert current() == surrounded


def test_restores_variables_after_an_error(surrounded: dict[str, str]) -> None:
    with pytest.raises(RuntimeError, match="refused"), clean_environ(overruled=["SBATCH_ACCOUNT", "NOT_SET"]):
        raise RuntimeError("refused")
    assert current() == surrounded
    with clean_environ(overruled=["SBATCH_ACCOUNT", "NOT_SET"]):
        assert current().keys() == STAYS.keys() - {"SBATCH_ACCOUNT"}


def test_hides_gpu_numbers_from_another_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with clean_environ():
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"
    with clean_environ(other_node=True):
        assert "CUDA_VISIBLE_DEVICES" not in os.environ
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"


@pytest.mark.parametrize(
    "name",
    [
        "SLURM_CPU_BIND", "SLURM_MPI_TYPE", "SLURM_HINT", "SLURM_ACCOUNT", "SLURM_DEBUG_FLAGS", "SLURM_UMASK",
        "SLURM_TIME_FORMAT", "SLURM_SCRIPTS_OF_MINE", "SBATCH_RESERVATION", "SBATCH_MEM_BIND", "SRUN_CONTAINER",
        "OMPI_MCA_btl", "PMIX_MCA_gds", "FLUX_URI", "NODE_RANK",
    ],
)  # fmt: skip
def test_outside_a_job_a_setting_is_the_users(name: str) -> None:
    assert leftovers({name: "x"}, other_node=True) == frozenset()


@pytest.mark.parametrize(
    "name",
    [
        "SLURM_GPUS_PER_NODE", "SLURM_TIMELIMIT", "SLURM_NTASKS", "SLURM_NNODES", "SLURM_CPUS_PER_TASK", "SLURM_GRES",
        "SLURM_MEM_PER_NODE", "SLURM_EXPORT_ENV", "SLURM_CLUSTERS", "SLURM_ARRAY_TASK_ID", "SLURM_NODELIST",
        "SLURM_TRES_PER_TASK", "SLURM_WORKING_DIR", "SLURM_STDOUTMODE", "SUBMITIT_EXECUTOR", "RANK", "LOCAL_RANK",
        "PMI_RANK", "OMPI_COMM_WORLD_SIZE", "HIP_VISIBLE_DEVICES",
    ],
)  # fmt: skip
def test_what_contradicts_the_plan_is_hidden(name: str) -> None:
    assert leftovers({name: "x"}, other_node=True) == {name}


def test_a_launcher_hides_its_settings() -> None:
    mpirun = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_MCA_ess_base_jobid": "1", "PMIX_SERVER": "x", "OMP_PLACES": "cores"}
    assert leftovers(mpirun) == mpirun.keys() - {"OMP_PLACES"}


def test_the_page_lists_every_group(repository: Path) -> None:
    """The table of docs/cluster.md agrees with the code, variable by variable."""
    page = (repository / "docs" / "cluster.md").read_text(encoding="utf-8")
    table = page.partition("## Environment variables\n")[2].partition("\n## ")[0]
    lines = [line.strip("|") for line in table.splitlines() if line.startswith("| `")]
    assert len(lines) > 12
    rows = [[cell.strip() for cell in line.split("|")] for line in lines]
    for variables, outside, inside in rows:
        for name in re.findall(r"`([A-Z_][A-Za-z_0-9]*)\*?`", variables):
            assert (name in hidden_of({name: "x"})) == outside.startswith("hidden"), name
            assert (name in hidden_of({"SLURM_JOB_ID": "7", name: "x"})) == inside.startswith("hidden"), name


def hidden_of(environ: Mapping[str, str]) -> frozenset[str]:
    """The variables that no new job gets. The plan shows the user's defaults, here "x"."""
    script = "".join(f"#SBATCH --{key}=x\n" for key in USER_DEFAULTS)
    return leftovers(environ, other_node=True) | overruled_variables(environ, script)
