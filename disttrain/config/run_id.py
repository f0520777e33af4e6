"""The id of a run: a hash over its allocation and the config fields that can change results."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from typing import Any

from disttrain.config.train_config import PATH_FIELDS, TrainConfig

# Fields that say where or how fast, never what is computed: they do not change a run's identity. With checkpoints DDP's
# buckets are settled beforehand, which on three ranks or more may move a last bit of a sum.
NOT_IDENTITY = frozenset(
    {"num_workers", "setup", "output_dir", "checkpoint_every", "save_model", "telemetry_every_s", "start_check_s"}
)


def run_id(shape: str, config: TrainConfig) -> str:
    """The identity of a run: ``<shape>-<12 hex digits>``.

    The digits are a SHA-256 over the shape and those fields of the resolved config that differ from their defaults,
    without the fields that cannot change results. So a new field whose default changes nothing changes no id.

    Args:
        shape: The allocation, as ``2x2``.
        config: The run's config, paths as they were written.

    Example:
        >>> run_id("1x1", TrainConfig(model="bert"))[:4]
        '1x1-'
    """
    resolved = config.resolved()
    identity: dict[str, Any] = {"allocation": shape}
    for field in dataclasses.fields(TrainConfig):
        value = getattr(resolved, field.name)
        if field.name in NOT_IDENTITY or value == field.default:
            continue
        identity[field.name] = os.path.normpath(value) if field.name in PATH_FIELDS else value
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return f"{shape}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
