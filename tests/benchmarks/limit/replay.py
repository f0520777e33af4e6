"""Does recorded products again, on random numbers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tests.benchmarks.limit.products import Operand, Product


class Replay:
    """The recorded products of some passes, ready to be executed.

    Operands that shared memory in the model share it here, also between the passes. So weights and activations come
    from the caches or from memory as in the model, and no pass allocates memory for the result of a product.

    Args:
        passes: The products of each pass, in their order.
        device: The device that executes them.
    """

    def __init__(self, passes: Mapping[Any, Sequence[Product]], device: torch.device) -> None:
        self._memory = _memory([product for products in passes.values() for product in products], device)
        self._calls = {name: [self._call(product) for product in products] for name, products in passes.items()}

    def run(self, name: Hashable) -> None:
        """Executes the products of one pass."""
        for call in self._calls[name]:
            call()

    def _call(self, product: Product) -> Callable[[], Any]:
        operands = [self._tensor(operand) for operand in product.operands]
        if product.operation in ("mm", "bmm"):
            assert product.output is not None
            multiply = torch.mm if product.operation == "mm" else torch.bmm
            return functools.partial(multiply, *operands, out=self._tensor(product.output))
        # None: the bias, or the sizes of the bias.
        convolve = getattr(torch.ops.aten, product.operation).default
        return functools.partial(convolve, *operands, None, *product.options)

    def _tensor(self, operand: Operand) -> Tensor:
        flat = self._memory[operand.memory, operand.dtype]
        return flat.as_strided(operand.size, operand.stride, operand.offset)


def _memory(products: Sequence[Product], device: torch.device) -> dict[tuple[int, torch.dtype], Tensor]:
    """Random numbers for each storage, as many as the largest pass needs."""
    extents: dict[tuple[int, torch.dtype], int] = {}
    for product in products:
        for operand in (*product.operands, *filter(None, [product.output])):
            place = (operand.memory, operand.dtype)
            extents[place] = max(extents.get(place, 0), operand.extent)
    return {
        place: torch.empty(extent, dtype=place[1], device=device).uniform_(-1, 1) for place, extent in extents.items()
    }
