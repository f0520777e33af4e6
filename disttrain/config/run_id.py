"""The id of a run: a hash over its allocation and the config fields that can change results."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from typing import Any

from disttrain.config.command.command_config import CommandConfig
from disttrain.config.train_config import PATH_FIELDS, TrainConfig

# Fields that change where or how fast a run computes, but not what: they are not part of its id. One exception is
# accepted: checkpoints fix the order of DDP's buckets early, which on three or more ranks may change a sum's last bit.
NOT_IDENTITY = frozenset(
    {
        "num_workers",
        "setup",
        "output_dir",
        "checkpoint_every",
        "save_model",
        "stop_on_non_finite",
        "telemetry_every_s",
        "start_check_s",
        "collective_timeout_s",
    }
)

_DEFAULTS = {field.name: field.default for field in dataclasses.fields(TrainConfig) if field.name not in NOT_IDENTITY}


def run_id(allocation: str, config: TrainConfig | CommandConfig) -> str:
    """The identity of a run: ``<allocation>-<12 hex digits>``.

    The digits are a SHA-256 over the allocation and the fields of the resolved config that differ from their defaults,
    without the fields that cannot change results. A new field whose default keeps the behaviour thus changes no id.
    For a command they are over the allocation, the command, and the values in any order.

    Args:
        allocation: The allocation, for example ``2x2``.
        config: The run's config, with paths as they were written.

    Example:
        >>> run_id("1x1", TrainConfig(model="bert"))[:4]
        '1x1-'
    """
    identity = {"allocation": allocation, **_identity(config)}
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return f"{allocation}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _identity(config: TrainConfig | CommandConfig) -> dict[str, Any]:
    """What a run computes, as JSON values."""
    if isinstance(config, CommandConfig):
        return {"command": config.command, "values": dict(config.values)}
    resolved = config.resolved()
    identity: dict[str, Any] = {}
    for name, default in _DEFAULTS.items():
        value = getattr(resolved, name)
        if value == default:
            continue
        if name in PATH_FIELDS:
            value = os.path.normpath(value)
        identity[name] = value
    return identity
