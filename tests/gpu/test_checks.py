"""Each check fails on what it promises to find, and all checks fit into the time of `make gpu`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.gpu.__main__ import LIMIT_S
from tests.gpu.bench import NEEDED, Bench, Check
from tests.gpu.checks import CHECKS, one_rank
from tests.gpu.machine import Machine
from tests.gpu.ranks import CheckError, Ran, Sizes

STEPS, STEP_MS = 100, 40.0


class RecordedBench(Bench):
    """A bench whose runs have these records."""

    records: list[dict[str, Any]]

    def run(self, name: str, model: str, *flags: str, **more: Any) -> Ran:
        folder = self.folder / "run"
        folder.mkdir()
        (folder / "summary.json").write_text(json.dumps({"notices": []}))
        (folder / "metrics-rank00000.jsonl").write_text("\n".join(map(json.dumps, self.records)))
        return Ran(self.folder, 0, "", time.time())


def recorded(folder: Path, train_s: float, samples: int, energy_w: float, source: str = "counter") -> RecordedBench:
    """A run of 4.0 s whose power is 100 W, and whose counter adds up this power."""
    phases = {f"{phase}_ms": STEP_MS / 4 for phase in ("data", "forward", "backward", "optimizer")}
    step = {"kind": "step", "loss": 1.0, "examples": 16, "step_ms": STEP_MS, **phases}
    sample = {"kind": "telemetry", "gpu_power_w": 100.0, "gpu_energy_source": source}
    bench = RecordedBench(folder, {}, Sizes(), "NVIDIA H200", deadline_s=0.0)
    bench.records = [
        *({**step, "step": number} for number in range(1, STEPS + 1)),
        *({**sample, "time_s": second, "gpu_energy_j": energy_w * second} for second in range(samples)),
        {**sample, "time_s": samples, "gpu_power_w": None, "gpu_energy_j": None},  # the GPU did not answer
        {"kind": "eval", "elapsed_s": 0.5},
        {"kind": "end", "train_s": train_s},
    ]
    return bench


@pytest.mark.parametrize("train_s", [3.9, 4.4, 40.0])
def test_steps_take_the_time_of_the_host(tmp_path: Path, train_s: float) -> None:
    with pytest.raises(CheckError, match=r"all steps take 4\.000 s, but .* by the host"):
        one_rank("vit", "bf16")(recorded(tmp_path, train_s, 0, 0.0))


@pytest.mark.parametrize("energy_w", [70.0, 130.0, 100_000.0])
def test_energy_is_integrated_power(tmp_path: Path, energy_w: float) -> None:
    with pytest.raises(CheckError, match="energy: counter"):
        one_rank("vit", "bf16")(recorded(tmp_path, 4.02, 12, energy_w))


@pytest.mark.parametrize(
    ("samples", "energy_w", "source", "expected"),
    [
        (12, 110.0, "counter", "energy: counter 1210 J, integrated power 1100 J"),
        (4, 200.0, "counter", "energy: counter 600 J, integrated power 300 J"),
        (12, 100.0, "power", "energy: 1100 J, this GPU has no counter"),
        (0, 0.0, "counter", "energy: not measured (no NVML)"),
    ],
)
def test_a_run_with_correct_figures(tmp_path: Path, samples: int, energy_w: float, source: str, expected: str) -> None:
    bench = recorded(tmp_path, 4.02, samples, energy_w, source)
    line = one_rank("vit", "bf16")(bench)
    assert line.startswith("100 steps; all steps 4.000 s, by the host 4.020 s (evaluation 0.50 s); phases add up")
    assert line.endswith(expected)
    assert len(bench.speeds) == 1


@pytest.mark.parametrize(
    ("missing", "gpus", "left_s", "reason"),
    [
        ({}, 2, 30.0, None),
        ({"accelerate": "x"}, 2, 30.0, None),
        ({"torchvision": "x", NEEDED[0]: "x"}, 2, 30.0, f"packages are missing: {NEEDED[0]}, torchvision"),
        ({}, 1, 30.0, "needs 2 GPUs, this machine has 1"),
        ({}, 2, 29.0, "no time was left"),
    ],
)
def test_why_a_check_is_not_run(missing: dict[str, str], gpus: int, left_s: float, reason: str | None) -> None:
    check = Check("a", 30, lambda bench: "", gpus=2, needs=("torchvision",))
    assert check.why_not(Machine(gpus, "NVIDIA H200", (), missing), left_s) == reason


def test_images_and_peers_need_torchvision() -> None:
    with_images = {check.name for check in CHECKS if "torchvision" in check.needs}
    assert with_images == {check.name for check in CHECKS if "ViT" in check.name or "benchmark" in check.name}


def test_all_checks_fit_into_the_time() -> None:
    assert LIMIT_S < 9 * 60
    assert sum(check.estimate_s for check in CHECKS) <= 0.8 * LIMIT_S
