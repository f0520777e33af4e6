"""The settings of a rank's device."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from disttrain.distributed.device import choose_attention


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
