"""Where runs are placed on a machine."""

from __future__ import annotations

import os
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from jobs.local.machine import Machine, Placement, QueuedRun, place, this_machine

MACHINES = st.builds(
    Machine, st.integers(1, 16), st.integers(0, 8).map(lambda count: tuple(str(index) for index in range(count)))
)
RUNS = st.lists(st.builds(QueuedRun, st.just("r"), st.just("j"), st.integers(1, 3), st.integers(1, 5), st.booleans()))


@given(MACHINES, RUNS, st.none() | st.integers(1, 12), st.randoms(use_true_random=False))
def test_a_machine_is_never_overloaded_and_no_run_waits_for_ever(
    machine: Machine, runs: list[QueuedRun], max_ranks: int | None, random: object
) -> None:
    waiting, running, started = list(runs), list[tuple[QueuedRun, Placement]](), 0
    while waiting or running:
        spot = place(waiting[0], running, machine, max_ranks) if waiting else None
        if spot is not None:
            running.append((waiting.pop(0), spot))
            started += 1
            check(machine, running, max_ranks)
        else:
            assert running, "a run that waits waits for another one"
            running.pop(random.randrange(len(running)))  # type: ignore[attr-defined]
    assert started == len(runs)


def check(machine: Machine, running: Sequence[tuple[QueuedRun, Placement]], max_ranks: int | None) -> None:
    on_gpu = [(run, spot) for run, spot in running if machine.gpus and not run.on_cpu]
    on_cpu = [(run, spot) for run, spot in running if not machine.gpus or run.on_cpu]
    groups = [on_gpu + on_cpu] if max_ranks else [on_gpu, on_cpu]
    for group, default in zip(groups, (len(machine.gpus), machine.cores), strict=False):
        capacity = max_ranks or default
        ranks = sum(run.world_size for run, _ in group)
        assert ranks <= capacity or len(group) == 1, "only a run that is larger than the machine, and alone"
    assert all(spot.visible_gpus == "" for _, spot in on_cpu)
    handed_out = [gpu for _, spot in on_gpu for gpu in spot.visible_gpus.split(",")]
    assert set(handed_out) <= set(machine.gpus)
    for run, spot in on_gpu:
        own = spot.visible_gpus.split(",")
        assert len(own) == len(set(own)) == min(run.world_size, len(machine.gpus))
    if not max_ranks or max_ranks <= len(machine.gpus):
        assert len(handed_out) == len(set(handed_out)), "no two runs share a GPU"
    assert all(spot.threads >= 1 for _, spot in running)


def test_threads_part_the_cores() -> None:
    def threads(cores: int, gpus: int, ranks: int, max_ranks: int | None = None) -> int:
        spot = place(QueuedRun("r", "j", 1, ranks, False), [], Machine(cores, tuple("01234567"[:gpus])), max_ranks)
        return spot.threads if spot else 0

    assert [threads(16, 4, 1), threads(16, 0, 1), threads(2, 0, 4), threads(16, 0, 1, max_ranks=2)] == [4, 1, 1, 8]


def test_gpus_are_those_that_the_environment_leaves() -> None:
    cores = len(os.sched_getaffinity(0))
    assert this_machine({"CUDA_VISIBLE_DEVICES": "2,GPU-8f1c"}) == Machine(cores, ("2", "GPU-8f1c"))
    for nothing in ("", "-1", "NoDevFiles"):
        assert this_machine({"CUDA_VISIBLE_DEVICES": nothing}) == Machine(cores, ())


# What stands in for a rank, in a module that the processes of the ranks can import: RankTask itself would train.
