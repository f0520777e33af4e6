"""The shape of an allocation: how many nodes, and how many GPUs on each of them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from disttrain.errors import UserError

# Six digits a side are beyond every cluster, and keep a typo such as 1x10000000000 from reaching the scheduler.
_SHAPE = re.compile(r"([1-9][0-9]{0,5})[x_]([1-9][0-9]{0,5})")


@dataclass(frozen=True, order=True)
class Allocation:
    """Nodes times GPUs per node; one rank runs on each GPU. Ordered by nodes, then by GPUs per node."""

    nodes: int
    gpus_per_node: int

    def __post_init__(self) -> None:
        assert min(self.nodes, self.gpus_per_node) > 0, "an allocation has at least one node with one GPU"

    @classmethod
    def parse(cls, text: object, *, where: str | None = None) -> Allocation:
        """The allocation that a sweep or ``--setup`` names.

        Args:
            text: ``2x2`` or ``2_2``, nodes first. Any YAML value may be given: what is no text is refused.
            where: Where the text came from, for the error.

        Raises:
            UserError: The text is not a shape, or a part of it is zero.

        Example:
            >>> Allocation.parse("2x1"), str(Allocation.parse("1_4"))
            (Allocation(nodes=2, gpus_per_node=1), '1x4')
        """
        match = _SHAPE.fullmatch(text) if isinstance(text, str) else None
        if not match:
            raise UserError(
                f"{text!r} is not an allocation", where=where, hint="write <nodes>x<GPUs per node>, as in 1x4 or 2x2"
            )
        return cls(int(match[1]), int(match[2]))

    @property
    def world_size(self) -> int:
        """The number of ranks: one for each GPU."""
        return self.nodes * self.gpus_per_node

    def __str__(self) -> str:
        return f"{self.nodes}x{self.gpus_per_node}"
