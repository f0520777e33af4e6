"""An allocation: the number of nodes and the number of GPUs on each node."""

from __future__ import annotations

import re
from dataclasses import dataclass

from disttrain.errors import UserError

# Six digits are more than any cluster has. The limit stops a typo such as 1x10000000000 before the scheduler.
_ALLOCATION = re.compile(r"([1-9][0-9]{0,5})[x_]([1-9][0-9]{0,5})")


def is_allocation(text: str) -> bool:
    """Whether a text is an allocation.

    Example:
        >>> is_allocation("2x2"), is_allocation("time")
        (True, False)
    """
    return _ALLOCATION.fullmatch(text) is not None


@dataclass(frozen=True, order=True)
class Allocation:
    """Nodes times GPUs per node, with one rank on each GPU. Sorts by nodes, then by GPUs per node."""

    nodes: int
    gpus_per_node: int

    def __post_init__(self) -> None:
        assert min(self.nodes, self.gpus_per_node) > 0, "an allocation has at least one node with one GPU"

    @classmethod
    def parse(cls, text: object, *, where: str | None = None) -> Allocation:
        """Reads an allocation of a sweep file or of ``--setup``.

        Args:
            text: ``2x2`` or ``2_2``, nodes first. Any YAML value is accepted; all but strings are an error.
            where: The source of the text, for the error.

        Raises:
            UserError: The value is not an allocation, or one of its numbers is zero.

        Example:
            >>> Allocation.parse("2x1"), str(Allocation.parse("1_4"))
            (Allocation(nodes=2, gpus_per_node=1), '1x4')
        """
        if isinstance(text, str) and is_allocation(text):
            nodes, gpus_per_node = re.split("[x_]", text)
            return cls(int(nodes), int(gpus_per_node))
        hint = "write <nodes>x<GPUs per node>, both at least 1, for example 1x4 or 2x2"
        raise UserError(f"{text!r} is not an allocation", where=where, hint=hint)

    @property
    def world_size(self) -> int:
        """The number of ranks, one for each GPU."""
        return self.nodes * self.gpus_per_node

    def __str__(self) -> str:
        return f"{self.nodes}x{self.gpus_per_node}"
