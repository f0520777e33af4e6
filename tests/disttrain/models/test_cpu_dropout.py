"""Dropout on a CPU drops with the given probability, keeps the mean, and follows torch's random generator."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from disttrain.models.cpu_dropout import CpuDropout, dropout, keep_mask, use_cpu_dropout


@pytest.mark.parametrize("p", [0.1, 0.25, 0.5, 0.9, 1e-6])
def test_drops_with_the_given_probability(p: float) -> None:
    torch.manual_seed(0)
    count, dropped = 400 * 10_001, 0
    for _ in range(400):  # an odd size: the last random number is used in part
        mask = keep_mask(torch.empty(73, 137), p)
        assert mask.shape == (73, 137)
        dropped += int((mask == 0).sum())
    assert abs(dropped - p * count) < 5 * (count * p * (1 - p)) ** 0.5


def test_a_probability_between_two_masks_is_exact() -> None:
    """0.3 / 2^16 is less than the smallest probability of one mask, so some masks drop nothing."""
    torch.manual_seed(0)
    p = 0.3 * 2**-16
    counts = [int((keep_mask(torch.empty(2**20), p) == 0).sum()) for _ in range(60)]
    assert 0 in counts
    assert float(keep_mask(torch.empty(10_000), 1 - 1e-9).mean()) < 0.01
    assert abs(sum(counts) - 60 * 2**20 * p) < 6 * (60 * 16**2 * 0.21 + 60 * 4.8) ** 0.5


def test_neighbours_are_dropped_independently() -> None:
    torch.manual_seed(1)
    mask = keep_mask(torch.empty(1_000_000), 0.5)
    for distance in (1, 2, 3, 4, 8):
        both = float((mask[:-distance] * mask[distance:]).mean())
        assert both == pytest.approx(0.25, abs=0.003)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_kept_values_are_scaled(dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    values = torch.ones(1000, dtype=dtype, requires_grad=True)
    result = dropout(values, 0.1)
    assert result.dtype == dtype
    assert set(result.tolist()) == {0.0, float(torch.tensor(1.0, dtype=dtype) * (1 / 0.9))}
    result.sum().backward()  # type: ignore[no-untyped-call]
    assert torch.equal(values.grad, result.detach())  # type: ignore[arg-type]


def test_a_seed_gives_the_same_masks() -> None:
    masks = []
    for _ in range(2):
        torch.manual_seed(3)
        masks.append(torch.stack([keep_mask(torch.empty(100), 0.3) for _ in range(3)]))
    assert torch.equal(*masks)
    assert not torch.equal(masks[0][0], masks[0][1])


def test_only_training_drops() -> None:
    others = (nn.AlphaDropout(0.5), nn.Dropout(0.5, inplace=True))
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.Dropout(0.0), others[0], nn.Dropout(1.0), others[1])
    use_cpu_dropout(model)
    kinds = [CpuDropout, CpuDropout, nn.AlphaDropout, CpuDropout, nn.Dropout]
    assert [type(module) for module in model[1:]] == kinds
    values = torch.randn(4, 3)
    assert torch.equal(model[2](values), values)
    assert torch.equal(model[4](values), torch.zeros(4, 3))
    assert not torch.equal(model[1](values), values)
    assert torch.equal(model.eval()[1](values), values)
