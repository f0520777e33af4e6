"""Where tensors are: all are in host memory, and a mode of torch notes which are on a fake GPU or pinned."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from tests.fakecuda.gpu import FakeGpus

# Methods that bring a value to the host: it waits for the GPU.
_READS = {
    Tensor.item,
    Tensor.tolist,
    Tensor.numpy,
    Tensor.__bool__,
    Tensor.__int__,
    Tensor.__float__,
    Tensor.__index__,
    Tensor.nonzero,
    torch.nonzero,
    torch.equal,
    Tensor.equal,
}
_DRAWS = {functional.dropout, torch.dropout, torch.rand_like, torch.randn_like}
# A view of a tensor is pinned if the tensor is.
_VIEWS = {Tensor.view, Tensor.detach, Tensor.__getitem__, Tensor.data.__get__}  # type: ignore[attr-defined]


def on_gpu(value: Any) -> torch.device | None:
    """The fake GPU that holds a tensor; None for the host."""
    return getattr(value, "fake_device", None) if isinstance(value, Tensor) else None


class FakeTensors(TorchFunctionMode):
    """Does everything in host memory, and says what torch would say of tensors on GPUs."""

    def __init__(self, gpus: FakeGpus) -> None:
        super().__init__()
        self._gpus = gpus
        self._special: Mapping[Any, Callable[..., Any]] = {
            Tensor.device.__get__: self._device,
            Tensor.is_cuda.__get__: lambda value: on_gpu(value) is not None,  # type: ignore[attr-defined]
            Tensor.is_pinned: lambda value, *_: getattr(value, "fake_pinned", False),
            Tensor.pin_memory: self._pin,
            Tensor.to: self._to,
            Tensor.cpu: lambda value: self._move(value, None, {}),
            Tensor.cuda: lambda value, device=None, non_blocking=False: self._move(
                value, self._gpu(torch.device("cuda")), {"non_blocking": non_blocking}
            ),
            Tensor.copy_: self._copy,
            Tensor.data.__set__: self._set_data,  # type: ignore[attr-defined]
        }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in self._special:
            return self._special[func](*args, **kwargs)
        places = {place for value in _tensors((args, kwargs)) if (place := on_gpu(value)) is not None}
        if places and func in _READS:
            self._gpus.host_waits()
        place = next(iter(places), None)
        if (device := kwargs.get("device")) is not None:
            place = self._gpu(torch.device(device))
            kwargs["device"] = "cpu"
        pinned = bool(kwargs.pop("pin_memory", False))
        draws = func in _DRAWS or (func is functional.scaled_dot_product_attention and kwargs.get("dropout_p"))
        if place is not None and draws:
            result = self._gpus.draw(lambda: func(*args, **kwargs))
        else:
            result = func(*args, **kwargs)
        if func is torch.tensor and place is not None and result.numel():
            self._gpus.host_waits()  # a copy from memory that is not pinned
        if func in _VIEWS and args:
            pinned = pinned or getattr(args[0], "fake_pinned", False)
        for value in _tensors(result):
            if place is not None:
                value.fake_device = place
            if pinned:
                value.fake_pinned = True
        return result

    def _gpu(self, device: torch.device) -> torch.device | None:
        if device.type != "cuda":
            return None
        index = self._gpus.current if device.index is None else device.index
        if index >= len(self._gpus.properties):
            raise RuntimeError("CUDA error: invalid device ordinal")
        return torch.device("cuda", index)

    def _device(self, value: Tensor) -> torch.device:
        return on_gpu(value) or torch.device("cpu")

    def _pin(self, value: Tensor, *_: Any) -> Any:
        assert on_gpu(value) is None, "only dense CPU tensors can be pinned"
        pinned: Any = value.clone()
        pinned.fake_pinned = True
        return pinned

    def _to(self, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        device = kwargs.pop("device", None)
        rest = []
        for argument in args:
            if isinstance(argument, Tensor):
                device, kwargs["dtype"] = on_gpu(argument) or torch.device("cpu"), argument.dtype
            elif isinstance(argument, str | torch.device):
                device = argument
            else:
                rest.append(argument)
        if rest and isinstance(rest[0], bool):
            kwargs["non_blocking"], *rest = rest
        elif len(rest) > 1 and isinstance(rest[1], bool):
            kwargs["non_blocking"] = rest.pop(1)
        if device is None:
            result: Any = value.to(*rest, **kwargs)
            if (place := on_gpu(value)) is not None:
                result.fake_device = place
            return result
        return self._move(value, self._gpu(torch.device(device)), {**kwargs, **_dtype(rest)})

    def _move(self, value: Tensor, target: torch.device | None, options: Mapping[str, Any]) -> Any:
        if on_gpu(value) == target:
            same: Any = value.to(**options)
            if target is not None:
                same.fake_device = target
            return same
        if not options.get("non_blocking"):
            self._gpus.host_waits()
        elif not getattr(value, "fake_pinned", False):
            self._gpus.unpinned_copies += 1
        moved: Any = value.to(**{**options, "copy": True})
        if target is not None:
            moved.fake_device = target
        return moved

    def _copy(self, target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        """Copies. A copy to pinned memory that does not wait is queued, and its target is garbage until then."""
        if (on_gpu(target) is None) == (on_gpu(source) is None):
            return target.copy_(source)
        if not non_blocking:
            self._gpus.host_waits()
            return target.copy_(source)
        host = source if on_gpu(source) is None else target
        if not getattr(host, "fake_pinned", False):
            self._gpus.unpinned_copies += 1
            return target.copy_(source)
        if on_gpu(target) is not None:
            return target.copy_(source)
        value = source.detach().clone()
        target.fill_(99)
        with self._gpus.lock:
            self._gpus.queue.append(lambda: _copy_later(target, value))
        return target

    def _set_data(self, target: Any, source: Any) -> None:
        target.data = source
        if (place := on_gpu(source)) is not None:
            target.fake_device = place


def _copy_later(target: Tensor, value: Tensor) -> None:
    with torch._C.DisableTorchFunction(), torch.no_grad():
        target.copy_(value)


def _dtype(arguments: list[Any]) -> dict[str, Any]:
    dtypes = [argument for argument in arguments if isinstance(argument, torch.dtype)]
    return {"dtype": dtypes[0]} if dtypes else {}


def _tensors(value: Any) -> Iterator[Any]:
    """All tensors in lists, tuples and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
