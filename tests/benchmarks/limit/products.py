"""Records the matrix products that a model executes, and the memory of their operands."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

_SCORES = -1  # no storage has this address


@dataclass(frozen=True)
class Operand:
    """A tensor of a product: its place in memory, without its values."""

    memory: int  # the number of the storage, by first use; tensors that share a storage have the same number
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int  # elements of the storage before the first one
    dtype: torch.dtype

    @property
    def extent(self) -> int:
        """The elements of the storage up to the last one of this tensor."""
        last = sum((size - 1) * stride for size, stride in zip(self.size, self.stride, strict=True))
        return self.offset + last + 1

    def folded(self) -> Operand:
        """Examples and heads, the first two dimensions, as one. The result is contiguous in the same memory."""
        examples, heads, rows, columns = self.size
        size = (examples * heads, rows, columns)
        return Operand(self.memory, size, (rows * columns, columns, 1), self.offset, self.dtype)

    def transposed(self) -> Operand:
        """The last two dimensions exchanged."""
        *batch, rows, columns = zip(self.size, self.stride, strict=True)
        size, stride = zip(*batch, columns, rows, strict=True)
        return Operand(self.memory, size, stride, self.offset, self.dtype)


@dataclass(frozen=True)
class Product:
    """One product, without the bias or the sum that the model's operation may add to it."""

    operation: str  # mm, bmm, convolution, convolution_backward
    operands: tuple[Operand, ...]
    output: Operand | None = None  # None: the operation allocates its outputs
    options: tuple[Any, ...] = ()  # of a convolution: the arguments after its operands and its bias

    @property
    def flops(self) -> int:
        """Multiplications and additions."""
        first, second = self.operands[:2]
        if self.operation in ("mm", "bmm"):
            return 2 * math.prod(first.size) * second.size[-1]
        if self.operation == "convolution":
            assert self.output is not None
            return 2 * math.prod(self.output.size) * math.prod(second.size[1:])
        gradients: int = sum(self.options[-1])  # of the input, of the weight
        return 2 * gradients * math.prod(first.size) * math.prod(self.operands[2].size[1:])


class UnknownProductError(Exception):
    """The model executes a product of a kind that this module cannot record."""


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records all products of a with-block in `products`, including those of backward passes.

    Attention in one operation is recorded as its products: two forward, four backward. The products that a backward
    pass does again to save memory are not counted.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.products: list[Product] = []
        # The number of each storage by its address; the tensor keeps the address from being used again.
        self._storages: dict[int, tuple[int, Tensor]] = {}
        self._noters: dict[str, Callable[[Any, Any], None]] = {
            "mm": self._mm,
            "addmm": self._addmm,
            "_addmm_activation": self._addmm,
            "bmm": self._bmm,
            "baddbmm": self._baddbmm,
            "convolution": self._convolution,
            "convolution_backward": self._convolution_backward,
        }

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        note = self._noter(func.overloadpacket)
        if note is not None:
            note(args, result)
        return result

    def _noter(self, operation: Any) -> Callable[[Any, Any], None] | None:
        """The method that records this operation; None for an operation that is no product."""
        name: str = operation.__name__
        if name.startswith("_scaled_dot_product"):
            return self._attention_backward if name.endswith("_backward") else self._attention
        noter = self._noters.get(name)
        if noter is None and operation in flop_registry:
            raise UnknownProductError(f"the limit cannot record the product {operation}")
        return noter

    def _mm(self, args: Any, result: Tensor) -> None:
        self._add("mm", args[:2], result)

    def _addmm(self, args: Any, result: Tensor) -> None:
        self._add("mm", args[1:3], result)

    def _bmm(self, args: Any, result: Tensor) -> None:
        self._add("bmm", args[:2], result)

    def _baddbmm(self, args: Any, result: Tensor) -> None:
        self._add("bmm", args[1:3], result)

    def _convolution(self, args: Any, result: Tensor) -> None:
        self._add("convolution", args[:2], result, tuple(args[3:]))

    def _convolution_backward(self, args: Any, result: Any) -> None:
        *options, (of_input, of_weight, _) = args[4:]
        self._add("convolution_backward", args[:3], None, (*options, [of_input, of_weight, False]))

    def _add(self, operation: str, operands: Any, result: Tensor | None, options: tuple[Any, ...] = ()) -> None:
        output = None if result is None else self._operand(result)
        self.products.append(Product(operation, tuple(map(self._operand, operands)), output, options))

    def _attention(self, args: Any, result: Any) -> None:
        query, key, value = (self._operand(tensor).folded() for tensor in args[:3])
        scores = self._scores(query, key)
        output = self._operand(result[0]).folded()
        self.products += [
            Product("bmm", (query, key.transposed()), scores),
            Product("bmm", (scores, value), output),
        ]

    def _attention_backward(self, args: Any, result: Any) -> None:
        of_output, query, key, value = (self._operand(tensor).folded() for tensor in args[:4])
        of_query, of_key, of_value = (self._operand(tensor).folded() for tensor in result[:3])
        scores = self._scores(query, key)
        self.products += [
            Product("bmm", (scores.transposed(), of_output), of_value),
            Product("bmm", (of_output, value.transposed()), scores),
            Product("bmm", (scores, key), of_query),
            Product("bmm", (scores.transposed(), query), of_key),
        ]

    def _scores(self, query: Operand, key: Operand) -> Operand:
        """The scores of an attention. All layers use the same memory for them, because no layer must store them."""
        batch, rows, columns = query.size[0], query.size[1], key.size[1]
        number = self._storages.setdefault(_SCORES, (len(self._storages), torch.empty(0)))[0]
        return Operand(number, (batch, rows, columns), (rows * columns, columns, 1), 0, query.dtype)

    def _operand(self, tensor: Tensor) -> Operand:
        address = tensor.untyped_storage().data_ptr()
        number = self._storages.setdefault(address, (len(self._storages), tensor))[0]
        return Operand(number, tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()), tensor.dtype)
