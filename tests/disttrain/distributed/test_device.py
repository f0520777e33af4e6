"""The settings of a rank's device."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from disttrain.distributed.device import choose_attention, choose_device, cpu_notice, use_full_precision, use_tf32
from disttrain.environment.rank_env import RankEnv
from disttrain.errors import UserError
from tests.fakecuda.install import fake_cuda


@pytest.mark.process
def test_determinism_fills_no_memory() -> None:
    code = (
        "import torch; from disttrain.distributed.device import compute_deterministically; compute_deterministically();"
        "print(torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


@pytest.mark.parametrize("many_shapes", [True, False])
def test_many_shapes_avoid_cudnn_attention(many_shapes: bool) -> None:
    before = torch.backends.cuda.cudnn_sdp_enabled()  # type: ignore[no-untyped-call]
    try:
        choose_attention(many_shapes=many_shapes)
        assert torch.backends.cuda.cudnn_sdp_enabled() is not many_shapes  # type: ignore[no-untyped-call]
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def test_ranks_of_a_host_take_its_gpus_in_turn() -> None:
    with fake_cuda(2) as gpus:
        for local_rank, index in ((0, 0), (1, 1), (2, 0)):
            env = RankEnv(rank=local_rank, world_size=3, local_rank=local_rank, local_world_size=3)
            assert choose_device(env, "auto") == torch.device("cuda", index)
            assert gpus.current == index
        assert choose_device(RankEnv(), "cpu") == torch.device("cpu")


def test_no_gpu_is_an_error_or_a_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_cuda(0):
        monkeypatch.setattr(torch.cuda, "init", _raise_no_driver)
        for env, wanted in ((RankEnv(), "cuda"), (RankEnv(gpus_allocated=True), "auto")):
            with pytest.raises(UserError, match=r"sees no GPU on .* \(check the driver"):
                choose_device(env, wanted)
        cpu = choose_device(RankEnv(), "auto")
        notice = cpu_notice(cpu, "auto")
        assert notice is not None
        assert notice.endswith("(Found no NVIDIA driver on your system)")
        assert cpu_notice(cpu, "cpu") is None
        assert cpu_notice(torch.device("cuda", 0), "auto") is None


def _raise_no_driver() -> None:
    raise RuntimeError("Found no NVIDIA driver on your system. Please check that you have one.\nSee the manual.")


def test_fp32_is_fp32_in_convolutions() -> None:
    """torch's default for them is TF32."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cudnn.allow_tf32 = True
        use_full_precision(torch.device("cpu"))
        assert torch.backends.cudnn.allow_tf32
        use_full_precision(torch.device("cuda", 0))
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32
        conv = getattr(torch.backends.cudnn, "conv", None)  # of newer versions
        assert getattr(conv, "fp32_precision", "ieee") != "tf32"
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def test_tf32_needs_a_gpu_that_has_it() -> None:
    with pytest.raises(UserError, match=r"^precision: tf32 needs an NVIDIA GPU from Ampere on, and this rank has "):
        use_tf32(torch.device("cpu"))
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    try:
        with fake_cuda():
            use_tf32(torch.device("cuda", 0))
        assert torch.backends.cudnn.allow_tf32
        assert torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
