"""The fake GPUs behave as torch says that GPUs do."""

from __future__ import annotations

import pytest
import torch

from tests.fakecuda.gpu import SYNC_MESSAGE
from tests.fakecuda.install import NAME, fake_cuda

GPU = torch.device("cuda", 0)


def test_a_model_trains_on_the_gpu() -> None:
    with fake_cuda() as gpus:
        model = torch.nn.Linear(3, 2).to(GPU)
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        waits = gpus.waits
        batch = torch.ones(4, 3).pin_memory().to(GPU, non_blocking=True)
        model(batch).sum().backward()
        optimizer.step()
        assert model.weight.grad is not None
        assert {value.device for value in [*model.parameters(), model.weight.grad]} == {GPU}
        assert (gpus.waits, gpus.unpinned_copies) == (waits, 0)
        assert torch.cuda.get_device_name(GPU) == NAME
    assert not torch.ones(1).is_cuda
    assert torch.cuda.Event.__module__ == "torch.cuda.streams"


def test_reading_a_value_waits() -> None:
    with fake_cuda() as gpus:
        value = torch.zeros(2, device=GPU)
        for read in (lambda: value.sum().item(), lambda: bool(value.any()), value.tolist, value.cpu, value.nonzero):
            before = gpus.waits
            read()
            assert gpus.waits > before
        torch.cuda.set_sync_debug_mode("error")
        with pytest.raises(RuntimeError, match=SYNC_MESSAGE):
            value.tolist()
        torch.ones(2).tolist()  # in host memory


def test_events_complete_when_the_host_waits() -> None:
    with fake_cuda():
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        with pytest.raises(ValueError, match="must be recorded"):
            start.elapsed_time(end)
        start.record()
        end.record()
        with pytest.raises(RuntimeError, match="must be completed"):
            start.elapsed_time(end)
        end.synchronize()
        assert start.elapsed_time(end) >= 0


def test_a_copy_arrives_when_the_host_has_waited() -> None:
    with fake_cuda():
        source = torch.arange(3, device=GPU)
        target = torch.empty_like(source, device="cpu", pin_memory=True).copy_(source, non_blocking=True)
        assert target.tolist() != [0, 1, 2]
        torch.cuda.synchronize()
        assert target.tolist() == [0, 1, 2]


def test_dropout_draws_from_the_gpu_generator() -> None:
    with fake_cuda():
        values, dropout = torch.ones(64, device=GPU), torch.nn.Dropout(0.5)
        torch.manual_seed(1)
        on_cpu, on_gpu = torch.get_rng_state(), torch.cuda.get_rng_state(GPU)
        first, second = dropout(values).tolist(), dropout(values).tolist()
        assert first != second
        assert torch.get_rng_state().tolist() == on_cpu.tolist()
        torch.cuda.set_rng_state(on_gpu, GPU)
        assert dropout(values).tolist() == first
