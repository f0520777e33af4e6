"""The environment of a submission: job variables are hidden and restored; the cluster's own variables stay."""

from __future__ import annotations

import os

import pytest

from jobs.environ import clean_environ

STAYS = {
    "SLURM_CONF": "/etc/slurm/slurm.conf",
    "SLURM_JWT": "a token",
    "SUBMITIT_PREEMPT_SIGNAL": "USR1",
    "OMP_NUM_THREADS": "4",
    "CUDA_VISIBLE_DEVICES": "0",
}
LEAKS = {
    "SLURM_JOB_ID": "1",
    "SLURM_CPU_BIND": "mask_cpu:0x1",
    "SLURM_CPUS_PER_TASK": "4",
    "SBATCH_PARTITION": "gpu",
    "SRUN_DEBUG": "3",
    "SLURMD_NODENAME": "n1",
    "SUBMITIT_EXECUTOR": "slurm",
    "TORCHELASTIC_RUN_ID": "none",
    "PMIX_RANK": "0",
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
    with pytest.raises(RuntimeError, match="refused"), clean_environ():
        raise RuntimeError("refused")
    assert current() == surrounded


def test_hides_gpu_numbers_from_another_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with clean_environ():
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"
    with clean_environ(other_node=True):
        assert "CUDA_VISIBLE_DEVICES" not in os.environ
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"
