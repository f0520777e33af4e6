"""Everything that a model of your own imports: `from disttrain.api import ...`; docs/your-model.md has an example.

These names are public and keep their meaning from release to release. All other modules of this package are private.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from disttrain.config.train_config import TrainConfig
from disttrain.data.batches import Batch, Examples, Indices
from disttrain.distributed.group import Group
from disttrain.errors import UserError
from disttrain.models.family import BuiltModel, EncodedSplits, Family

if TYPE_CHECKING:
    from disttrain.data.splits import InputKind, Split, Splits

__all__ = [
    "Batch",
    "BuiltModel",
    "EncodedSplits",
    "Examples",
    "Family",
    "Group",
    "Indices",
    "InputKind",
    "Split",
    "Splits",
    "TrainConfig",
    "UserError",
]


def __getattr__(name: str) -> Any:
    """Imports the types of the data on first use.

    They need `datasets`, and with it pandas. Loaded before the model's own imports these make each registration of a
    torch operator slower, 0.2 s in all: see disttrain.models.family.
    """
    if name in ("InputKind", "Split", "Splits"):
        from disttrain.data import splits

        return getattr(splits, name)
    raise AttributeError(f"module 'disttrain.api' has no attribute {name!r}")
