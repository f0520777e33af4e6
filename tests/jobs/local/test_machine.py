"""The placement of runs on a machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disttrain.errors import UserError
from jobs.local.machine import Machine, Placement, QueuedRun, gpu_model, place, require_gpus, this_machine

MACHINES = st.builds(
    Machine, st.integers(1, 16), st.integers(0, 8).map(lambda count: tuple(str(index) for index in range(count)))
)
RUNS = st.lists(st.builds(QueuedRun, st.just("r"), st.just("j"), st.integers(1, 3), st.integers(1, 5), st.booleans()))


@given(MACHINES, RUNS, st.none() | st.integers(1, 12), st.randoms(use_true_random=False))
def test_never_overloads_a_machine(
    machine: Machine, runs: list[QueuedRun], max_ranks: int | None, random: object
) -> None:
    """The ranks fit on the machine at any time, and every run starts at some time."""
    waiting, running, started = list(runs), list[tuple[QueuedRun, Placement]](), 0
    while waiting or running:
        placement = place(waiting[0], running, machine, max_ranks) if waiting else None
        if placement is not None:
            running.append((waiting.pop(0), placement))
            started += 1
            check(machine, running, max_ranks)
        else:
            assert running, "a run waits although no other run is running"
            running.pop(random.randrange(len(running)))  # type: ignore[attr-defined]
    assert started == len(runs)


def check(machine: Machine, running: Sequence[tuple[QueuedRun, Placement]], max_ranks: int | None) -> None:
    on_gpu = [(run, placement) for run, placement in running if machine.gpus and not run.on_cpu]
    on_cpu = [(run, placement) for run, placement in running if not machine.gpus or run.on_cpu]
    groups = [on_gpu + on_cpu] if max_ranks else [on_gpu, on_cpu]
    for group, default in zip(groups, (len(machine.gpus), machine.cores), strict=False):
        capacity = max_ranks or default
        ranks = sum(run.world_size for run, _ in group)
        assert ranks <= capacity or len(group) == 1, (
            "only a run that is larger than the machine, and alone, may exceed it"
        )
    assert all(placement.visible_gpus == "" for _, placement in on_cpu)
    used_gpus = [gpu for _, placement in on_gpu for gpu in placement.visible_gpus.split(",")]
    assert set(used_gpus) <= set(machine.gpus)
    for run, placement in on_gpu:
        run_gpus = placement.visible_gpus.split(",")
        assert len(run_gpus) == len(set(run_gpus)) == min(run.world_size, len(machine.gpus))
    if not max_ranks or max_ranks <= len(machine.gpus):
        assert len(used_gpus) == len(set(used_gpus)), "no two runs share a GPU"
    assert all(placement.threads >= 1 for _, placement in running)


def test_threads_share_the_cores() -> None:
    def threads(cores: int, gpus: int, ranks: int, max_ranks: int | None = None) -> int:
        placement = place(QueuedRun("r", "j", 1, ranks, False), [], Machine(cores, tuple("01234567"[:gpus])), max_ranks)
        return placement.threads if placement else 0

    assert [threads(16, 4, 1), threads(16, 0, 1), threads(2, 0, 4), threads(16, 0, 1, max_ranks=2)] == [4, 1, 1, 8]
    assert threads(16, 1, 4) == 4  # four ranks share one GPU, and the cores


def test_uses_all_of_a_machine() -> None:
    """The next run starts while the machine has room for all its ranks."""
    one, machine = QueuedRun("r", "j", 1, 1, False), Machine(8, ("0", "1"))
    running: list[tuple[QueuedRun, Placement]] = []
    for gpu in machine.gpus:
        placement = place(one, running, machine, None)
        assert placement == Placement(gpu, 4)
        running.append((one, placement))
    assert place(one, running, machine, None) is None
    assert place(QueuedRun("r", "j", 1, 8, True), running, machine, None) == Placement("", 1)


def test_gpu_names_may_begin_alike() -> None:
    one, machine = QueuedRun("r", "j", 1, 1, False), Machine(8, ("10", "1"))
    assert place(one, [(one, Placement("10", 4))], machine, None) == Placement("1", 4)


def test_gpus_of_cuda_visible_devices() -> None:
    cores = len(os.sched_getaffinity(0))
    assert this_machine({"CUDA_VISIBLE_DEVICES": "2,GPU-8f1c"}) == Machine(cores, ("2", "GPU-8f1c"))
    for nothing in ("", "-1", "NoDevFiles"):
        assert this_machine({"CUDA_VISIBLE_DEVICES": nothing}) == Machine(cores, ())


NVIDIA_SMI = """\
#!/bin/sh
[ "$1" = -L ] || exit 1
echo "GPU 0: NVIDIA A100 (UUID: GPU-8f1c)"
echo "  MIG 1g.5gb Device 0: (UUID: MIG-c6d4)"
echo "GPU 1: NVIDIA A100 (UUID: GPU-77ab)"
"""


@pytest.mark.process
def test_counts_the_gpus_that_are_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nvidia-smi").write_text(NVIDIA_SMI)
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert this_machine({}).gpus == ("0", "1")
    assert this_machine({"CUDA_VISIBLE_DEVICES": ""}).gpus == ()
    assert [gpu_model(name) for name in ("1", "GPU-8f1c", "2")] == ["NVIDIA A100", "NVIDIA A100", None]
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho GPU 0 has fallen off the bus\nexit 9\n")
    assert this_machine({}).gpus == ()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_counts_the_cores_of_this_process() -> None:
    """A job, or taskset, gives a process fewer cores than the machine has."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        assert this_machine({"CUDA_VISIBLE_DEVICES": ""}).cores == 1
    finally:
        os.sched_setaffinity(0, cores)


@pytest.mark.parametrize(
    ("nodes", "gpus", "is_script", "refused"),
    [(2, "01", True, True), (2, "012", True, True), (2, "0123", True, False), (1, "01", True, False),
     (2, "", True, False), (2, "01", False, False)],
)  # fmt: skip
def test_a_script_needs_a_gpu_for_each_rank(nodes: int, gpus: str, is_script: bool, refused: bool) -> None:
    run = QueuedRun("r", "j", nodes, 2, on_cpu=False, is_script=is_script)
    if not refused:
        require_gpus(run, Machine(8, tuple(gpus)))
        return
    with pytest.raises(UserError) as caught:
        require_gpus(run, Machine(8, tuple(gpus)))
    assert str(caught.value) == (
        f"2x2 needs 4 GPUs, and this machine has {len(gpus)}: a script does not share GPUs between its ranks"
        " (choose a smaller allocation; for a script that uses no GPU: CUDA_VISIBLE_DEVICES= sweep submit)"
    )
