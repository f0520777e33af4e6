"""Encodes the data of a run once, on rank 0; the other ranks map its arrays from the cache and read no data."""

from __future__ import annotations

import dataclasses
import uuid
from contextlib import suppress
from pathlib import Path

from disttrain.config.train_config import FAMILIES, TrainConfig
from disttrain.data.array_cache import cache_folder
from disttrain.data.sharing import NotCachedError, pack, unpack
from disttrain.data.splits import load_splits
from disttrain.distributed.group import Group
from disttrain.errors import UserError
from disttrain.models.family import EncodedSplits, Family


def encode_splits(config: TrainConfig, family: Family, group: Group, work_dir: Path) -> EncodedSplits:
    """The encoded splits of a run, the same on every rank, with all notices about the data.

    Ranks that do not see the cache of rank 0 read the data themselves, and then all ranks do so together. So do the
    ranks of a family of the user's own, whose `encode` may exchange something between them.

    Args:
        config: The resolved config.
        family: The family of the model.
        group: The ranks; all of them call this function.
        work_dir: The run's folder.

    Raises:
        UserError: The config does not fit the data.
    """
    if group.backend is not None and config.model in FAMILIES and _see_the_same_cache(group):
        encoded = _encoded_on_main(config, family, group, work_dir)
        if encoded is not None:
            return encoded
    with group.main_first():  # rank 0 fills the cache
        splits = load_splits(config, family.INPUT)
    encoded = family.encode(config, splits, group, work_dir)
    return dataclasses.replace(encoded, notices=(*splits.notices, *encoded.notices))


def _see_the_same_cache(group: Group) -> bool:
    """Whether all ranks see the cache of rank 0; else it would encode alone for nothing."""
    folder = cache_folder()
    probe: Path | None = None
    if group.is_main:
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f".seen-{uuid.uuid4().hex}"
            probe.touch()
    name = group.broadcast_from_main(None if probe is None else probe.name)
    seen = name is not None and (folder / name).exists()
    missing = group.any(not seen)
    if probe is not None:
        with suppress(OSError):
            probe.unlink()
    return not missing


def _encoded_on_main(config: TrainConfig, family: Family, group: Group, work_dir: Path) -> EncodedSplits | None:
    """What rank 0 has encoded; None if a rank does not find its arrays."""
    made: EncodedSplits | UserError | None = None
    packed = b""
    with group.main_first():
        if group.is_main:
            alone = dataclasses.replace(group, backend=None, store=None)
            try:
                made = encode_splits(config, family, alone, work_dir)
            except UserError as error:
                made = error  # raised on every rank, so that none reports a lost connection
            packed = pack(made)
    packed = group.broadcast_from_main(packed)
    if not group.is_main:
        # NotCachedError, or an error of the files of `datasets`, which another host may not see.
        with suppress(NotCachedError, OSError):
            made = unpack(packed)
    if isinstance(made, UserError):
        raise made
    return None if group.any(made is None) else made
