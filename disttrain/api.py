"""Everything that a model of your own imports: `from disttrain.api import ...`; docs/your-model.md has an example.

These names are public and keep their meaning from release to release. All other modules of this package are private.
"""

from __future__ import annotations

from disttrain.config.train_config import TrainConfig
from disttrain.data.batches import Batch, Examples, Indices
from disttrain.data.sources import InputKind
from disttrain.data.splits import Split, Splits
from disttrain.distributed.group import Group
from disttrain.errors import UserError
from disttrain.models.family import BuiltModel, EncodedSplits, Family

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
