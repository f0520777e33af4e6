"""What the peers have in common."""

from __future__ import annotations

import pytest
import torch

from tests.benchmarks.peers.common import check_precision


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_peer_in_another_precision_stops(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
    check_precision(model, dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        for _ in range(2):
            model(torch.ones(1, 4))
    check_precision(model, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=False), pytest.raises(RuntimeError, match=r"float32, not in"):
        model(torch.ones(1, 4))
