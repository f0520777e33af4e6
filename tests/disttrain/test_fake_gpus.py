"""Runs on fake GPUs: device, backend, notices, checkpoints, events and telemetry of complete ranks."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from disttrain.config.train_config import TrainConfig
from disttrain.environment.rank_env import RankEnv
from disttrain.records.record_files import metrics_name, read_records
from disttrain.records.record_types import StartRecord
from disttrain.records.step_types import StepTimes
from disttrain.run import run
from tests.disttrain.ranks import die_in, saved_often
from tests.fakecuda.install import NAME, install, on_fake_cuda

if TYPE_CHECKING:
    from tests.disttrain.conftest import RunRanks


def on_gpus(count: int, target: Callable[..., object] = run) -> Callable[..., object]:
    return functools.partial(on_fake_cuda, count, target)


def noting(count: int, config: TrainConfig, env: RankEnv, output_dir: Path) -> None:
    """Runs a rank, and writes what it printed and what its fake GPUs saw."""
    gpus = install(count)
    output_dir.mkdir(parents=True, exist_ok=True)
    with (output_dir / f"printed-{env.rank}.txt").open("w") as file, contextlib.redirect_stdout(file):
        run(config, env, output_dir)
    seen = {
        "current": gpus.current,
        "events": gpus.events_made,
        "unpinned": gpus.unpinned_copies,
        "backends": [arguments["backend"] for arguments in gpus.inits],
        "quiet": os.environ.get("TORCH_NCCL_SHOW_EAGER_INIT_P2P_SERIALIZATION_WARNING"),
        "tf32": torch.backends.cudnn.allow_tf32,
    }
    (output_dir / f"seen-{env.rank}.json").write_text(json.dumps(seen))


def seen_by(output_dir: Path, rank: int) -> dict[str, Any]:
    seen: dict[str, Any] = json.loads((output_dir / f"seen-{rank}.json").read_text())
    return seen


def printed(output_dir: Path) -> list[str]:
    return (output_dir / "printed-0.txt").read_text().splitlines()


def start_of(output_dir: Path, rank: int) -> StartRecord:
    record = next(iter(read_records(output_dir / metrics_name(rank))))
    assert isinstance(record, StartRecord)
    return record


def test_one_rank_on_a_gpu(vit_config: TrainConfig, run_ranks: RunRanks) -> None:
    config = dataclasses.replace(vit_config, device="auto", max_steps=12, telemetry_every_s=0)
    finished = run_ranks(config, 1, target=functools.partial(noting, 1))
    assert finished.exit_codes == (0,)
    on_cpu = run_ranks(dataclasses.replace(config, device="cpu"), 1)
    assert finished.losses() == on_cpu.losses(), "the fake computes what a CPU does"
    summary = finished.summary
    assert (summary["device_name"], summary["notices"]) == (NAME, on_cpu.summary["notices"])
    for step in finished.steps(0):
        parts = [getattr(step, name) for name in ("data_ms", "forward_ms", "backward_ms", "optimizer_ms")]
        assert sum(parts) == pytest.approx(step.step_ms)
    seen = seen_by(finished.output_dir, 0)
    assert (seen["unpinned"], seen["tf32"]) == (0, False)
    assert printed(finished.output_dir)[0] == f"1 rank on 1 host, {NAME}"


def test_two_ranks_on_two_gpus_use_nccl(bert_config: TrainConfig, run_ranks: RunRanks) -> None:
    config = dataclasses.replace(bert_config, device="cuda", max_steps=8, detailed_timing=True, telemetry_every_s=0)
    finished = run_ranks(config, 2, target=functools.partial(noting, 2))
    assert finished.exit_codes == (0, 0)
    for rank in range(2):
        seen = seen_by(finished.output_dir, rank)
        assert (seen["current"], seen["backends"], seen["quiet"]) == (rank, ["nccl"], "false")
    assert printed(finished.output_dir)[0] == f"2 ranks on 1 host, nccl, {NAME}"
    assert (finished.summary["backend"], finished.summary["comparable"]) == ("nccl", True)
    assert not [notice for notice in finished.summary["notices"] if "gloo" in notice]
    assert all(step.exposed_comm_ms is not None for step in finished.steps(1))


def test_two_ranks_on_one_gpu_fall_back(bert_config: TrainConfig, run_ranks: RunRanks) -> None:
    config = dataclasses.replace(bert_config, device="auto", max_steps=4, telemetry_every_s=0)
    finished = run_ranks(config, 2, target=functools.partial(noting, 1))
    assert seen_by(finished.output_dir, 1)["backends"] == ["gloo"]
    first, *lines = printed(finished.output_dir)
    assert first == f"2 ranks on 1 host, gloo, {NAME}"
    assert any(line.startswith("note: ranks share a GPU, which NCCL does not support: gloo") for line in lines)
    assert start_of(finished.output_dir, 1).shared_gpu


def test_no_gpu_is_reported(bert_config: TrainConfig, run_ranks: RunRanks) -> None:
    config = dataclasses.replace(bert_config, device="auto", max_steps=2)
    finished = run_ranks(config, 1, target=functools.partial(noting, 0))
    (notice,) = [notice for notice in finished.summary["notices"] if "device is auto" in notice]
    start = f"trains on the CPU: device is auto, and torch {torch.__version__} sees no GPU on "
    assert notice.startswith(start)
    assert f"note: {notice}" in printed(finished.output_dir)
    asked = run_ranks(dataclasses.replace(config, device="cpu"), 1, target=on_gpus(0))
    assert not [notice for notice in asked.summary["notices"] if "GPU" in notice]


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_killed_run_resumes_with_the_same_losses(ranks: int, bert_config: TrainConfig, run_ranks: RunRanks) -> None:
    """Dropout draws from the generators of the fake GPUs, and checkpoints arrive when their events are complete."""
    config = dataclasses.replace(saved_often(bert_config), device="cuda", telemetry_every_s=0)
    complete = run_ranks(config, ranks, target=on_gpus(ranks))
    killed = run_ranks(config, ranks, target=on_gpus(ranks, functools.partial(die_in, 12, 0)))
    resumed = run_ranks(config, ranks, killed.output_dir, target=on_gpus(ranks))
    assert resumed.exit_codes == (0,) * ranks
    assert any("resumes after step" in notice for notice in resumed.summary["notices"])
    assert resumed.losses() == complete.losses()


def test_events_are_made_once(bert_config: TrainConfig, run_ranks: RunRanks) -> None:
    """Each evaluation reads the events, and later steps use them again."""
    config = dataclasses.replace(bert_config, device="cuda", eval_every=4, telemetry_every_s=0)
    short, long = (
        run_ranks(dataclasses.replace(config, max_steps=steps), 1, target=functools.partial(noting, 1))
        for steps in (8, 40)
    )
    made = seen_by(short.output_dir, 0)["events"]
    assert made == seen_by(long.output_dir, 0)["events"]
    assert made <= 4 * len(dataclasses.fields(StepTimes))
